"""What the guide's own scripts need: its words for stages, what `--resume` means, its files beside ours. No torch.

`runs/<run>_stage_state.json` and `results/eval_results/…` are written for people who follow the guide; nothing of ours
reads them, so they may be deleted at any time.
"""

from __future__ import annotations

import datetime
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from stageline.checkpoint.layout import resolve
from stageline.checkpoint.metadata import ParentRecord
from stageline.errors import CheckpointError, ConfigError, StagelineError
from stageline.families import load_config
from stageline.families.panorama_vlm.config import PanoramaVlmConfig
from stageline.families.panorama_vlm.config.spellings import ALIASES
from stageline.families.panorama_vlm.config.stages import STAGES
from stageline.families.panorama_vlm.data.made import write_made
from stageline.store import Reference

SIBLING = "__ov000"
"""Suffix of runs without overlap, which the guide does not know."""
DEMO_COUNTS = {"train": 16, "val": 2, "test": 2}
"""Rooms of the demo data, four questions each; a step of stage vision takes 8."""


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
    first = STAGES[own.stages[0]] if own.stages else next(iter(STAGES))
    path = path.rstrip("/")
    if (Path(path) / "run.json").is_file():  # of a run: what the first stage starts from, or that stage itself
        source = first.parents.get("default")
        path += f"/{source if source and (Path(path) / source).is_dir() else first.name}"
    try:
        found = resolve(path)
    except CheckpointError as error:
        hint = _sibling(path)
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
            remedy="ask for a later stage with --stage, or start from its weights with --resume-mode weights",
        )
    if not weights_only and stage == first.name:
        if found.metadata.run != own.run:
            raise ConfigError(
                f"{path} is of stage {stage!r} of run {found.metadata.run!r}, and this config is run {own.run!r}",
                remedy="use that run's config to go on with it, or --resume-mode weights to start from its weights",
            )
        starts = found.metadata.parents.get("default")  # the run goes on from what it started from
        if starts is None or starts.uri.startswith(f"runs/{own.run}/"):
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
    hint = _sibling(path)
    if hint is None:
        raise ConfigError(f"there is no config {path}", remedy="name a YAML file")
    raise ConfigError(
        f"there is no config {path}; the one without overlap is another run: {hint}",
        remedy=f"say --config {hint} if that is the one you mean",
    )


def is_vision_alone(config: str, words: Sequence[str]) -> bool:
    """Whether no stage is asked for whose checkpoint answers questions, so that there is nothing to evaluate."""
    own = load_config(config, words)
    return own.stages is not None and list(own.stages) == ["vision"]


def told(command: Callable[[], int]) -> int:
    """Run a script's command; our own errors become a sentence, a remedy and their exit code, as in `stageline`."""
    try:
        return command()
    except StagelineError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def _sibling(path: str) -> str | None:
    """The same path in the run without overlap, where that exists."""
    parts = Path(path).parts
    for place, part in enumerate(parts):
        if part == "runs" and place + 1 < len(parts):
            other = Path(*parts[: place + 1], parts[place + 1] + SIBLING, *parts[place + 2 :])
            return str(other) if other.exists() else None
    return None


def root_beside(folder: Path) -> list[str]:
    """The root of a run, for a config that lies in one of its stage directories; nothing for any other config."""
    for parent in folder.parents:
        if (parent / "run.json").is_file() and parent.parent.name == "runs":
            return [f"root={parent.parent.parent}"]
    return []


def results_dir(config: str, words: Sequence[str]) -> str:
    """Where a config has finished evaluations copied to."""
    own = load_config(config, words)
    assert isinstance(own, PanoramaVlmConfig)
    return own.evaluate.results_dir


def copy_evaluation(reference: str, results: str | Path = "results/eval_results") -> Path:
    """Copy a finished evaluation to `<results>/<run>/predictions_<time>/`; returns that folder."""
    source = Path(Reference.parse(reference).uri.removeprefix("file://"))
    plain = json.loads((source / "metrics.json").read_bytes())
    stamp = datetime.datetime.now().astimezone().strftime("predictions_%Y%m%d_%H%M%S")  # local time, as the guide says
    folder = Path(results) / str(plain["checkpoint"]["run"])
    target, number = folder / stamp, 1
    while target.exists():
        number += 1
        target = folder / f"{stamp}_{number}"
    unfinished = target.with_name(f".{target.name}.unfinished")
    unfinished.mkdir(parents=True)
    for name in ("metrics.json", "predictions.csv"):
        shutil.copyfile(source / name, unfinished / name)
    unfinished.rename(target)
    return target


def write_stage_state(config: str, words: Sequence[str]) -> Path:
    """Write `runs/<run>_stage_state.json`: what became of each stage, read from the run itself."""
    own = load_config(config, words)
    runs = Path(own.root.removeprefix("file://")) / "runs"
    stages: dict[str, dict[str, object]] = {}
    reused: dict[str, ParentRecord] = {}
    for stage in STAGES:
        found = sorted((runs / own.run / stage.name).glob("*/best.ckpt"))
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
    path = runs / f"{own.run}_stage_state.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"run_name": own.run, "stages": stages}, indent=1) + "\n")
    return path


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
