"""What a comparison tells of both checkpoints beside metrics: what they are, and what they took to make. No torch.

The family's own words come from its `compared`; time and memory of training from the metadata of the checkpoint and of
all it descends from. What can no longer be found is said, and compared metrics stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stageline.checkpoint.layout import CHECKPOINTS, CheckpointRef, StageDir, resolve
from stageline.checkpoint.lineage import lineage, own_config
from stageline.contract import Words
from stageline.errors import StagelineError
from stageline.families import family_config, parse_config
from stageline.store import open_below
from stageline.verbs.compare.sides import Side

RUNS = "/runs/"
TRAINING = {
    "run": "run",
    "steps": "steps",
    "seconds": "seconds",
    "step_seconds": "seconds per step",
    "peak_memory_bytes": "bytes of memory at most",
}
"""What is told of a stage -> caption."""


def about(side: Side) -> dict[str, Any]:
    """What is known of one side.

    about: what the family tells.  training: stage -> run, steps, seconds, step_seconds, peak_memory_bytes, of the
    checkpoint and all it descends from.  unknown: why some of it cannot be told, a sentence each.
    """
    told: dict[str, Any] = {"about": {}, "training": {}, "unknown": []}
    try:
        ref = checkpoint_of(side)
        for entry in lineage(ref):
            if entry["status"] == "present":
                told["training"].setdefault(entry["stage"], training_of(resolve(entry["uri"])))
            else:
                told["unknown"].append(f"training of stage {entry['stage']}: {entry['uri']} is {entry['status']}")
        family = family_config(side.record.family)
        config = parse_config(own_config(ref), where=f"config of {ref.uri}")
        stage = family.stages[ref.metadata.stage]
        told["about"] = dict(family.compared(config, stage, side.record.measured(side.name)))
    except StagelineError as error:
        told["unknown"].append(error.message)
    return told


def checkpoint_of(side: Side) -> CheckpointRef:
    """The checkpoint that was evaluated: below the evaluation's own root, which may be a copy, or where it was."""
    uri, digest = str(side.checkpoint.get("uri")), side.checkpoint.get("digest")
    root, tail = side.run.uri.rpartition(RUNS)[0], uri.rpartition(RUNS)[2]
    own = f"{root}{RUNS}{tail}"
    try:
        return resolve(f"{own}@sha256:{digest}")
    except StagelineError:
        if own == uri:
            raise
        return resolve(f"{uri}@sha256:{digest}")


def training_of(ref: CheckpointRef) -> dict[str, Any]:
    """What the stage of a checkpoint took, as its last save says: what is handed on may be an earlier one."""
    place, mark, _ = ref.uri.rpartition(f"/{CHECKPOINTS}/")
    same = StageDir.at(open_below(place)).survey().of(ref.metadata.stage_fingerprint) if mark else ()
    last = max((ref, *same), key=lambda found: found.metadata.step).metadata
    timing = {key: last.timing.get(key) for key in ("seconds", "step_seconds")}
    return {"run": last.run, "steps": last.step, **timing, "peak_memory_bytes": last.peak_memory_bytes or None}


def ratios(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, float]:
    """B / A of every number that both sides have. a, b: as `about` gives them."""
    return {name: y / x for name, (x, y) in values_of(a, b).items() if is_number(x) and is_number(y) and x}


def values_of(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Word -> values of both sides, None for none: the family's own, then `<stage>.<what>` of training."""
    one, other = flat(a), flat(b)
    return {name: (one.get(name), other.get(name)) for name in {**one, **other}}


def flat(side: Mapping[str, Any]) -> dict[str, Any]:
    """One side, word -> value."""
    training = {
        f"{stage}.{what}": value for stage, found in side.get("training", {}).items() for what, value in found.items()
    }
    return {**side.get("about", {}), **training}


def caption(name: str, words: Words) -> str:
    """A word of `values_of` for people. words: the family's."""
    stage, _, what = name.rpartition(".")
    return f"stage {stage}: {TRAINING[what]}" if stage and what in TRAINING else words.compared.get(name, name)


def is_number(value: Any) -> bool:
    """Whether a ratio of it means something."""
    return isinstance(value, int | float) and not isinstance(value, bool)
