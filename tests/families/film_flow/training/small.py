"""Small configs of film_flow, and models whose FiLM heads say something."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch

from stageline.contract import Row, RowKey
from stageline.families import parse_config
from stageline.families.film_flow.config import STAGES, FilmFlowConfig
from stageline.families.film_flow.config.presets import PRESETS
from stageline.families.film_flow.model.construction import build_model
from stageline.families.film_flow.model.network import FilmFlowModel
from stageline.stage import stage_config

SMALL = {
    "model.image_size": 32,
    "data.image_size": 32,
    "data.num_train": 6,
    "data.num_val": 3,
    "trainer.batch_size": 2,
    "trainer.accelerator": "cpu",
    "trainer.tensorboard": False,
    "evaluate.num_panels": 0,
}
"""Pictures of an evaluation cost as much as the rest of it: who looks at them asks for them."""


def make_config(root: Path | str = ".", **dotted: Any) -> FilmFlowConfig:
    """The tiny preset made smaller; dotted keys with `__` for the dot."""
    keys = {**SMALL, "root": str(root), **{key.replace("__", "."): value for key, value in dotted.items()}}
    words = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
    config = parse_config(copy.deepcopy(dict(PRESETS["tiny"])), words)
    assert isinstance(config, FilmFlowConfig)
    return config


def at_stage(config: FilmFlowConfig, stage: str) -> FilmFlowConfig:
    return stage_config(config, STAGES[stage])


def kick(model: FilmFlowModel, seed: int = 0) -> FilmFlowModel:
    """Heads whose last layer is N(0, 0.3): FiLM then changes the output."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.film.named_parameters()):
            if ".fc2." in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return model


def kicked_model(config: FilmFlowConfig, stage: str = "film") -> FilmFlowModel:
    return kick(build_model(at_stage(config, stage))).eval()


class Kept:
    """What an evaluation emits. stop_at: how many rows it may emit before it is interrupted."""

    in_full = False

    def __init__(self, stop_at: int | None = None) -> None:
        self.rows: dict[RowKey, dict[str, Any]] = {}
        self.pictures: dict[str, Any] = {}
        self.stop_at = stop_at

    def __call__(self, row: Row, pictures: Any = None, files: Any = None) -> None:
        if len(self.rows) == self.stop_at:
            raise KeyboardInterrupt
        key = row["id"], row["mode"]
        assert key not in self.rows
        self.rows[key] = json.loads(json.dumps(row))
        self.pictures |= pictures or {}
