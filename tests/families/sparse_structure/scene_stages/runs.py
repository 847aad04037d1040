"""Tiny runs of the family, through the verbs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stageline.checkpoint.layout import CheckpointRef, resolve
from stageline.families import parse_config, raw_preset
from stageline.families.sparse_structure.config import FAMILY_CONFIG, STAGES, SparseStructureConfig
from stageline.stage import stage_config
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

SMALL = (
    *("data.num_train=4", "data.num_val=2", "data.num_test=2", "trainer.batch_size=2", "trainer.max_steps=2"),
    *("trainer.accelerator=cpu", "trainer.tensorboard=false"),
)


def small(root: Path | str, *overrides: str, run: str = "small") -> Any:
    """The preset `tiny`, shrunk."""
    raw = raw_preset("sparse_structure", "tiny")
    raw.pop("stage_overrides")
    return parse_config(raw, [*SMALL, f"root={root}", f"run={run}", *overrides])


def at_stage(config: SparseStructureConfig, stage: str) -> SparseStructureConfig:
    """The config as a stage sees it."""
    return stage_config(config, STAGES[stage])


def trained(config: Any, *stages: str) -> dict[str, CheckpointRef]:
    """Stages, trained in order: stage -> the last checkpoint of each."""
    data = str(prepare_data(config).reference)
    names = stages or [stage.name for stage in FAMILY_CONFIG.selected(config)]
    found = {name: train_stage(config, name, data=data) for name in names}
    return {name: resolve(str(result.reference), prefer="last") for name, result in found.items()}


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether both hold the same bits under the same names."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
