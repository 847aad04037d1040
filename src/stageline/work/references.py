"""The decision about one stage as a pipeline's step sees it: the plan's own, with parents handed on by reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stageline.checkpoint.layout import CheckpointRef, StageDir
from stageline.checkpoint.verify import verify
from stageline.config import RunConfig
from stageline.data.prepared import read_prepared
from stageline.errors import CheckpointError, Faults, PlanError
from stageline.families import family_config, parse_config
from stageline.stage import stage_config
from stageline.store import Reference, open_store
from stageline.work.decision import Inputs, decide_stage
from stageline.work.record import Item


@dataclass(frozen=True)
class StageDecision:
    """config: the stage's own.  roles: of its parents.  item: as in a plan.  ref: what it hands on, if finished.

    fingerprint: what its result depends on.
    """

    config: RunConfig
    roles: tuple[str, ...]
    item: Item
    ref: CheckpointRef | None
    fingerprint: str


def parse_parents(words: str) -> dict[str, str]:
    """`role=reference role=` -> {role: reference}; an empty reference is none."""
    pairs = [word.partition("=") for word in words.split()]
    return {role: reference for role, _, reference in pairs if reference}


def decide(raw: Mapping[str, Any], stage: str, data: str, parents: str) -> StageDecision:
    """Decide a stage from references. What the config itself names as a parent comes first."""
    config = parse_config(raw)
    family = family_config(config.family)
    own = family.stages[stage]
    given = {**parse_parents(parents), **config.parents.get(stage, {})}
    named = config.model_copy(update={"parents": {**config.parents, stage: given}}) if given else config
    prepared = read_prepared(Reference.parse(data))
    decision = decide_stage(named, family, own, Inputs(open_store(config.root), prepared, {}))
    return StageDecision(
        stage_config(config, own), tuple(own.parents), decision.item, decision.ref, decision.fingerprint
    )


def refuse_damaged(ref: CheckpointRef) -> None:
    """CheckpointError where a finished checkpoint is no longer what was committed; reads every byte."""
    faults = Faults(
        CheckpointError, f"checkpoint {ref.uri}", "delete that directory to train the stage again, or restore its files"
    )
    faults.extend(verify(ref))
    faults.raise_if_any()


def refuse_blocked(item: Item) -> None:
    """PlanError where a stage cannot run, with every reason."""
    if item.action == "blocked":
        raise PlanError(f"stage {item.name!r} is blocked: {'; '.join(item.reasons)}", remedy=" ".join(item.remedies))


def committed_step(directory: StageDir, fingerprint: str) -> int:
    """The newest step that was committed of this very work, -1 for none."""
    own = [ref.metadata.step for ref in directory.committed() if ref.metadata.stage_fingerprint == fingerprint]
    return max(own, default=-1)
