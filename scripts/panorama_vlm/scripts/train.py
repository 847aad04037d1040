"""The guide's training command, translated: prints the `stageline` command it means, runs it, notes what came of it.

    python scripts/train.py --config configs/default.yaml
    python scripts/train.py --config configs/bimamba_overlap0.yaml --resume runs/<run>/vision/<variant>/best.ckpt
    python scripts/train.py --config configs/default.yaml --stage resampler,finetune --preview

`--resume PATH` names the checkpoint that the first stage starts from (one of an earlier stage) or goes on from (one of
the same stage of this run). Nothing else is decided here; further `key=value` words are handed on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from stageline.families.panorama_vlm.guide import (
    REFUSED_OPTIONS,
    check_config,
    copies_results,
    refuse_dropped_parent,
    refuse_option,
    resume_overrides,
    run_stageline,
    stages_of,
    told,
    write_stage_state,
)


def main() -> int:
    """Run one command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--stage", help="stages or their numbers from 1, separated by commas")
    parser.add_argument("--resume", metavar="PATH", help="a checkpoint: pointer file, stage, run or step directory")
    parser.add_argument("--resume-mode", choices=("auto", "weights"), default="auto", help="weights: nothing but them")
    parser.add_argument("--resume-skip", metavar="SECTIONS", help="of pe, resampler, lora: these start fresh")
    parser.add_argument("--preview", action="store_true", help="show the plan and end; writes nothing")
    parser.add_argument("--profile", choices=("tiny",), help="made weights and a few steps, whatever the config names")
    for option in REFUSED_OPTIONS:
        parser.add_argument(option, nargs="?", const="", help=argparse.SUPPRESS)
    given, words = parser.parse_known_args()
    for option in REFUSED_OPTIONS:
        refuse_option(option, getattr(given, option.lstrip("-").replace("-", "_")))
    check_config(given.config)
    chosen = list(words)
    if given.profile:
        chosen.append(f"profile={given.profile}")
    if given.stage:
        chosen.append(f"stages=[{', '.join(stages_of(given.stage))}]")
    if given.resume_skip:
        chosen.append(f"model.start_fresh=[{given.resume_skip}]")
    if given.resume:
        chosen += resume_overrides(given.config, chosen, given.resume, weights_only=given.resume_mode == "weights")
    refuse_dropped_parent(given.config, chosen)
    if given.preview:
        return run_stageline(["plan", "-c", given.config, "--count", *chosen])
    code = run_stageline(["run", "-c", given.config, *chosen])
    write_stage_state(given.config, chosen)
    if code == 0 and copies_results(given.config, chosen):
        script = Path(__file__).with_name("eval.py")
        code = subprocess.run([sys.executable, str(script), "--config", given.config, *chosen], check=False).returncode
    return code


if __name__ == "__main__":
    sys.exit(told(main))
