"""The guide's evaluation command, translated: evaluates a checkpoint, copies the result to where the guide has it.

    python scripts/eval.py --config runs/<run>/finetune/<variant>/config.yaml --csv-input data/quic360/test.csv
    python scripts/eval.py --metrics-only results/eval_results/<run>/predictions_<time>

The evaluation itself lies in `runs/<run>/evaluations/`: a second call finds it there and copies it again, one that was
interrupted goes on. `--metrics-only` makes the metrics of a copy again from its predictions.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
import tempfile
from pathlib import Path

from stageline.cli.tables import show_evaluation
from stageline.families.panorama_vlm.config import FAMILY_CONFIG
from stageline.families.panorama_vlm.guide import check_config, run_stageline, told
from stageline.families.panorama_vlm.guide_results import (
    checkpoint_of,
    copy_evaluation,
    repeat_metrics,
    root_beside,
)
from stageline.printing import say
from stageline.store import Reference
from stageline.work.evaluations import EvaluationRecord


def main() -> int:
    """Run one command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--config", help="a config; one that lies in a stage directory selects the checkpoint there")
    parser.add_argument("--csv-input", help="CSV file of the rows; none takes data.csv_test of the config")
    parser.add_argument("--checkpoint", help="best, last, or a path; none takes the best one beside the config")
    parser.add_argument("--max-samples", type=int, help="how many rows, from the first on; none takes all")
    parser.add_argument("--batch-size", type=int, help="questions that are answered together")
    parser.add_argument("--metrics-only", metavar="DIR", help="make the metrics of a copied evaluation again")
    given, words = parser.parse_known_args()
    if given.metrics_only:
        others = [name for name, value in vars(given).items() if value is not None and name != "metrics_only"]
        if others or words:
            parser.error(f"--metrics-only stands alone, without --{(others or words)[0].replace('_', '-').lstrip('-')}")
        return again(Path(given.metrics_only))
    if not given.config:
        parser.error("--config is missing")
    return evaluate(given, words)


def evaluate(given: argparse.Namespace, words: list[str]) -> int:
    """Evaluate and copy."""
    check_config(given.config)
    chosen = [*words, *root_beside(Path(given.config).resolve().parent)]
    checkpoint = checkpoint_of(given.config, chosen, given.checkpoint)
    if given.csv_input:
        chosen.append(f"data.csv_test=[{given.csv_input}]")
    if given.max_samples is not None:
        chosen.append(f"evaluate.max_samples={given.max_samples}")
    if given.batch_size is not None:
        chosen.append(f"evaluate.batch_size={given.batch_size}")
    named = ["--checkpoint", checkpoint] if checkpoint else []
    command = ["evaluate", "-c", given.config, "--json", *named, *chosen]
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    log = [f"{now} $ stageline {shlex.join(command)}\n"]
    with tempfile.TemporaryFile("w+") as output:
        code = run_stageline(command, output=output, log=log)
        if code != 0:
            return code
        output.seek(0)
        plain = json.load(output)
    reference = Reference.parse(plain.pop("reference"))
    show_evaluation(EvaluationRecord(reference, plain), FAMILY_CONFIG.words)
    print(f"the evaluation: {reference.uri}")
    print(f"copied to {copy_evaluation(reference, given.config, chosen, ''.join(log))}")
    return 0


def again(folder: Path) -> int:
    """Make the metrics of a copy again."""
    plain, changed = repeat_metrics(folder)
    show_evaluation(EvaluationRecord(Reference(str(folder), ""), plain), FAMILY_CONFIG.words)
    say(*(changed or [f"{folder}/metrics.json says the same"]))
    return 0


if __name__ == "__main__":
    sys.exit(told(main))
