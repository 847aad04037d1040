"""Configs, picture folders and tiny encoders shared by the data tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stageline.data.prepared import PreparedData, open_prepared
from stageline.families import parse_config
from stageline.families.film_flow.config import FilmFlowConfig
from stageline.verbs.prepare import prepare_data

SMALL: dict[str, Any] = {
    "family": "film_flow",
    "model": {
        "image_size": 32,
        "model_channels": 8,
        "cond_source": "text",
        "vlm_film_config": {"encoder": "stub", "feature_dim": 16},
    },
    "data": {"name": "prompted_trees", "num_train": 3, "num_val": 2},
}


def quiet(done: int, total: int, text: str) -> None:
    """Progress that shows nothing."""
    assert 0 <= done <= total
    assert text


def make_data(config: FilmFlowConfig) -> PreparedData:
    """The prepared data of a config, below its root."""
    return open_prepared(prepare_data(config, quiet).reference)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., FilmFlowConfig]:
    """A small config with dotted overrides; its root is the test's folder."""

    def make(*overrides: str) -> FilmFlowConfig:
        config = parse_config(SMALL, [f"root={tmp_path}", *overrides])
        assert isinstance(config, FilmFlowConfig)
        return config

    return make


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder of pictures and labels: `make(names, size)` fills `<tmp>/<split>/image` and `label`."""

    def make(split: str = "train", names: tuple[str, ...] = ("a", "b"), size: tuple[int, int] = (40, 48)) -> Path:
        root = tmp_path / "pictures" / split
        for number, name in enumerate(names):
            rng = np.random.default_rng([number, len(split)])
            for part in ("image", "label"):
                (root / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(root / "image" / f"{name}.png")
            label = np.zeros(size, dtype=np.uint8)
            label[10:14, 4:36] = 255
            label[10:34, 18:22] = 255
            Image.fromarray(label).save(root / "label" / f"{name}.png")
        return root

    return make
