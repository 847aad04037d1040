"""The sections of the config beside `model`, one sentence per key; no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stageline.config import DataSettings, EvaluateBase, LocalPath, Settings, added, operational
from stageline.families.sparse_structure.config.rules import data_faults, raise_faults
from stageline.families.sparse_structure.data.furniture import STYLES


class GuidanceConfig(Settings):
    """Conditions that are left out in training, and guidance in sampling."""

    p_unconditional: float = Field(default=0.1, ge=0, le=1)
    """Share of the training passes without condition."""
    unconditional_handling: Literal["add_flag", "zeros", "discard", "drop_tensors"] = "add_flag"
    """How a pass without condition is made; add_flag leaves it to the network."""
    strength: float = Field(default=0.0, ge=0)
    """s of (1 + s) conditional - s unconditional when a validation or an evaluation samples; 0 makes one pass."""
    interval: tuple[float, float] = (0.0, 1000.0)
    """Times between which guidance acts, in units of time_scale."""


class ObjectiveConfig(Settings):
    """The ShortCut objective (arXiv:2410.12557) on top of flow matching, as the guide names its parameters."""

    sigma_min: float = Field(default=0.0, ge=0, lt=1)
    """What is left of the noise at t = 1."""
    time_scale: float = Field(default=1000.0, gt=0)
    """Times and steps reach the network multiplied by it."""
    time_mean: float = -1.0
    """Training times are sigmoid(mean + std x normal)."""
    time_std: float = Field(default=1.0, gt=0)
    """The same."""
    time_window: tuple[float, float] | None = None
    """Window of times, in [0, 1], in which a share of the training times is uniform; null has none."""
    time_window_share: float = Field(default=0.5, ge=0, le=1)
    """That share."""
    loss_weights: dict[str, float] | None = None
    """Weight per modality, all of them named; null is 1 for each."""
    self_consistency_prob: float = Field(default=0.25, ge=0, le=1)
    """Share of samples (of micro-batches in scene mode) whose target is two half steps; 0 is plain flow matching."""
    shortcut_loss_weight: float = Field(default=1.0, ge=0)
    """Weight of the self-consistency part."""
    self_consistency_cfg_strength: float = Field(default=3.0, ge=0)
    """Guidance inside self-consistency targets."""
    ratio_cfg_samples_in_self_consistency_target: float = Field(default=0.5, ge=0, le=1)
    """Share of the targets that are guided."""
    fm_in_shortcut_target_prob: float = Field(default=0.0, ge=0, le=1)
    """Probability that a target is made with step 0, as plain flow matching."""
    fm_eps_max: float = Field(default=0.0, ge=0, le=0.5)
    """Flow-matching samples are told a step of up to twice this instead of 0; at most half."""
    batch_mode: bool = False
    """Scene mode: one coin for the objects of a scene. Without it objects are samples by themselves."""
    cfg_modalities: tuple[str, ...] = ("shape",)
    """Modalities that guided targets guide, where all samples of a batch are guided."""
    t_d_sampling: Literal["independent", "grid"] = "grid"
    """How times and steps go together: independently, or on the paper's grid, which never leaves [0, 1]."""
    anchor_smallest_step: bool = True
    """Make the targets of the smallest step with step 0, which flow matching trains."""
    shared_draws: bool | None = None
    """One time and one step for all objects of a scene; null follows batch_mode."""
    shared_draws_from: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps after which shared draws begin; before it each object has its own time and step."""
    shared_draws_prob: float = Field(default=1.0, ge=0, le=1)
    """Share of the scenes with shared draws after that."""
    cfg_only_smallest_step: bool = False
    """Guide only the targets of the smallest step."""
    guidance: GuidanceConfig = GuidanceConfig()


class DataConfig(DataSettings):
    """Scenes of objects."""

    name: Literal["made", "meshes", "latents"] = "made"
    """Made-up furnished rooms, a folder of scenes with meshes, or a folder of scenes that already are latents."""
    data_root: LocalPath | None = operational(None)
    """Folder with `train`, `val` and perhaps `test`, each with one folder per scene, for meshes and latents."""
    max_objects_per_scene: int = Field(default=32, ge=1)
    """Of larger scenes this many objects are trained on, others in each epoch."""
    shuffle_objects: bool = False
    """Exchange objects in training for others of their class: a control that can learn nothing of scenes."""
    num_train: int = Field(default=400, ge=1)
    """Made scenes to train on."""
    num_val: int = Field(default=60, ge=1)
    """Made scenes for validation."""
    num_test: int = Field(default=60, ge=1)
    """Made scenes for evaluation."""
    num_objects: tuple[int, int] = (2, 6)
    """Fewest and most objects of a made scene."""
    styles: tuple[str, ...] = STYLES
    """Styles of made scenes; all furniture of a scene is of one."""
    fill: Literal["surface", "solid"] = "surface"
    """Voxels that a mesh's surface meets, or those inside of it, which needs closed meshes."""
    allow_extra: bool = False
    """Leave out what latents hold beside model.modalities instead of refusing it."""

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        raise_faults(data_faults(self))
        return self


class EvaluateConfig(EvaluateBase):
    """How a checkpoint is evaluated."""

    split: Literal["val", "test"] = "test"
    """Which scenes."""
    weights: Literal["ema", "raw"] = "ema"
    """Averaged weights where there are such, or those of the optimizer."""
    steps: tuple[int, ...] = (1, 4)
    """Numbers of sampling steps, each evaluated by itself, the usual one last; from 128 on the step is told as 0."""
    scene_strength: float = added(0.0, ge=0, le=20)
    """s of (1 + s) both branches - s one object's: guidance by the scene, for prediction too. 0 samples as trained."""
    max_scenes: int | None = Field(default=None, ge=1)
    """Only the first scenes; null is all."""
    batch_size: int = Field(default=8, ge=1)
    """Scenes that are sampled together, where the data are voxels."""
    num_panels: int = Field(default=8, ge=0)
    """Scenes that pictures are made of."""
