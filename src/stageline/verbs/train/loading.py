"""Weights into a stage that starts: admission first, then every tensor by the family's own inheritance."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from stageline.checkpoint.admission import admit
from stageline.checkpoint.layout import CheckpointRef
from stageline.checkpoint.metadata import ParentRecord
from stageline.checkpoint.steps import relative_uri
from stageline.checkpoint.tensors import load_state, read_tensors
from stageline.contract import Parent
from stageline.stage import stage_settings
from stageline.verbs.train.decision import Work


def admit_resume(work: Work, ref: CheckpointRef) -> None:
    """Raise unless a checkpoint is this very stage's, whole, and equal in every fact."""
    admit(
        ref,
        "resume",
        family=work.family.name,
        stages=[work.stage.name],
        facts=work.family.facts(work.config, work.stage),
        rules=work.family.fact_rules,
        stage_fingerprint=work.fingerprint,
        settings=stage_settings(work.config),
        name_facts=work.family.name_facts,
        hashes=False,
    )


def parent_weights(work: Work, role: str) -> Literal["raw", "ema"]:
    """Which weights of a parent are taken: what its stage declares; raw where it was trained without an average."""
    declared = work.family.stages[work.stage.parents[role]].parent_weights
    return declared if work.parents[role].metadata.has_weights(declared) else "raw"


def seed_from_parents(work: Work, model: nn.Module) -> tuple[dict[str, ParentRecord], list[dict[str, Any]]]:
    """Load what the family inherits from each parent into the model; (metadata records, one notice per parent)."""
    records: dict[str, ParentRecord] = {}
    notices: list[dict[str, Any]] = []
    for role, ref in work.parents.items():
        weights = parent_weights(work, role)
        admission = admit(
            ref,
            "seed",
            family=work.family.name,
            stages=list(work.stage.accepted(role)),
            facts=work.family.facts(work.config, work.stage),
            rules=work.family.fact_rules,
            weights=weights,
            name_facts=work.family.name_facts,
            hashes=False,
        )
        sections = work.family.inherit(Parent(role, ref.metadata.stage, ref.metadata.facts), work.config, work.stage)
        accounting = load_state(model, read_tensors(ref, weights), sections, where=ref.uri)
        records[role] = ParentRecord(
            uri=relative_uri(ref.uri, work.stage_dir.root),
            digest=ref.digest,
            content=ref.content,
            stage=ref.metadata.stage,
            step=ref.metadata.step,
            weights=weights,
            sections=[section.to_json() for section in sections],
        )
        notices.append(
            {
                "role": role,
                "reference": str(ref.reference),
                "weights": weights,
                "tensors": accounting.counts(),
                "sections": {section.section: f"{section.outcome}: {section.reason}" for section in sections},
                "notes": list(admission.notes),
            }
        )
    return records, notices


def parent_records(ref: CheckpointRef) -> dict[str, ParentRecord]:
    """The parents a stage had when it began, as its own checkpoint tells: a resume goes on with them."""
    return dict(ref.metadata.parents)
