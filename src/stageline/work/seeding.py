"""Whether the parents of a stage may feed it, told from their metadata alone: stages, facts, sections, and roles that
look exchanged. Loads no torch and builds no model.

What only a model can tell (shapes, tensors that no parent has) is checked when the weights are loaded.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

from stageline import contract
from stageline.checkpoint.admission import fact_faults
from stageline.checkpoint.layout import CheckpointRef
from stageline.checkpoint.metadata import TensorRecord
from stageline.checkpoint.ownership import parent_faults
from stageline.errors import CheckpointError, PlanError, StagelineError
from stageline.stage import Inheritance
from stageline.work.work import ParentWork, StageWork

TOLD = 6
"""Faults of tensors that one sentence lists; the rest is counted."""


@dataclass
class Seeds:
    """What came of looking at the parents of a stage.

    faults: why some may not feed it.  refused: their roles.  notes: facts that differ and are only reported.
    sections: role -> what becomes of each section of that parent.
    """

    faults: list[StagelineError] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    sections: dict[str, tuple[Inheritance, ...]] = field(default_factory=dict)


def check_seeds(work: StageWork, parents: Mapping[str, ParentWork], named: Mapping[str, tuple[str, str]]) -> Seeds:
    """Everything that the parents' own metadata refuse.

    work: the stage, its config its own.  parents: role -> parent, its checkpoint known or still to be trained.
    named: role -> (key, word): where and how somebody named that parent; roles of the run's own stages are absent.
    """
    seeds = Seeds()
    for one, other in combinations(sorted(parents), 2):
        if not {one, other} & seeds.refused and _are_exchanged(work, parents[one], parents[other]):
            seeds.faults.append(_refuse_exchanged(work, parents[one], parents[other], named))
            seeds.refused |= {one, other}
    sections: dict[str, tuple[Inheritance, ...]] = {}
    for role, parent in parents.items():
        if role in seeds.refused or parent.facts is None:  # its stage is blocked
            continue
        try:
            sections[role] = _sections(work, parent, seeds.notes)
        except StagelineError as error:
            seeds.faults.append(error)
            seeds.refused.add(role)
    known = {role: parent for role, parent in parents.items() if role in sections and parent.ref is not None}
    found = parent_faults(_records(known), {role: sections[role] for role in known})
    if found:
        seeds.faults.append(_refuse_tensors(work, known, found))
        seeds.refused |= set(known)
    seeds.sections = {role: told for role, told in sections.items() if role not in seeds.refused}
    return seeds


def is_stranger(work: StageWork, role: str, ref: CheckpointRef) -> bool:
    """Whether a checkpoint is of another family, or of a stage that the role does not accept."""
    return ref.metadata.family != work.family.name or ref.metadata.stage not in work.stage.accepted(role)


def _sections(work: StageWork, parent: ParentWork, notes: list[str]) -> tuple[Inheritance, ...]:
    """What the family takes of one parent; raises where family, stage or facts refuse it."""
    family, stage, role = work.family, work.stage, parent.role
    assert parent.facts is not None
    if parent.ref is not None and is_stranger(work, role, parent.ref):
        raise _refuse_stranger(work, role, parent.ref)
    sections = family.inherit(contract.Parent(role, parent.stage, parent.facts), work.config, stage)
    faults, told = fact_faults(parent.facts, family.facts(work.config, stage), family.fact_rules, "seed")
    notes += [f"parent {role}: {note}" for note in told]
    if faults:
        raise CheckpointError(
            f"parent {role}: stage {parent.stage!r} may not seed {work.item!r}: {'; '.join(faults)}",
            remedy="use a checkpoint that fits, or change the config to what the checkpoint was trained with",
        )
    return sections


def _refuse_stranger(work: StageWork, role: str, ref: CheckpointRef) -> PlanError:
    metadata, stage, family = ref.metadata, work.stage, work.family.name
    key = f"parents.{stage.name}.{role}"
    if metadata.family != family:
        return PlanError(
            f"parent {role!r} of stage {stage.name!r} is of family {metadata.family!r}, expected {family!r}: {ref.uri}",
            remedy=f"give {key} a checkpoint of {family}",
        )
    accepted = stage.accepted(role)
    return PlanError(
        f"parent {role!r} of stage {stage.name!r} is a checkpoint of stage {metadata.stage!r}, expected "
        f"{' or '.join(map(repr, accepted))}: {ref.uri}",
        remedy=f"give {key} a checkpoint of stage {' or '.join(accepted)}",
    )


def _records(parents: Mapping[str, ParentWork]) -> dict[str, dict[str, TensorRecord]]:
    """Role -> every tensor that its checkpoint has to give: its own and referenced ones."""
    refs = {role: parent.ref.metadata for role, parent in parents.items() if parent.ref is not None}
    return {
        role: {name: record for name, record in metadata.whole.items() if name not in metadata.external_names}
        for role, metadata in refs.items()
    }


def _may_seed(work: StageWork, *parents: ParentWork) -> bool:
    """Whether nothing in the metadata of these parents, taken together, refuses them."""
    try:
        sections = {parent.role: _sections(work, parent, []) for parent in parents}
    except StagelineError:  # that it is refused is the answer
        return False
    return not parent_faults(_records({parent.role: parent for parent in parents}), sections)


def _are_exchanged(work: StageWork, one: ParentWork, other: ParentWork) -> bool:
    """Whether two parents are refused as they are and would be taken in each other's role."""
    if one.ref is None or other.ref is None or one.ref.digest == other.ref.digest or _may_seed(work, one, other):
        return False
    return _may_seed(work, _parent(one.role, other.ref), _parent(other.role, one.ref))


def _parent(role: str, ref: CheckpointRef) -> ParentWork:
    return ParentWork(role, ref.metadata.stage, ref, ref.metadata.facts)


def _refuse_exchanged(
    work: StageWork, one: ParentWork, other: ParentWork, named: Mapping[str, tuple[str, str]]
) -> PlanError:
    assert one.ref is not None
    assert other.ref is not None
    words = []
    for role, ref, source in ((one.role, other.ref, other.role), (other.role, one.ref, one.role)):
        key = named.get(role, (f"parents.{work.item}.{role}", ""))[0]
        words.append(shlex.quote(f"{key}={named.get(source, ('', ref.uri))[1]}"))
    return PlanError(
        f"the parents {one.role!r} and {other.role!r} of stage {work.item!r} look exchanged: {one.role!r} is "
        f"{one.ref.uri} (stage {one.stage!r}) and {other.role!r} is {other.ref.uri} (stage {other.stage!r}); each of "
        "them is what the other role takes",
        remedy=f"exchange them: {' '.join(words)}",
    )


def _refuse_tensors(work: StageWork, parents: Mapping[str, ParentWork], faults: list[str]) -> CheckpointError:
    given = ", ".join(f"{role} is {parent.ref.uri}" for role, parent in parents.items() if parent.ref is not None)
    more = f"; and {len(faults) - TOLD} more" if len(faults) > TOLD else ""
    return CheckpointError(
        f"the checkpoints that {work.item!r} would start from do not hold what it takes ({given}): "
        f"{'; '.join(faults[:TOLD])}{more}",
        remedy="use checkpoints of the same model, or change the config to match them",
    )
