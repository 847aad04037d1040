"""The guide's training command, translated: prints the `stageline` command it means, runs it, notes what came of it.

    python scripts/train.py --config configs/default.yaml
    python scripts/train.py --config configs/bimamba_overlap0.yaml --resume runs/<run>/vision/<variant>/best.ckpt
    python scripts/train.py --config configs/default.yaml --stage resampler,finetune --preview

`--resume PATH` names the checkpoint that the first stage starts from (one of an earlier stage) or goes on from (one of
the same stage of this run). Nothing else is decided here; further `key=value` words are handed on.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from stageline.families.panorama_vlm.guide import (
    check_config,
    is_vision_alone,
    resume_overrides,
    stages_of,
    told,
    write_stage_state,
)

PROGRAM = Path(sys.executable).with_name("stageline")


def main() -> int:
    """Run one command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--stage", help="stages or their numbers from 1, separated by commas")
    parser.add_argument("--resume", metavar="PATH", help="a checkpoint: pointer file, stage, run or step directory")
    parser.add_argument("--resume-mode", choices=("auto", "weights"), default="auto")
    parser.add_argument("--preview", action="store_true", help="show the plan and end")
    given, words = parser.parse_known_args()
    check_config(given.config)
    chosen = list(words)
    if given.stage:
        chosen.append(f"stages=[{', '.join(stages_of(given.stage))}]")
    if given.resume:
        chosen += resume_overrides(given.config, chosen, given.resume, weights_only=given.resume_mode == "weights")
    alone = is_vision_alone(given.config, chosen)  # it answers no questions: trained, not evaluated
    verb = ["plan"] if given.preview else ["train", "vision"] if alone else ["run"]
    command = [*verb, "-c", given.config, *chosen]
    print(f"$ stageline {shlex.join(command)}", file=sys.stderr, flush=True)
    code = subprocess.run([str(PROGRAM), *command], check=False).returncode
    if not given.preview:
        write_stage_state(given.config, chosen)
    return code


if __name__ == "__main__":
    sys.exit(told(main))
