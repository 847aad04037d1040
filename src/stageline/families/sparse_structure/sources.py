"""Where a run's scenes come from, as its config says, and the splits that its stages read; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stageline.data.splits import Split
from stageline.families.sparse_structure.data.origin import SceneSource

if TYPE_CHECKING:
    from stageline.families.sparse_structure.config import SparseStructureConfig
    from stageline.stage import Stage


def source_of(config: SparseStructureConfig) -> SceneSource:
    """The source of all splits. config: of the run or a stage."""
    data, model = config.data, config.model
    weights = config.objective.loss_weights or {}
    tokens, channels = model.tokens, model.channels
    is_latents = data.name == "latents"
    return SceneSource(
        kind=data.name,
        folder=None if data.data_root is None else Path(data.data_root),
        counts={"train": data.num_train, "val": data.num_val, "test": data.num_test},
        seed=config.seed,
        num_objects=data.num_objects,
        styles=data.styles,
        resolution=model.resolution,
        fill=data.fill,
        modalities={name: (tokens[name], channels[name]) for name in model.modalities} if is_latents else {},
        zero_filled=tuple(name for name in model.pose if weights.get(name, 1.0) == 0.0) if is_latents else (),
        allow_extra=data.allow_extra,
        cond_channels=model.cond_channels if is_latents else None,
    )


def splits(config: SparseStructureConfig, stage: Stage) -> tuple[Split, ...]:
    """What a stage reads: scenes to train on and for validation."""
    del stage
    source = source_of(config)
    return source.split("train"), source.split("val")


def evaluation_splits(config: SparseStructureConfig) -> tuple[Split, ...]:
    """What an evaluation reads: its scenes, and those of training, whose distance is the floor."""
    source = source_of(config)
    return source.split(config.evaluate.split), source.split("train")


def num_samples(config: SparseStructureConfig, stage: Stage, prepared: Mapping[str, Any]) -> int | None:
    """Training samples of one epoch: objects in `shape_vae`, scenes in the other stages."""
    del config
    number = prepared.get("splits", {}).get("train", {}).get("objects" if stage.name == "shape_vae" else "rows")
    return number if isinstance(number, int) else None
