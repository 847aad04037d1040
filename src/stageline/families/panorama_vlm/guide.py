"""What the guide's own scripts need: its words for stages, what `--resume` means, its files beside ours. No torch.

`runs/<run>_stage_state.json` is written for people who follow the guide; nothing of ours reads it, so it may be deleted
at any time.
"""

from __future__ import annotations

import json
import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from stageline.checkpoint.layout import resolve
from stageline.checkpoint.metadata import ParentRecord
from stageline.config import RunConfig
from stageline.errors import CheckpointError, ConfigError, StagelineError
from stageline.families import load_config
from stageline.families.panorama_vlm.config import FAMILY_CONFIG, PanoramaVlmConfig
from stageline.families.panorama_vlm.config.spellings import ALIASES
from stageline.families.panorama_vlm.config.stages import STAGES
from stageline.families.panorama_vlm.data.made import write_made
from stageline.printing import say
from stageline.signals import CaughtSignals
from stageline.store import open_store

BEST = "best.ckpt"
SIBLING = "__ov000"
"""Suffix of runs without overlap, which the guide does not know."""
DEMO_COUNTS = {"train": 16, "val": 2, "test": 2}
"""Rooms of the demo data, four questions each; a step of stage vision takes 8."""


REFUSED_OPTIONS = {
    "--restart": "a finished stage is trained anew where its settings change; for another draw of the same ones say "
    "seed=<number> and run=<new name>",
    "--overwrite": "nothing finished is overwritten; start a new run with run=<new name>, or free what older settings "
    "left with `stageline checkpoint prune --superseded`",
    "--accept-state": "a stage that was trained with other settings is taken where it is named: "
    "parents.<next stage>.default=runs/<run>/<stage>",
}
"""Options that others who train in stages have, and what does their work here."""


def refuse_option(name: str, value: str | None) -> None:
    """ConfigError for an option of `REFUSED_OPTIONS` that was given. value: None where it was not."""
    if value is not None:
        raise ConfigError(f"{name} is known and refused", remedy=REFUSED_OPTIONS[name])


def stages_of(text: str) -> list[str]:
    """Names of stages from `resampler,finetune`, `2,3` or the guide's own words. ConfigError for one that is none."""
    names = STAGES.names
    found = []
    for part in (part.strip() for part in text.split(",")):
        if part.isdigit():
            if not 1 <= int(part) <= len(names):
                raise ConfigError(
                    f"--stage {text}: there is no stage {part}", remedy=f"1 to {len(names)}: {', '.join(names)}"
                )
            found.append(names[int(part) - 1])
        else:
            found.append(STAGES[ALIASES.get(part, part)].name)
    return found


def resume_overrides(config: str, words: Sequence[str], path: str, *, weights_only: bool) -> list[str]:
    """The settings that `--resume PATH` stands for.

    config: the config file.  words: overrides that come with it.  path: a checkpoint.
    weights_only: take its weights and start the first stage anew, whatever stage it is of.

    A checkpoint of an earlier stage is the parent of the first stage that is asked for; one of the same stage of this
    run is where the run goes on anyway. ConfigError for one of a later stage without `weights_only`, CheckpointError
    for one that is absent.
    """
    own = load_config(config, words)
    first = FAMILY_CONFIG.selected(own)[0]
    path = path.rstrip("/")
    if (Path(path) / "run.json").is_file():  # of a run: what the first stage starts from, or that stage itself
        source = first.parents.get("default")
        path += f"/{source if source and (Path(path) / source).is_dir() else first.name}"
    try:
        found = resolve(path)
    except CheckpointError as error:
        hint = find_sibling(path)
        if hint is None:
            raise
        raise CheckpointError(
            f"there is no checkpoint at {path}; the one without overlap is another run: {hint}",
            remedy=f"say --resume {hint} if that is the one you mean",
        ) from error
    order = list(STAGES.names)
    stage = found.metadata.stage
    if not weights_only and order.index(stage) > order.index(first.name):
        raise ConfigError(
            f"{path} is of stage {stage!r}, which comes after {first.name!r}, the first stage that is asked for",
            remedy="ask for later stages with --stage"
            + (", or start from its weights with --resume-mode weights" if first.parents else " resampler,finetune"),
        )
    if not weights_only and stage == first.name:
        if found.metadata.run != own.run:
            raise ConfigError(
                f"{path} is of stage {stage!r} of run {found.metadata.run!r}, and this config is run {own.run!r}",
                remedy="use that run's config to go on with it, or --resume-mode weights to start from its weights",
            )
        starts = found.metadata.parents.get("default")  # the run goes on from what it started from
        if starts is None or _is_of_run(starts.uri, own.run):
            return []
        return [f"parents.{first.name}.default={starts.uri}"]
    if not first.parents:
        raise ConfigError(
            f"stage {first.name!r} starts from no checkpoint, and {path} was given as one",
            remedy="leave --resume out, or ask for later stages: --stage resampler,finetune",
        )
    return [f"parents.{first.name}.default={path}"]


def check_config(path: str) -> None:
    """ConfigError for a config that is not there; it names the path in the run without overlap where that exists."""
    if Path(path).is_file():
        return
    hint = find_sibling(path)
    if hint is None:
        raise ConfigError(f"there is no config {path}", remedy="name a YAML file")
    raise ConfigError(
        f"there is no config {path}; the one without overlap is another run: {hint}",
        remedy=f"say --config {hint} if that is the one you mean",
    )


