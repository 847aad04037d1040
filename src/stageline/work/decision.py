"""One stage: run, reuse, continue or blocked, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from stageline import contract
from stageline.checkpoint.layout import CheckpointRef, StageDir, Survey
from stageline.checkpoint.metadata import CheckpointMetadata, is_continuable
from stageline.config import RunConfig
from stageline.contract import FamilyConfig
from stageline.data.prepared import Prepared
from stageline.errors import StagelineError, difference
from stageline.stage import Stage, num_steps, refuse_split, stage_config, stage_fingerprint, stage_settings
from stageline.store import Store
from stageline.work.data import stage_inputs
from stageline.work.parents import Parent, stage_parents
from stageline.work.record import Item


@dataclass(frozen=True)
class Inputs:
    """What a stage is decided from.

    data: the prepared data, None while they are still to be made.
    handed_on: selected stage before this one -> the checkpoint it hands on, None while it is still to be trained.
    blocked: stages before this one that cannot run.
    """

    root: Store
    data: Prepared | None
    handed_on: Mapping[str, CheckpointRef | None]
    blocked: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Decision:
    """The item of a stage, the checkpoint it hands on if that exists already, and the parents it starts from.

    fingerprint: what the stage's result depends on; empty while its inputs are still to be made.
    """

    item: Item
    ref: CheckpointRef | None = None
    parents: Mapping[str, Parent] = field(default_factory=dict)
    fingerprint: str = ""


def decide_stage(config: RunConfig, family: FamilyConfig, stage: Stage, inputs: Inputs) -> Decision:
    """Compare what the stage depends on with what its committed checkpoints were made from."""
    try:
        own = stage_config(config, stage)
        refuse_split(stage, own.trainer)
        family.check(own, stage)
        parents, faults = stage_parents(config, family, stage, inputs.handed_on)
        faults += _refusals(own, family, stage, parents)
        directory = StageDir(inputs.root, config.run, stage.name)
        found = directory.survey()
    except StagelineError as error:
        return Decision(_blocked(stage, [error]))
    if faults:
        return Decision(_blocked(stage, faults))
    for role, parent in parents.items():
        if parent.ref is None and parent.stage in inputs.blocked:
            return Decision(Item(stage.name, "stage", "blocked", (f"parent {role}: {parent.stage!r} is blocked",)))

    newest = found.refs[-1].metadata if found.refs else None
    data_facts = inputs.data.facts if inputs.data else {}
    steps = num_steps(own, stage, family.num_samples(own, stage, data_facts))
    item = Item(
        stage.name,
        "stage",
        "run",
        steps=steps,
        parents={role: str(p.ref.reference) if p.ref else "" for role, p in parents.items()},
        parameters=recorded_parameters(newest) if newest else None,
        seconds=expected_seconds(newest, steps, 0) if newest else None,
    )
    waiting = [f"parent {role}: stage {p.stage!r} will be trained" for role, p in parents.items() if p.ref is None]
    if inputs.data is None or waiting:
        data = [] if inputs.data else ["the data will be prepared anew"]
        changed = changed_fields(newest, own) if newest else ["never recorded"]
        return Decision(replace(item, reasons=(*changed, *data, *waiting)), parents=parents)
    contents = {role: p.ref.content for role, p in parents.items() if p.ref}
    try:
        digest = stage_inputs(own, family, stage, inputs.data)
    except StagelineError as error:
        return Decision(_blocked(stage, [error]))
    wanted = stage_fingerprint(own, stage, digest, contents)
    last = found.to_continue(wanted)
    if last is not None or found.is_finished(wanted):
        return replace(_take_up(item, stage, directory, found, wanted, parents), fingerprint=wanted)
    if newest is None:
        return Decision(replace(item, reasons=("never recorded",)), parents=parents, fingerprint=wanted)
    reasons = changed_fields(newest, own) + changed_inputs(newest, digest, parents)
    if not is_continuable(newest):
        schema = f"schema {newest.schema_version}: what an earlier version saved is neither continued nor reused"
        reasons = [schema, *reasons]
    if not reasons:
        version = newest.stageline_version or "another version"
        reasons = [f"stage fingerprint: {newest.stage_fingerprint[:12]} (stageline {version}) -> {wanted[:12]}"]
    return Decision(replace(item, reasons=tuple(reasons)), parents=parents, fingerprint=wanted)


def _take_up(
    item: Item, stage: Stage, directory: StageDir, found: Survey, wanted: str, parents: Mapping[str, Parent]
) -> Decision:
    """Reuse or continue checkpoints that were made from the same settings, data and parents."""
    last = found.to_continue(wanted)
    if found.is_finished(wanted):
        try:
            ref = directory.handed_on(stage.parent_checkpoint, wanted, found)
        except StagelineError as error:
            return Decision(_blocked(stage, [error]))
        assert ref is not None
        step = max(ref.metadata.step, 0 if last is None else last.metadata.step)
        why = f"finished at step {step} with equal settings, data and parents"
        return Decision(
            replace(item, action="reuse", reasons=(why,), reference=str(ref.reference), seconds=0.0), ref, parents
        )
    assert last is not None
    step = last.metadata.step
    why = f"stopped at step {step} of {last.metadata.steps}; settings, data and parents are equal"
    seconds = expected_seconds(last.metadata, item.steps, step)
    reference = str(last.reference)
    return Decision(
        replace(item, action="continue", reasons=(why,), from_step=step, reference=reference, seconds=seconds),
        parents=parents,
    )


def _refusals(
    own: RunConfig, family: FamilyConfig, stage: Stage, parents: Mapping[str, Parent]
) -> list[StagelineError]:
    """What the family itself refuses about its parents, before anything runs."""
    faults = []
    for parent in parents.values():
        try:
            family.inherit(contract.Parent(parent.role, parent.stage, parent.facts), own, stage)
        except StagelineError as error:
            faults.append(error)
    return faults


def _blocked(stage: Stage, faults: list[StagelineError]) -> Item:
    sentences = tuple(f"{f.code}: {f.message}" if f.code else f.message for f in faults)
    return Item(stage.name, "stage", "blocked", sentences, tuple(f.remedy for f in faults if f.remedy))


def changed_fields(newest: CheckpointMetadata, own: RunConfig) -> list[str]:
    """The settings in which the newest committed checkpoint differs, `key: old -> new`."""
    return difference(newest.settings, stage_settings(own))


def changed_inputs(newest: CheckpointMetadata, data: str, parents: Mapping[str, Parent]) -> list[str]:
    """The digests of data and parents in which the newest committed checkpoint differs."""
    lines = []
    if newest.data_digest != data:
        lines.append(f"data: {newest.data_digest[:12]} -> {data[:12]}")
    for role in sorted({*newest.parents, *parents}):
        old = newest.parents[role].content[:12] if role in newest.parents else "from scratch"
        parent = parents.get(role)
        new = parent.ref.content[:12] if parent and parent.ref else "from scratch"
        if old != new:
            lines.append(f"parent {role}: {old} -> {new}")
    return lines


def recorded_parameters(metadata: CheckpointMetadata) -> dict[str, int] | None:
    """Tensor elements an earlier run recorded, trained and in all."""
    trained = sum(group.parameters for group in metadata.trained.values())
    frozen = sum(group.parameters for group in metadata.frozen.values())
    return {"trained": trained, "total": trained + frozen} if trained + frozen else None


def expected_seconds(metadata: CheckpointMetadata, steps: int | None, from_step: int) -> float | None:
    """Seconds for the steps still to do, at the pace an earlier run recorded."""
    pace = metadata.timing.get("step_seconds")
    if steps is None or pace is None:
        return None
    return max(steps - from_step, 0) * pace
