"""The sections of a film_flow config beside `model`, one sentence per key; no torch.

`model` stands in `model_section.py`. Which keys are moved, renamed or refused when a file is read stands in
`seed_keys.py`; the config as a whole in `config.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stageline.config import DataSettings, EvaluateBase, LocalPath, Settings, added, operational
from stageline.families.film_flow.config.rules import data_faults, raise_faults


class DataConfig(DataSettings):
    """Images and masks, made or read."""

    name: Literal["prompted_trees", "trees", "retina", "folder"] = "prompted_trees"
    """Made trees with a prompt, made trees, the retina picture with its pseudo-label, or folders of files."""
    train_dir: LocalPath | None = None
    """Folder with `image/` and `label/` of equal file names, for training."""
    val_dir: LocalPath | None = None
    """The same for validation."""
    test_dir: LocalPath | None = None
    """The same for testing; null has no test split."""
    image_folder: str = added("image")
    """Folder of the pictures below those, for folder data."""
    label_folder: str = added("label")
    """Folder of the labels below those."""
    label_pattern: str | None = added(None)
    """How labels are named where it is not as their images: `*_mask`, or `*_training -> *_manual1`; what stands for `*`
    is equal, ` | ` stands between several. null: the same name, whatever the suffix."""
    val_names: tuple[str, ...] = added(())
    """Where train_dir and val_dir are one folder: names (`p03*`, without suffix) of the pictures for validation."""
    test_names: tuple[str, ...] = added(())
    """The same for testing, where test_dir is that folder too; what fits neither is for training."""
    prompts_file: LocalPath | None = None
    """JSON file {image file name: prompt} for folder data with a text condition."""
    train_bs: int | None = Field(default=None, ge=1)
    """Another name of trainer.batch_size; moved there."""
    num_train: int = Field(default=192, ge=1)
    """Made training images (a folder's files are all used)."""
    num_val: int = Field(default=24, ge=1)
    """Made validation images."""
    num_test: int = Field(default=0, ge=0)
    """Made test images; 0 has no test split."""
    num_samples_per_image: int = Field(default=1, ge=1)
    """Random crops of every image per epoch."""
    image_size: int = Field(default=224, ge=8)
    """Side of a made image and of a training crop; the same number as `model.image_size`."""
    image_norm: Literal["percentile", "minmax"] = "percentile"
    """How an image is brought to [-1, 1]: its 0.5 and 99.5 percentiles, or least and largest value."""
    flips: bool = True
    """Random flips of training samples."""
    distractors: bool = False
    """Made images also get a straight catheter line, vignetting and ribs."""

    @field_validator("val_names", "test_names", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        raise_faults(data_faults(self))
        return self


class EvaluateConfig(EvaluateBase):
    """How a checkpoint is evaluated and how pictures are predicted."""

    split: Literal["val", "test"] = "val"
    """Which part of the data."""
    weights: Literal["ema", "raw"] = "ema"
    """Averaged weights or those of the optimizer; without an EMA in the checkpoint only raw exist."""
    k: int | None = Field(default=None, ge=1)
    """Integration steps; null takes model.timesteps."""
    solver: Literal["euler", "heun", "midpoint", "dopri5"] | None = None
    """Integrator; null takes model.solver."""
    ensemble: int | None = Field(default=None, ge=1)
    """Members; null takes model.num_ensemble."""
    film_mode: Literal["on", "off", "shuffle"] = "on"
    """FiLM as trained, switched off, or with the conditions of other samples."""
    film_active: tuple[int, ...] | None = None
    """An ablation: only these of the trained decoder stages are modulated; null is all of them."""
    guidance: float = Field(default=1.0, ge=0)
    """w of v_off + w (v_on - v_off); 1 costs nothing extra."""
    prompt: str | None = None
    """Prompt for predicting pictures; null takes `model.vlm_film_config.prompt_template`."""
    mask_feedback: Literal["off", "overlay", "mask_only"] = "off"
    """Predict twice, the second time with a condition from the picture with the first mask painted on, or the mask."""
    oracle: bool = False
    """Allow the true junction map in evaluation (`junction_gating_config.source: gt`); the result is marked."""
    compare_film: bool = True
    """Also measure FiLM off and shuffled beside the chosen mode."""
    window_overlap: float = Field(default=0.25, ge=0, lt=1)
    """Overlap of neighbouring windows as a share of their side."""
    batch_size: int = operational(8, ge=1)
    """Images per forward pass; results do not depend on it."""
    num_panels: int = Field(default=4, ge=0)
    """How many of the first samples are shown as pictures; unless 0, the best, the median and the worst are too."""
    baseline_pixels: int = operational(30_000_000, ge=0)
    """A threshold and a ridge filter are scored beside the model where the evaluated pictures and the training pictures
    that they are fitted to have at most so many pixels; 0 is never."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability above which a pixel belongs to the mask."""

    @field_validator("film_active", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class ImportConfig(Settings):
    """What a file of another program does not say about itself."""

    film_stages: tuple[int, ...] | None = None
    """Decoder stages of its heads, where its own evidence is ambiguous; must be one of the candidates."""
    apply_point: Literal["post_block1", "post_block2"] | None = None
    """Where FiLM was applied; null assumes post_block1 and says so."""
    vlm_scope: Literal["image", "crop"] | None = None
    """What a condition described; null assumes crop and says so."""
    allow_globals: tuple[str, ...] = ()
    """Foreign classes that may be read, out of a fixed list."""
