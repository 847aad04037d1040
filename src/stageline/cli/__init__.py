"""The command line. `--help` loads typer only: every command imports what it needs when it runs.

configuration   -c FILE | --family --preset, and trailing key=value
tables          plans, runs and metrics for a terminal
training        init plan prepare train evaluate predict schema
running         run compare report pipeline
runs            runs
live            what a pipeline shows while it runs
submitting      pipeline submit
checkpoints     checkpoint show verify lineage import export prune
jobs            job render submit logs cancel list
checking        doctor
trying          trial
guiding         guide
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

from stageline.errors import EXIT_CTRL_C, EXIT_FAULT, EXIT_INTERRUPTED, MissingPartError, StagelineError
from stageline.printing import json_text, say, say_block

OPTIONAL_PARTS = {
    "torch": "train",
    "lightning_fabric": "train",
    "safetensors": "train",
    "scipy": "train",
    "skimage": "train",
    "torchdiffeq": "train",
    "trimesh": "train",
    "tensorboard": "train",
    "kfp": "pipelines",
    "kubernetes": "cluster",
    "stageline_components": "pipelines",
    "stageline_pipelines": "pipelines",
    "transformers": "vlm",
}
"""Module -> the extra that brings it."""

app = typer.Typer(
    name="stageline",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Say what this copy was built from, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version: as JSON.")] = False,
) -> None:
    """Train models that are trained in stages, with every seam between them checked."""
    if version:
        from stageline.build import find_build

        build = find_build()
        say_block(json_text(build.to_json()) if as_json else build.to_text())
        raise typer.Exit
    if as_json:
        raise typer.BadParameter("it belongs to --version, or behind a command that has it", param_hint="--json")
    if context.invoked_subcommand is None:  # no_args_is_help has seen to the empty line
        raise typer.BadParameter("a command is missing; see --help")


for _module in ("training", "running", "checkpoints", "jobs", "checking", "trying", "guiding"):
    importlib.import_module(f"stageline.cli.{_module}").register(app)


@cache
def _command() -> Callable[..., object]:
    """All commands, read from their signatures once in a process."""
    return get_command(app)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code. Our own errors become a sentence, a remedy and their code."""
    try:
        _command()(arguments, standalone_mode=True)
    except SystemExit as end:
        if end.code == EXIT_CTRL_C:  # typer's own code for it, without a word
            say("stopped by Ctrl-C", error=True)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except StagelineError as error:
        return _tell(error)
    except ModuleNotFoundError as error:
        part = OPTIONAL_PARTS.get(str(error.name).partition(".")[0])
        if part is None:
            _leave_record(error)
            raise
        missing = MissingPartError(
            f"{error.name} is not installed, and this command needs it",
            remedy=f"pip install 'stageline[{part}]'",
        )
        return _tell(missing)
    except KeyboardInterrupt:
        say("stopped by Ctrl-C", error=True)
        return EXIT_CTRL_C
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # nobody reads any more
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001  # a fault of ours: told as Python tells it, made visible
        _leave_record(error)
        say_block(traceback.format_exc().rstrip("\n"), error=True)
        return EXIT_FAULT
    return 0


def _tell(error: StagelineError) -> int:
    from stageline.telemetry import redact

    first, *rest = str(redact(str(error))).split("\n")
    say(f"error: {first}", *rest, *(f"  {note}" for note in getattr(error, "__notes__", ())), error=True)
    _leave_record(error)
    return error.exit_code


def _leave_record(error: BaseException) -> None:
    """For the process that started this one, unless this rank has left its record already."""
    from stageline.telemetry import FAILURE_DIR_VARIABLE, failure_name, write_failure

    folder = os.environ.get(FAILURE_DIR_VARIABLE)
    if not folder:
        return
    rank = int(os.environ.get("RANK", "0"))
    if not (Path(folder) / failure_name(rank)).exists():
        write_failure(Path(folder), error, rank=rank)
