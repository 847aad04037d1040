"""Weights into a stage that starts: admission first, then every tensor by the family's own inheritance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from stageline.checkpoint.admission import admit
from stageline.checkpoint.layout import CheckpointRef
from stageline.checkpoint.metadata import ExternalRecord, OwnerRecord, ParentRecord, TensorRecord
from stageline.checkpoint.ownership import (
    Origins,
    Ownership,
    external_records,
    find_origins,
    owner_records,
    ownership,
)
from stageline.checkpoint.steps import relative_uri
from stageline.checkpoint.tensors import fill, read_tensors, records_of
from stageline.contract import Parent
from stageline.stage import Inheritance, stage_settings
from stageline.trainer.assembly import Parts
from stageline.work.work import StageWork


def admit_resume(work: StageWork, ref: CheckpointRef) -> None:
    """Raise unless a checkpoint is this very stage's, or the shorter one's that it extends, whole, and equal in every
    fact."""
    admit(
        ref,
        "resume",
        family=work.family.name,
        stages=[work.stage.name],
        facts=work.family.facts(work.config, work.stage),
        rules=work.family.fact_rules,
        stage_fingerprint=work.extends or work.fingerprint,
        settings=None if work.extends else stage_settings(work.config),
        name_facts=work.family.name_facts,
        hashes=False,
    )


def parent_weights(work: StageWork, role: str) -> Literal["raw", "ema"]:
    """Which weights of a parent are taken: what its stage declares; raw where it was trained without an average."""
    declared = work.family.stages[work.stage.accepted(role)[0]].parent_weights
    return declared if work.sources[role].metadata.has_weights(declared) else "raw"


def known_parents(work: StageWork) -> dict[str, Parent]:
    """What the family learns of each parent: role -> its stage and facts."""
    return {role: Parent(role, ref.metadata.stage, ref.metadata.facts) for role, ref in work.sources.items()}


@dataclass(frozen=True)
class Seeding:
    """What a starting stage took from whom.

    parents: for the metadata.  owners: the same parents as holders of tensors, for those below the stage's own root.
    model: every tensor of the model, as loaded.  origins: where each comes from.  sections: by role.  notices: one per
    parent, for the log.
    """

    model: dict[str, TensorRecord]
    parents: dict[str, ParentRecord]
    owners: dict[str, OwnerRecord]
    origins: Origins
    sections: dict[str, tuple[Inheritance, ...]]
    notices: list[dict[str, Any]]


def seed_from_parents(work: StageWork, model: nn.Module) -> Seeding:
    """Load what the family inherits from all parents into the model, every tensor exactly once."""
    notes: dict[str, list[str]] = {}
    sections: dict[str, tuple[Inheritance, ...]] = {}
    given: dict[str, dict[str, TensorRecord]] = {}
    parents = known_parents(work)
    for role, ref in work.sources.items():
        admission = admit(
            ref,
            "seed",
            family=work.family.name,
            stages=list(work.stage.accepted(role)),
            facts=work.family.facts(work.config, work.stage),
            rules=work.family.fact_rules,
            weights=parent_weights(work, role),
            name_facts=work.family.name_facts,
            hashes=False,
        )
        notes[role] = list(admission.notes)
        sections[role] = work.family.inherit(parents[role], work.config, work.stage)
        external = ref.metadata.external_names
        given[role] = {name: record for name, record in ref.metadata.whole.items() if name not in external}
    own = model.state_dict()
    where = "; ".join(ref.uri for ref in work.sources.values()) or f"stage {work.stage.name!r}"
    patterns = {external.name: external.patterns for external in work.family.externals(work.config, work.stage)}
    partly = bool(set(work.stage.roles) - set(work.sources))
    model_records = records_of(own)
    origins = find_origins(model_records, given, sections, patterns, where=where, partly=partly)
    for role, ref in work.sources.items():
        names = {name for name, giver in origins.loaded.items() if giver == role}
        fill(own, read_tensors(ref, parent_weights(work, role), names, into=own))
    records = {role: _parent_record(work, role, sections[role]) for role in work.sources}
    return Seeding(
        model=model_records,
        parents=records,
        owners={role: _owner(records[role]) for role in work.sources if _is_inside(work, role)},
        origins=origins,
        sections=sections,
        notices=[
            {
                "role": role,
                "reference": str(ref.reference),
                "weights": records[role].weights,
                "tensors": origins.counts(role),
                "sections": {section.section: f"{section.outcome}: {section.reason}" for section in sections[role]},
                "notes": notes[role],
            }
            for role, ref in work.sources.items()
        ],
    )


def _is_inside(work: StageWork, role: str) -> bool:
    """Whether a parent lies below the stage's own root, whose retention knows of it."""
    ref, root = work.sources[role], work.stage_dir.root
    return ref.root is not None and root is not None and ref.root.uri == root.uri


def _parent_record(work: StageWork, role: str, sections: tuple[Inheritance, ...]) -> ParentRecord:
    ref = work.sources[role]
    return ParentRecord(
        uri=relative_uri(ref.uri, work.stage_dir.root) if _is_inside(work, role) else ref.uri,
        digest=ref.digest,
        content=ref.content,
        stage=ref.metadata.stage,
        step=ref.metadata.step,
        weights=parent_weights(work, role),
        sections=[section.to_json() for section in sections],
    )


def _owner(parent: ParentRecord) -> OwnerRecord:
    fields = {name: getattr(parent, name) for name in ("uri", "digest", "content", "weights")}
    return OwnerRecord(**fields, tensors={})


def owned_by(work: StageWork, seeding: Seeding, parts: Parts) -> tuple[Ownership, dict[str, Any]]:
    """Whose each tensor of a starting stage is, and what its checkpoints say of the owners (fields of the metadata)."""
    records = seeding.model  # frozen parts may be held in another number format by now
    buffers = set(records) - {name for name, _ in parts.own.named_parameters(remove_duplicate=False)}
    inside = frozenset(seeding.owners)
    trained = {name for name, p in parts.own.named_parameters(remove_duplicate=False) if p.requires_grad}
    owned = ownership(records, trained, buffers, seeding.origins, seeding.sections, inside)
    externals = {
        external.name: ExternalRecord(
            name=external.name,
            source=external.source,
            revision=external.revision,
            digest=work.digests[external.name],
        )
        for external in work.family.externals(work.config, work.stage)
    }
    fields = {
        "referenced": owner_records(owned, records, seeding.owners),
        "externals": external_records(owned, records, externals),
    }
    return owned, fields
