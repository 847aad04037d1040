"""The sections of the config beside `model`, one sentence per key; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from stageline.config import DataSettings, EvaluateBase, LocalPath, Settings, operational
from stageline.families.panorama_vlm.config.rules import (
    data_faults,
    lora_faults,
    raise_faults,
    tile_plan,
    vicreg_faults,
)
from stageline.families.panorama_vlm.data.rows import QUERY_TEMPLATE
from stageline.families.panorama_vlm.geometry.tiles import DECIMALS, GlobalMode, TilePlan
from stageline.families.panorama_vlm.geometry.views import PixelCentres
from stageline.families.panorama_vlm.stitching import Stitching

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a Qwen3 layer."""


def _listed(value: Any) -> Any:
    """A list as a tuple, and one text as a tuple of one."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Files = Annotated[tuple[LocalPath, ...], BeforeValidator(_listed)]
"""Paths; one may be given alone."""


class ImageProcessingConfig(Settings):
    """Which views a panorama is cut into, and which of their tokens are kept."""

    crop_strategy: Literal["anyres_e2p"] = "anyres_e2p"
    """Perspective tiles around the horizon and one view of the whole panorama."""
    fov_deg: float = 90.0
    """Width and height of a tile in degrees, 20 to 130."""
    overlap_ratio: float = 0.5
    """Wanted overlap of neighbouring tiles as a share of their angle, 0 to 0.9; the plan says what it comes to."""
    pitch_rows: int = 1
    """Rings of tiles."""
    pitch_span_deg: float | None = None
    """Vertical span that the rings see, in degrees; alone it decides their number."""
    yaw_count_by_pitch: bool = False
    """Whether rings off the horizon have only as many tiles as their wider azimuth needs."""
    caps: bool = False
    """One tile at the zenith and one at the nadir."""
    tile_size: int | None = Field(default=None, ge=8)
    """Edge of a view in pixels; null is the tower's own."""
    global_mode: GlobalMode = "stretch"
    """How the whole panorama becomes a view."""
    stitching_mode: Stitching = "concat"
    """concat keeps all tokens; dedupe those of the tile whose centre is nearest; resample lays a canvas over them."""
    canvas: tuple[int, int] | None = None
    """Rows and columns of stitching `resample`."""
    pixel_centres: PixelCentres = "half"
    """half is a pinhole camera; corner is what py360convert does."""
    antialias: Literal["auto", "fast", "best", "off"] = "auto"
    """How a large panorama is reduced before it is sampled."""
    e2p_device: Literal["auto", "cpu", "cuda"] = operational("auto")
    """Where tiles are made."""

    IN_FINGERPRINTS: ClassVar[Mapping[str, str]] = {"overlap_ratio": "plan_overlap", "pitch_rows": "plan_rows"}

    @model_validator(mode="after")
    def _has_a_plan(self) -> ImageProcessingConfig:
        tile_plan(self)  # refuses what no plan can be made of
        return self

    @property
    def plan(self) -> TilePlan:
        """Every view of a panorama."""
        return tile_plan(self)

    @property
    def plan_overlap(self) -> float | list[float]:
        """What neighbours really overlap, and the pitches of several rings: requests of one plan are one setting."""
        plan = self.plan
        overlap = round(plan.o_eff, DECIMALS) + 0.0
        return overlap if plan.num_rings == 1 else [overlap, *(round(pitch, DECIMALS) for pitch in plan.pitches)]

    @property
    def plan_rows(self) -> int:
        """Rings there really are."""
        return self.plan.num_rings


class VicregConfig(Settings):
    """The loss of stage `vision`: tokens that see the same direction agree, and do not collapse."""

    pairs: Annotated[
        tuple[Literal["auto", "adjacent", "global", "jitter", "photometric"], ...], BeforeValidator(_listed)
    ] = ("auto",)
    """Where pairs come from; auto is adjacent where neighbouring tiles share tokens, else global and jitter."""
    tap: Literal["vision", "resampler"] = "vision"
    """Whose tokens the loss acts on."""
    form: Literal["paper", "biased_half"] = "paper"
    """Unbiased deviation and the sum of both covariances, or biased deviation and half of it."""
    statistics: Literal["pooled", "per_pair"] = "pooled"
    """Variance and covariance over all pairs of a batch, or inside each pair of views."""
    statistics_on: Literal["paired", "raw"] = "paired"
    """Over the interpolated partners, or over tokens as they are."""
    invariance_weight: float = Field(default=25.0, ge=0)
    variance_weight: float = Field(default=25.0, ge=0)
    covariance_weight: float = Field(default=1.0, ge=0)
    anchor_weight: float = Field(default=1.0, ge=0)
    """Weight of 1 - cosine to the features of the untrained tower."""
    max_tokens: int = Field(default=8192, ge=2)
    """Pairs of a step beyond which a random part is drawn."""
    projector_width: int = Field(default=1024, ge=1)
    """P; the tiny profile has 64."""
    projector_norm: Literal["batch", "layer", "none"] = "batch"
    """Norm inside the projector."""
    yaw_roll: bool = False
    """Turn each panorama by a random angle."""
    color_jitter: float = Field(default=0.0, ge=0, le=1)
    """Strength of random changes of colour; `photometric` pairs need it."""

    @model_validator(mode="after")
    def _consistent(self) -> VicregConfig:
        raise_faults(vicreg_faults(self))
        return self


