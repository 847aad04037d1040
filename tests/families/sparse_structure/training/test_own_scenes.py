"""Data sets and networks of a user's own, trained in Python."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stageline.config import TrainerConfig
from stageline.errors import ConfigError
from stageline.families.sparse_structure.data.scene_dataset import SceneDataset
from stageline.families.sparse_structure.shortcut import ShortCut
from stageline.verbs.train.scenes import train_scenes

CENTRES = {"shape": 1.5, "6drotation_normalized": -1.0, "translation": 0.5, "scale": 2.0}


class Points(SceneDataset):
    """Scenes whose latents are one point each, with a condition nobody needs; read from no file."""

    def _list_scene_ids(self) -> list[str]:
        return [f"scene-{number}" for number in range(6)]

    def _load_scene_latents(self, scene_id: str) -> dict[str, Tensor]:
        count = 2 + int(scene_id[-1]) % 3
        return {name: torch.full((count, 1, 2), centre) for name, centre in CENTRES.items()}

    def _load_scene_conditionals(self, scene_id: str) -> dict[str, Any]:
        return {"cond": torch.ones(1, 1, 2)}

    def _load_scene_metadata(self, scene_id: str) -> dict[str, Any]:
        return {}


class Guided(nn.Module):
    """Velocities that lead to a learned point; a frozen factor is part of it. The seed's signature."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.ParameterDict({name: nn.Parameter(torch.zeros(2)) for name in CENTRES})
        self.factor = nn.Parameter(torch.ones(()), requires_grad=False)
        self.asked: list[tuple[int, int]] = []

    def forward(self, x_t: dict[str, Tensor], t: Tensor, cond: Tensor, d: Tensor | None = None) -> dict[str, Tensor]:
        assert d is not None
        self.asked.append((len(x_t["shape"]), len(set(t.tolist()))))
        left = (1 - t / 1000).clamp_min(1e-3)[:, None, None]
        return {name: self.factor * (self.points[name] - x) / left for name, x in x_t.items()}


SETTINGS = TrainerConfig(
    batch_size=1,
    accumulate_grad_batches=3,
    max_steps=60,
    learning_rate=0.1,
    weight_decay=0.0,
    use_ema=False,
    accelerator="cpu",
    tensorboard=False,
)


def test_a_network_of_ones_own_learns_scenes_of_ones_own(tmp_path: Path) -> None:
    """The optimum is known: the point that the data are."""
    network, scenes = Guided(), Points(tmp_path)
    shortcut = ShortCut(network, batch_mode=True, t_d_sampling="grid", anchor_smallest_step=True)
    result = train_scenes(scenes, network, settings=SETTINGS, shortcut=shortcut)
    assert (result.step, result.final, result.reference) == (60, True, "")
    assert math.isfinite(result.metrics["val_loss"])
    for name, centre in CENTRES.items():
        torch.testing.assert_close(network.points[name].detach(), torch.full((2,), centre), atol=0.1, rtol=0)
    assert float(network.factor) == 1.0
    assert {times for _, times in network.asked} == {1}, "one time for all objects of a scene"
    assert {objects for objects, _ in network.asked} == {2, 3, 4}


def test_the_same_seed_trains_the_same_network(tmp_path: Path) -> None:
    ends = []
    for seed in (1, 1, 2):
        network = Guided()
        train_scenes(Points(tmp_path), network, settings=SETTINGS.model_copy(update={"max_steps": 3}), seed=seed)
        ends.append(torch.cat([point.detach() for point in network.points.values()]))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_several_scenes_are_no_batch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a scene is a batch by itself"):
        train_scenes(Points(tmp_path), Guided(), settings=SETTINGS.model_copy(update={"batch_size": 2}))
