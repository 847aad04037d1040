"""Typed config and stages of sparse_structure: the torch-free half of the family's record.

Stages stand in `stages.py`, sections in `model.py` and `sections.py`, rules in `rules.py`, presets in `presets.py`;
what a checkpoint says in `facts.py`, what a parent hands on in `inheritance.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

from pydantic import model_validator

from stageline.config import RunConfig
from stageline.contract import FamilyConfig
from stageline.families.sparse_structure.config.model import ModelConfig
from stageline.families.sparse_structure.config.presets import PRESETS
from stageline.families.sparse_structure.config.rules import check, config_faults, raise_faults
from stageline.families.sparse_structure.config.sections import DataConfig, EvaluateConfig, ObjectiveConfig
from stageline.families.sparse_structure.config.stages import STAGES
from stageline.families.sparse_structure.facts import FACT_RULES, agree, asked, facts, summary
from stageline.families.sparse_structure.inheritance import inherit, trains
from stageline.families.sparse_structure.sources import evaluation_splits, num_samples, splits
from stageline.families.sparse_structure.words import WORDS
from stageline.stage import Stage

__all__ = ["FAMILY_CONFIG", "STAGES", "SparseStructureConfig"]

_TRAINED_BY = frozenset({"freeze_shared_parameters", "use_checkpoint", "start", "block_map"})
"""Keys of a branch that say how it is trained, not what it is: two runs that differ in them alone are the same run."""


class SparseStructureConfig(RunConfig):
    """A run of sparse_structure."""

    family: Literal["sparse_structure"] = "sparse_structure"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    IDENTITY: ClassVar[tuple[str, ...]] = (
        *("family", "seed", "data"),
        *(f"model.{key}" for key in ModelConfig.model_fields if key not in ("sparse_flow", "global_sparse_flow")),
        *(
            f"model.{branch}.{key}"
            for branch in ("sparse_flow", "global_sparse_flow")
            for key in type(getattr(ModelConfig(), branch)).model_fields
            if key not in _TRAINED_BY
        ),
    )

    OF_EVALUATION: ClassVar[tuple[str, ...]] = ("data.num_test",)

    @model_validator(mode="after")
    def _consistent(self) -> SparseStructureConfig:
        raise_faults(config_faults(self))
        return self

    @property
    def has_vae(self) -> bool:
        """Whether the data are voxels that a shape autoencoder encodes."""
        return self.data.name != "latents"


def default_stages(config: SparseStructureConfig) -> Collection[str]:
    """What `stages: null` means: of data that already are latents nothing is encoded."""
    return [s.name for s in STAGES if not s.opt_in and (config.has_vae or s.name != "shape_vae")]


def needs(config: SparseStructureConfig, stage: Stage) -> Mapping[str, str]:
    """Voxels are encoded in every stage that has a flow. config: the stage's own."""
    if "vae" in stage.parents and config.has_vae:
        return {"vae": f"data.name {config.data.name!r} are voxels, which it encodes; latents need none"}
    return {}


FAMILY_CONFIG = FamilyConfig(
    name="sparse_structure",
    config=SparseStructureConfig,
    stages=STAGES,
    presets=PRESETS,
    facts=facts,
    fact_rules=FACT_RULES,
    inherit=inherit,
    splits=splits,
    evaluation_splits=evaluation_splits,
    check=check,
    trains=trains,
    needs=needs,
    default_stages=default_stages,
    asked=lambda raw: asked(SparseStructureConfig, raw),
    agree=agree,
    num_samples=num_samples,
    summary=summary,
    words=WORDS,
)
