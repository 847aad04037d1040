"""The checkpoints a stage starts from: given by the config, or handed on by another stage of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stageline.checkpoint.layout import CheckpointRef, resolve
from stageline.config import RunConfig
from stageline.contract import FamilyConfig
from stageline.errors import PlanError, StagelineError
from stageline.stage import FROM_SCRATCH, Stage, stage_config


@dataclass(frozen=True)
class Parent:
    """One parent of a stage. ref is None where the parent is still to be trained; facts are then those it will have."""

    role: str
    stage: str
    ref: CheckpointRef | None
    facts: Mapping[str, Any]


def locate(config: RunConfig, name: str) -> str:
    """A checkpoint named in the config as a URI: a relative path lies below `root`."""
    if "://" in name or name.startswith("/"):
        return name
    return f"{config.root.rstrip('/')}/{name}"


def given_parent(config: RunConfig, family: FamilyConfig, stage: Stage, role: str, name: str) -> Parent:
    """The parent that config or pipeline names. PlanError for the wrong family or stage, CheckpointError for none."""
    source = family.stages[stage.parents[role]]
    ref = resolve(locate(config, name), prefer=source.parent_checkpoint)
    metadata = ref.metadata
    if metadata.family != family.name:
        raise PlanError(
            f"parent {role!r} of stage {stage.name!r} is of family {metadata.family!r}, expected {family.name!r}: "
            f"{ref.uri}",
            remedy=f"give parents.{stage.name}.{role} a checkpoint of {family.name}",
        )
    accepted = stage.accepted(role)
    if metadata.stage not in accepted:
        named = " or ".join(repr(name) for name in accepted)
        raise PlanError(
            f"parent {role!r} of stage {stage.name!r} is a checkpoint of stage {metadata.stage!r}, "
            f"expected {named}: {ref.uri}",
            remedy=f"give parents.{stage.name}.{role} a checkpoint of stage {' or '.join(accepted)}",
        )
    return Parent(role, metadata.stage, ref, metadata.facts)


def stage_parents(
    config: RunConfig, family: FamilyConfig, stage: Stage, handed_on: Mapping[str, CheckpointRef | None]
) -> tuple[dict[str, Parent], list[StagelineError]]:
    """Every parent by role, and what is wrong with those that cannot be had.

    handed_on: selected stage -> the checkpoint it hands on, None while it is still to be trained. What the config names
    comes before what the run hands on; an optional role without either starts from scratch.
    """
    parents: dict[str, Parent] = {}
    faults: list[StagelineError] = []
    for role, source in stage.parents.items():
        name = config.parents.get(stage.name, {}).get(role)
        try:
            if name == FROM_SCRATCH:
                continue
            if name:
                parents[role] = given_parent(config, family, stage, role, name)
            elif source in handed_on:
                ref = handed_on[source]
                own = family.stages[source]
                facts = ref.metadata.facts if ref else family.facts(stage_config(config, own), own)
                parents[role] = Parent(role, source, ref, facts)
        except StagelineError as error:
            faults.append(error)
    return parents, faults