class LoraConfig(Settings):
    """Adapters on the language model, trained in `finetune`."""

    use_lora: bool = True
    rank: int = Field(default=32, ge=1)
    alpha: float = Field(default=64, gt=0)
    """The adapters' output is scaled by alpha / rank."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    target_modules: tuple[str, ...] = PROJECTIONS
    """Linear layers that get an adapter."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank)."""
    init_lora_weights: bool | Literal["gaussian"] = True
    """How adapters start; their output is zero either way."""

    @model_validator(mode="after")
    def _consistent(self) -> LoraConfig:
        raise_faults(lora_faults(self, PROJECTIONS))
        return self


class TextConfig(Settings):
    """Prompts and what of a sequence is trained."""

    system: str | None = None
    """Text of the system turn; null has none."""
    max_text_length: int = Field(default=128, ge=16)
    """Most tokens of query and response together; image tokens are never cut."""
    min_response_tokens: int = Field(default=8, ge=1)
    """A long response is cut to no fewer, then the query."""


class GenerationConfig(Settings):
    """Greedy decoding."""

    max_new_tokens: int = Field(default=128, ge=1)
    """Tokens after which an answer ends unfinished."""


class MetricsConfig(Settings):
    """How texts are compared."""

    tokenize: Literal["word", "char"] = "word"
    """char is for languages without spaces."""


class RuntimeConfig(Settings):
    """How things are computed, not what."""

    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = operational("auto")
    """auto is sdpa; flash_attention_2 needs its package and CUDA."""
    cache_vision_features: bool = operational(True)
    """Compute the features of a frozen tower once per picture and keep them for all stages and runs that share them."""
    vision_micro_batch: int = operational(64, ge=1)
    """Views per forward pass of the tower."""


class ExperimentConfig(Settings):
    """The run's name, where `run` is absent."""

    name: str | None = operational(None)
    """Takes the place of the name made of the models."""
    suffix: str | None = operational(None)
    """Stands in the place of the suffix that tells variants apart."""
    exact_name: bool = operational(False)
    """No suffix after `name`."""


class DataConfig(DataSettings):
    """Rows of panorama, query and response."""

    name: Literal["csv", "rooms"] = "csv"
    """CSV files, or made panoramas of rooms with coloured walls."""
    csv_train: Files = operational(())
    """CSV files of the training rows."""
    csv_val: Files = operational(())
    """The same for validation."""
    csv_test: Files = operational(())
    """The same for evaluation."""
    image_root: LocalPath | None = operational(None)
    """Folder that image paths are relative to; null is the folder of the CSV file."""
    url_cache: LocalPath | None = operational(None)
    """Folder that holds the pictures of http(s) addresses; training downloads nothing."""
    on_bad: Literal["quarantine", "error"] = "quarantine"
    """What becomes of rows that cannot be used: set aside and listed, or refused all at once."""
    max_bad_fraction: float = Field(default=0.02, ge=0, le=1)
    """Share of the rows that may be set aside."""
    verify: Literal["header", "decode", "off"] = operational("header")
    """Accepted as guides write it. Preparing reduces every picture once, so all are decoded and judged there anyway."""
    query_template: str = QUERY_TEMPLATE
    """Makes a sentence of a `query` that is a noun; holds {query}."""
    erp_hfov_deg: float | None = Field(default=None, gt=0, le=360)
    """Horizontal field of view of partial panorama files; null: they show the whole sphere."""
    erp_vfov_deg: float | None = Field(default=None, gt=0, le=180)
    """The same, vertical."""
    num_train: int = Field(default=64, ge=1)
    """Made training panoramas of `rooms`, four questions each."""
    num_val: int = Field(default=4, ge=1)
    """Made validation panoramas."""
    num_test: int = Field(default=4, ge=1)
    """Made test panoramas."""

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        raise_faults(data_faults(self))
        return self


class EvaluateConfig(EvaluateBase):
    """How a checkpoint is evaluated."""

    split: Literal["val", "test"] | None = None
    """Which rows; null is test where there are such rows, else val."""
    weights: Literal["ema", "raw"] = "raw"
    """Weights of the optimizer, or averaged ones where a stage was trained with an average."""
    max_samples: int | None = Field(default=None, ge=1)
    """Only the first rows; null is all."""
    controls: tuple[Literal["shuffled", "rolled"], ...] = ()
    """Also measure with the pictures of other rows, or with panoramas turned by 90 degrees and the text as it was."""
    batch_size: int = operational(8, ge=1)
    """Rows generated together; results do not depend on it."""
    num_panels: int = Field(default=8, ge=0)
    """How many answers are shown with their picture, spread over the rows; unless 0, best, median and worst too."""
    auto: bool = operational(False)
    """Whether the guide's own training script copies the evaluation at the end of a run to its results."""
    results_dir: LocalPath = operational("results/eval_results")
    """Where the guide's own scripts copy finished evaluations to."""
