"""film_flow's published commands, translated: prints the `stageline` command they mean, then becomes it.

    python scripts/film_flow/filmflow.py train --config config.yaml --epochs 5 --lr 1e-3 --tag wide
    python scripts/film_flow/filmflow.py eval --checkpoint runs/wide/film --config config.yaml --film-mode shuffle
    python scripts/film_flow/filmflow.py inspect runs/wide/film
    python scripts/film_flow/filmflow.py import-legacy old.ckpt imported --config config.yaml --film-stages 0,1
    python scripts/film_flow/filmflow.py plan --config config.yaml

Flags become dotted overrides of the config; nothing is decided here.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("stageline")

TRAIN_FLAGS = {
    "data": "data.name",
    "epochs": "trainer.max_epochs",
    "batch_size": "trainer.batch_size",
    "lr": "trainer.learning_rate",
    "timesteps": "model.timesteps",
    "ensemble": "model.num_ensemble",
    "ema_decay": "trainer.ema_decay",
    "tag": "run",
}
EVAL_FLAGS = {
    "data": "data.name",
    "k": "evaluate.k",
    "solver": "evaluate.solver",
    "ensemble": "evaluate.ensemble",
    "film_mode": "evaluate.film_mode",
    "weights": "evaluate.weights",
}
DEBUG_STEPS = 4
"""Steps per stage under --debug: enough to see that everything fits together."""


def make_parser() -> argparse.ArgumentParser:
    """The published flags."""
    parser = argparse.ArgumentParser(prog="filmflow", description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("train", help="all stages, evaluation and report: `stageline run`")
    evaluate = verbs.add_parser("eval", help="measure a checkpoint: `stageline evaluate`")
    plan = verbs.add_parser("plan", help="what a run would do: `stageline plan`")
    for verb in (train, evaluate, plan):
        verb.add_argument("--config")
        verb.add_argument("--profile", help="a preset instead of a config: tiny, xca, octa500")
    for verb in (train, plan):
        for flag in TRAIN_FLAGS:
            verb.add_argument(f"--{flag.replace('_', '-')}")
        verb.add_argument("--crop-size")
        verb.add_argument("--no-ema", action="store_true")
        verb.add_argument("--debug", action="store_true", help=f"{DEBUG_STEPS} steps per stage")
        verb.add_argument("--resume", action="store_true", help="accepted; the same command continues by itself")
    evaluate.add_argument("--checkpoint", required=True)
    evaluate.add_argument("--film-active", help="decoder stages that stay active, such as 2,3")
    evaluate.add_argument("--oracle", action="store_true")
    for flag in EVAL_FLAGS:
        evaluate.add_argument(f"--{flag.replace('_', '-')}")
    verbs.add_parser("inspect", help="`stageline checkpoint show`").add_argument("checkpoint")
    legacy = verbs.add_parser("import-legacy", help="`stageline checkpoint import`")
    legacy.add_argument("file")
    legacy.add_argument("out", help="name of the run that gets the checkpoint")
    legacy.add_argument("--config", required=True)
    legacy.add_argument("--film-stages", help="decoder stages, such as 0,1")
    return parser


def translate(arguments: Sequence[str]) -> list[str]:
    """The words after `stageline` that say the same."""
    given = make_parser().parse_args(arguments)
    if given.verb == "inspect":
        return ["checkpoint", "show", given.checkpoint]
    if given.verb == "import-legacy":
        chosen = [f"import.film_stages=[{given.film_stages}]"] if given.film_stages else []
        return ["checkpoint", "import", given.file, "--to", given.out, "-c", given.config, *chosen]
    source = ["--family", "film_flow", "--preset", given.profile] if given.profile else []
    source += ["-c", given.config] if given.config else []
    if given.verb == "eval":
        words = ["evaluate", *source, "--checkpoint", given.checkpoint, *overrides(given, EVAL_FLAGS)]
        words += [f"evaluate.film_active=[{given.film_active}]"] if given.film_active else []
        return words + (["evaluate.oracle=true"] if given.oracle else [])
    words = ["run" if given.verb == "train" else "plan", *source, *overrides(given, TRAIN_FLAGS)]
    if given.epochs and not given.debug:  # a length in steps, of the config or of a stage, would contradict it
        steps_of = ("trainer", "stage_overrides.backbone.trainer", "stage_overrides.film.trainer")
        words += [f"{place}.max_steps=null" for place in steps_of]
    if given.crop_size:
        words += [f"model.image_size={given.crop_size}", f"data.image_size={given.crop_size}"]
    if given.no_ema:
        words.append("trainer.use_ema=false")
    if given.debug:
        steps = f"{{trainer.max_steps: {DEBUG_STEPS}}}"
        words.append(f"stage_overrides={{backbone: {steps}, film: {steps}}}")
    return words


def overrides(given: argparse.Namespace, flags: dict[str, str]) -> list[str]:
    """`key=value` for every flag that was given."""
    return [f"{key}={getattr(given, flag)}" for flag, key in flags.items() if getattr(given, flag) is not None]


def main() -> None:
    """Say what the command means and become it."""
    words = translate(sys.argv[1:])
    print(f"$ stageline {shlex.join(words)}", file=sys.stderr, flush=True)
    os.execv(PROGRAM, [str(PROGRAM), *words])  # noqa: S606  # a list of words, no shell wanted


if __name__ == "__main__":
    main()
