"""Typed config and stages of panorama_vlm: the torch-free half of the family's record.

Stages stand in `stages.py`, sections in `model.py`, `resamplers.py` and `sections.py`, sizes of published models in
`architectures.py`, rules in `rules.py`, the guide's spellings in `spellings.py`, presets in `presets.py`; names of runs
in `naming.py`, what a checkpoint says in `facts.py`, what a parent hands on in `inheritance.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

from pydantic import model_validator

from stageline.config import KeySpellings, RunConfig
from stageline.contract import FamilyConfig
from stageline.families.panorama_vlm.config.model import ModelConfig
from stageline.families.panorama_vlm.config.presets import PRESETS
from stageline.families.panorama_vlm.config.resamplers import token_rules
from stageline.families.panorama_vlm.config.rules import check, config_faults, raise_faults, shares_tokens
from stageline.families.panorama_vlm.config.sections import (
    DataConfig,
    EvaluateConfig,
    ExperimentConfig,
    GenerationConfig,
    ImageProcessingConfig,
    LoraConfig,
    MetricsConfig,
    RuntimeConfig,
    TextConfig,
    VicregConfig,
)
from stageline.families.panorama_vlm.config.spellings import SPELLINGS
from stageline.families.panorama_vlm.config.stages import STAGES
from stageline.families.panorama_vlm.cost import step_work
from stageline.families.panorama_vlm.data.origin import evaluation_splits, num_samples, splits
from stageline.families.panorama_vlm.externals import casts, externals, trains
from stageline.families.panorama_vlm.facts import FACT_RULES, asked, compared, facts, summary
from stageline.families.panorama_vlm.image_tokens import TokenRules, num_tokens
from stageline.families.panorama_vlm.inheritance import inherit
from stageline.families.panorama_vlm.naming import run_name, variant
from stageline.families.panorama_vlm.stitching import TokenLayout
from stageline.families.panorama_vlm.words import WORDS
from stageline.stage import Branch

__all__ = ["FAMILY_CONFIG", "STAGES", "PanoramaVlmConfig"]

OPTIMISED = frozenset(
    {
        *("vision_trainable_blocks", "vision_learning_rate_scale", "train_resampler", "resampler_learning_rate_scale"),
        *("start_fresh", "frozen_dtype", "gradient_checkpointing"),
    }
)
"""Keys of `model` that say how it is trained, not what it is: two runs that differ in them alone are the same run."""


class PanoramaVlmConfig(RunConfig):
    """A run of panorama_vlm."""

    family: Literal["panorama_vlm"] = "panorama_vlm"
    model: ModelConfig = ModelConfig()
    image_processing: ImageProcessingConfig = ImageProcessingConfig()
    vicreg: VicregConfig = VicregConfig()
    lora: LoraConfig = LoraConfig()
    text: TextConfig = TextConfig()
    data: DataConfig = DataConfig.model_construct()
    generation: GenerationConfig = GenerationConfig()
    metrics: MetricsConfig = MetricsConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    experiment: ExperimentConfig = ExperimentConfig()

    IDENTITY: ClassVar[tuple[str, ...]] = (
        *("family", "seed", "image_processing", "text.system"),
        *(f"model.{key}" for key in ModelConfig.model_fields if key not in OPTIMISED),
    )

    OF_EVALUATION: ClassVar[tuple[str, ...]] = (
        *(f"generation.{key}" for key in GenerationConfig.model_fields),
        *(f"metrics.{key}" for key in MetricsConfig.model_fields),
        *("data.csv_test", "data.num_test"),
    )

    SPELLINGS: ClassVar[KeySpellings] = SPELLINGS

    @model_validator(mode="after")
    def _consistent(self) -> PanoramaVlmConfig:
        raise_faults(config_faults(self))
        return self

    @property
    def tile_size(self) -> int:
        """Edge of a view in pixels."""
        stated = None if self.model.is_tiny else self.image_processing.tile_size
        return stated or self.model.vision.image_size

    @property
    def grid(self) -> int:
        """G, tokens along an edge of a tile."""
        return self.tile_size // self.model.vision.patch_size

    @property
    def global_grid(self) -> tuple[int, int] | None:
        """Rows and columns of a NaFlex tower's global view, twice as wide as high; None where it is a tile."""
        if self.image_processing.global_mode != "naflex":
            return None
        rows = int((self.model.vision.grid**2 / 2) ** 0.5)
        return rows, 2 * rows

    @property
    def token_layout(self) -> TokenLayout:
        """The token grids of all views."""
        return TokenLayout.of_plan(self.image_processing.plan, self.grid, self.global_grid)

    @property
    def token_rules(self) -> TokenRules:
        """How they become image tokens."""
        image, model = self.image_processing, self.model
        return token_rules(model.resampler_type, model.resampler, image.stitching_mode, image.canvas)

    @property
    def image_tokens(self) -> int:
        """T, tokens of one panorama in a prompt."""
        return num_tokens(self.token_layout, self.token_rules)

    @property
    def has_shared_tokens(self) -> bool:
        """Whether any token of a tile is seen by a neighbour, too."""
        plan = self.image_processing.plan
        return shares_tokens(plan.fov_deg, plan.views, plan.neighbours, self.grid)

    @property
    def vicreg_pairs(self) -> tuple[str, ...]:
        """Where the pairs of stage `vision` come from, `auto` decided."""
        if self.vicreg.pairs != ("auto",):
            return self.vicreg.pairs
        if self.has_shared_tokens:
            return ("adjacent",)
        shared = self.image_processing.global_mode in ("stretch", "letterbox")
        return ("global", "jitter") if shared else ("jitter",)

    @property
    def projector_width(self) -> int:
        """P of the VICReg projector."""
        return 64 if self.model.is_tiny else self.vicreg.projector_width

    @property
    def evaluation_split(self) -> str:
        """Which rows are evaluated."""
        if self.evaluate.split is not None:
            return self.evaluate.split
        return "test" if self.data.name != "csv" or self.data.csv_test else "val"


def default_stages(config: PanoramaVlmConfig) -> Collection[str]:
    """What `stages: null` means: without shared tokens, and nothing said of pairs, `vision` is reused, not trained."""
    trainable = config.has_shared_tokens or config.vicreg.pairs != ("auto",)
    return [stage.name for stage in STAGES if trainable or stage.name != "vision"]


FAMILY_CONFIG = FamilyConfig(
    name="panorama_vlm",
    config=PanoramaVlmConfig,
    stages=STAGES,
    presets=PRESETS,
    facts=facts,
    fact_rules=FACT_RULES,
    inherit=inherit,
    splits=splits,
    evaluation_splits=evaluation_splits,
    check=check,
    trains=trains,
    casts=casts,
    externals=externals,
    default_stages=default_stages,
    variant=variant,
    run_name=run_name,
    asked=lambda raw: asked(PanoramaVlmConfig, raw),
    num_samples=num_samples,
    summary=summary,
    compared=compared,
    branches={"overlap0": Branch(("image_processing.overlap_ratio=0",), shares=("vision",))},
    words=WORDS,
    step_work=step_work,
)
