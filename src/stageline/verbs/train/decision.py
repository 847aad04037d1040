"""What there is to do for a stage: reuse a finished checkpoint, continue a stopped one, or start from the parents.

Loads no torch. Compares content and config, never times; a plan makes the same comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stageline.checkpoint.layout import CheckpointRef, StageDir, resolve
from stageline.config import RunConfig
from stageline.contract import FamilyConfig
from stageline.data.prepared import read_prepared
from stageline.errors import DataError, PlanError, StoreError
from stageline.stage import FROM_SCRATCH, Stage, stage_fingerprint
from stageline.store import Reference, open_store
from stageline.work.data import stage_inputs

Action = Literal["run", "reuse", "continue"]


@dataclass(frozen=True)
class Work:
    """One stage of one run, with everything its result depends on.

    config: as the stage sees it.  fingerprint: of settings, data and the parents' content.
    """

    config: RunConfig
    family: FamilyConfig
    stage: Stage
    data_digest: str
    parents: Mapping[str, CheckpointRef]
    fingerprint: str
    stage_dir: StageDir


@dataclass(frozen=True)
class Decision:
    """ref: the finished checkpoint to reuse or the one to continue; None for a start."""

    action: Action
    ref: CheckpointRef | None = None


def describe_work(
    config: RunConfig, family: FamilyConfig, stage: Stage, *, data: str, parents: Mapping[str, str] | None
) -> Work:
    """Find the parents and the fingerprint of a stage.

    config: the stage's own.  data: reference of the prepared data.  parents: role -> checkpoint; None takes those the
    config names, or else what this run's own stages have committed.
    """
    root = open_store(config.root)
    if root.in_process and config.trainer.world_size > 1:
        raise StoreError(f"{config.root!r} lives in one process, the stage has several", remedy="use a path or s3://")
    try:
        reference = Reference.parse(data)
    except StoreError as error:
        raise DataError(
            f"{data!r} names no prepared data", remedy="give what `stageline prepare` printed: <uri>@sha256:<digest>"
        ) from error
    digest = stage_inputs(config, family, stage, read_prepared(reference))
    found = _find_parents(config, family, stage, parents)
    contents = {role: ref.content for role, ref in found.items()}
    return Work(
        config=config,
        family=family,
        stage=stage,
        data_digest=digest,
        parents=found,
        fingerprint=stage_fingerprint(config, stage, digest, contents),
        stage_dir=StageDir(root, config.run, stage.name),
    )


def _find_parents(
    config: RunConfig, family: FamilyConfig, stage: Stage, given: Mapping[str, str] | None
) -> dict[str, CheckpointRef]:
    strangers = sorted(set(given or {}) - set(stage.parents))
    if strangers:
        known = ", ".join(stage.parents) or "none"
        raise PlanError(f"stage {stage.name!r} has no parent {strangers[0]!r}; roles: {known}")
    found: dict[str, CheckpointRef] = {}
    for role, source in stage.parents.items():
        own = StageDir(config.root, config.run, source)
        if given is not None:
            name = given.get(role, "")
        else:
            name = config.parents.get(stage.name, {}).get(role, "")
            if not name and own.newest() is not None:
                name = own.uri
        if name == FROM_SCRATCH:
            name = ""
        if not name:
            if role not in stage.optional_parents:
                raise PlanError(
                    f"stage {stage.name!r} needs a checkpoint of {source!r} (role {role!r}) and has none",
                    remedy=f"train {source} first, or set parents.{stage.name}.{role}=<checkpoint>",
                )
            continue
        if "://" not in name and not name.startswith("/"):
            name = f"{config.root.rstrip('/')}/{name}"
        found[role] = resolve(name, prefer=family.stages[source].parent_checkpoint)
    return found


def decide(work: Work) -> Decision:
    """Look at the stage directory: what of it was made from exactly this, and is whole.

    CheckpointError where the stage is finished and what it hands on is damaged.
    """
    found = work.stage_dir.survey()
    if found.is_finished(work.fingerprint):
        return Decision("reuse", hand_on(work))
    ref = found.to_continue(work.fingerprint)
    return Decision("run") if ref is None else Decision("continue", ref)


def hand_on(work: Work) -> CheckpointRef:
    """The checkpoint a finished stage hands on: its best or last, as the stage declares."""
    ref = work.stage_dir.handed_on(work.stage.parent_checkpoint, work.fingerprint)
    assert ref is not None, "a finished stage has committed something"
    return ref