def refuse_dropped_parent(config: str, words: Sequence[str]) -> None:
    """ConfigError where the first stage has a checkpoint that started from another run's, and nobody names that now.

    It would be trained anew without that parent, under the same name.
    """
    own = load_config(config, words)
    first = FAMILY_CONFIG.selected(own)[0]
    if not first.parents or own.parents.get(first.name, {}).get("default"):
        return
    for pointer in _best_of(own, first.name):
        parent = resolve(str(pointer)).metadata.parents.get("default")
        if parent is not None and not _is_of_run(parent.uri, own.run):
            raise ConfigError(
                f"stage {first.name!r} of run {own.run!r} started from {parent.uri}; without --resume it would be "
                "trained anew, from scratch",
                remedy=f"say --resume {parent.uri}, or parents.{first.name}.default=none for a start from scratch",
            )


def _best_of(own: RunConfig, stage: str) -> list[Path]:
    """The pointers `best.ckpt` of a stage's variants."""
    store = open_store(own.root).child("runs", own.run, stage)
    place = Path(own.root.removeprefix("file://")) / "runs" / own.run / stage
    return [place / name / BEST for name in store.folders() if store.exists(f"{name}/{BEST}")]


def _is_of_run(uri: str, run: str) -> bool:
    """Whether a parent's address, relative to the root or not, lies in a run."""
    return f"runs/{run}/" in uri


def copies_results(config: str, words: Sequence[str]) -> bool:
    """Whether the evaluation at a run's end is copied to the guide's results (`training.auto_eval.enabled`)."""
    own = load_config(config, words)
    assert isinstance(own, PanoramaVlmConfig)
    return own.evaluate.auto and not FAMILY_CONFIG.selected(own)[-1].not_evaluated


def run_stageline(words: Sequence[str], *, output: IO[str] | None = None, log: list[str] | None = None) -> int:
    """Say which `stageline` command this is, run it and wait; returns its exit code.

    output: where its standard output goes; None leaves it to the terminal.  log: gets every line it tells on standard
    error, which is shown all the same.

    A request to stop is the command's: it finishes what it is at, and this process waits for it.
    """
    say(f"$ stageline {shlex.join(words)}", error=True)
    program = Path(sys.executable).with_name("stageline")
    errors = None if log is None else subprocess.PIPE
    with subprocess.Popen([str(program), *words], stdout=output, stderr=errors, text=True) as process:

        def pass_on(number: int) -> None:
            if number != signal.SIGINT:  # a terminal sends that one to both of us
                process.send_signal(number)

        with CaughtSignals(pass_on):
            for line in process.stderr or ():
                say(line.rstrip("\n"), error=True)
                assert log is not None
                log.append(line)
            return process.wait()


def told(command: Callable[[], int]) -> int:
    """Run a script's command; our own errors become a sentence, a remedy and their exit code, as in `stageline`.

    Notes about the config are left to the `stageline` command that the script runs.
    """
    logging.getLogger("stageline.config").setLevel(logging.ERROR)
    try:
        return command()
    except StagelineError as error:
        say(*f"error: {error}".split("\n"), error=True)
        return error.exit_code


def find_sibling(path: str) -> str | None:
    """The same path in the run without overlap, where that exists."""
    parts = Path(path).parts
    for place, part in enumerate(parts):
        if part == "runs" and place + 1 < len(parts):
            other = Path(*parts[: place + 1], parts[place + 1] + SIBLING, *parts[place + 2 :])
            return str(other) if other.exists() else None
    return None


def write_stage_state(config: str, words: Sequence[str]) -> Path:
    """Write `runs/<run>_stage_state.json`: what became of each stage, read from the run itself."""
    own = load_config(config, words)
    stages: dict[str, dict[str, object]] = {}
    reused: dict[str, ParentRecord] = {}
    for stage in STAGES:
        found = _best_of(own, stage.name)
        if not found:
            stages[stage.name] = {"status": "pending"}
            continue
        ref = resolve(str(found[0]))
        stages[stage.name] = {
            "status": "completed" if ref.metadata.final else "interrupted",
            "stage_fingerprint": ref.metadata.stage_fingerprint,
            "best_ckpt": str(found[0]),
            "best_sha256": ref.digest,
        }
        reused |= {parent.stage: parent for parent in ref.metadata.parents.values()}
    for name, parent in reused.items():
        if stages[name]["status"] == "pending":
            stages[name] = {"status": "reused", "best_ckpt": parent.uri, "best_sha256": parent.digest}
    name = f"{own.run}_stage_state.json"
    text = json.dumps({"run_name": own.run, "stages": stages}, indent=1) + "\n"
    open_store(own.root).put(f"runs/{name}", text.encode())
    return Path(own.root.removeprefix("file://")) / "runs" / name


def demo_data(folder: Path) -> list[str]:
    """Made panoramas where the guide has QuIC-360, and its configs under the profile `tiny`; names of what was written.

    folder: a laid-out guide.
    """
    names = []
    for config in sorted((folder / "configs").glob("*.yaml")):
        text = config.read_text(encoding="utf-8")
        head, models, rest = text.partition("\nmodels:")
        tiny = "profile: tiny # made weights and a few steps; take this line out for the models below"
        text = f"{head}\n{tiny}\n{models}{rest}"
        config.write_text(text.replace("num_workers: 4", "num_workers: 0"), encoding="utf-8")
        names.append(config.relative_to(folder).as_posix())
    before = {path for path in folder.rglob("*") if path.is_file()}
    write_made(folder / "data" / "quic360", counts=DEMO_COUNTS)
    written = {path for path in folder.rglob("*") if path.is_file()} - before
    return [*names, *sorted(path.relative_to(folder).as_posix() for path in written)]
