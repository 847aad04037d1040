"""The guide's evaluation command, translated: evaluates a checkpoint, copies the result to where the guide has it.

    python scripts/eval.py --config runs/<run>/finetune/<variant>/config.yaml --csv-input data/quic360/test.csv

The evaluation itself lies in `runs/<run>/evaluations/`; a second call finds it there and copies it again.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from stageline.families.panorama_vlm.guide import check_config, copy_evaluation, results_dir, root_beside, told

PROGRAM = Path(sys.executable).with_name("stageline")


def main() -> int:
    """Run one command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--csv-input", help="CSV file of the rows; none takes data.csv_test of the config")
    parser.add_argument("--checkpoint", help="best, last, or a path; none takes the one beside the config")
    parser.add_argument("--max-samples", type=int)
    parser.add_argument("--batch-size", type=int)
    given, words = parser.parse_known_args()
    check_config(given.config)
    beside = Path(given.config).resolve().parent
    checkpoint = given.checkpoint
    if checkpoint in (None, "best", "last") and (beside / "best.ckpt").is_file():
        checkpoint = str(beside / f"{checkpoint or 'best'}.ckpt")
    chosen = [*words, *root_beside(beside)]
    results = results_dir(given.config, chosen)
    if given.csv_input:
        chosen.append(f"data.csv_test=[{given.csv_input}]")
    if given.max_samples is not None:
        chosen.append(f"evaluate.max_samples={given.max_samples}")
    if given.batch_size is not None:
        chosen.append(f"evaluate.batch_size={given.batch_size}")
    command = [
        "evaluate",
        "-c",
        given.config,
        "--quiet",
        *(["--checkpoint", checkpoint] if checkpoint else []),
        *chosen,
    ]
    print(f"$ stageline {shlex.join(command)}", file=sys.stderr, flush=True)
    result = subprocess.run([str(PROGRAM), *command], stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        return result.returncode
    print(copy_evaluation(result.stdout.strip().splitlines()[-1], results))
    return 0


if __name__ == "__main__":
    sys.exit(told(main))
