"""The loop for scenes and networks of one's own: equal to the naive one, on one process and on two."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import Dataset

from stageline.errors import ConfigError, TrainingError
from stageline.families.sparse_structure.data.order import SceneSampler
from stageline.families.sparse_structure.shortcut import ShortCut
from stageline.families.sparse_structure.train_scenes import Epoch, train_scenes

OBJECTIVE: dict[str, Any] = {"self_consistency_prob": 0.5, "t_d_sampling": "grid", "anchor_smallest_step": True}
LENGTHS = (2, 3, 5, 2)
"""Objects of the scenes."""


class Scenes(Dataset[Any]):
    """Scenes of one modality with one condition for all objects."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def __len__(self) -> int:
        return len(LENGTHS)

    def object_counts(self) -> list[int]:
        return list(LENGTHS)

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __getitem__(self, item: Any, /) -> Any:
        rng = torch.Generator().manual_seed(item)
        latents = {"shape": torch.randn(LENGTHS[item], 4, 2, generator=rng)}
        conditions = {"cond": torch.randn(1, 3, generator=rng), "word": "kept"}
        return {"latents": latents, "conditionals": conditions, "num_objects": LENGTHS[item], "scene_id": str(item)}


class Network(nn.Module):
    """As the guide has them: `forward(x_t, t, cond, d=None)`, with a part that does not train."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.fixed = nn.Linear(2 + 3 + 2, 2), nn.Linear(2, 2).requires_grad_(False)

    def forward(self, x_t: Any, t: Tensor, cond: Tensor, d: Tensor, word: str) -> dict[str, Tensor]:
        assert word == "kept"
        assert torch.equal(t, t[:1].expand(len(t)))
        told = torch.cat([cond.expand(len(t), -1), t[:, None] / 1000, d[:, None] / 1000], -1)
        x = x_t["shape"]
        return {"shape": self.fixed(x) + self.layer(torch.cat([x, told[:, None].expand(*x.shape[:2], -1)], -1))}


def naive(network: nn.Module, groups: list[list[int]], models: list[ShortCut], grad_clip: float) -> None:
    """Steps over groups of scenes, one after the other; scene n of a group is drawn by model n modulo their number."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    for group in groups:
        losses = []
        for number, item in enumerate(group):
            scene = Scenes()[item]
            losses.append(models[number % len(models)].loss(scene["latents"], **scene["conditionals"])[0])
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        if grad_clip:
            nn.utils.clip_grad_norm_(trained, grad_clip)
        optimizer.step()


def order_of(epoch: int, rank: int = 0, world: int = 1) -> list[int]:
    sampler = SceneSampler(LENGTHS, rank=rank, world_size=world, seed=3)
    sampler.set_epoch(epoch)
    return list(sampler)


def settings(grad_clip: float) -> dict[str, Any]:
    return {"learning_rate": 1e-2, "weight_decay": 0.1, "grad_clip": grad_clip, "seed": 3, "objective": OBJECTIVE}


@pytest.mark.parametrize("grad_clip", [0.5, 0.0])
def test_it_is_the_naive_loop_over_mean_losses_of_scenes(grad_clip: float) -> None:
    """Three scenes a step, the last step of an epoch one; a scene weighs 1 whatever its number of objects."""
    network, other, scenes = Network(), Network(), Scenes()
    seen: list[Epoch] = []
    model = train_scenes(
        scenes, network, num_epochs=2, accumulate_scenes=3, on_epoch=seen.append, **settings(grad_clip)
    )
    groups = [order[at : at + 3] for order in (order_of(0), order_of(1)) for at in (0, 3)]
    naive(other, groups, [ShortCut(other, batch_mode=True, seed_or_generator=3, **OBJECTIVE)], grad_clip)
    assert_close(dict(network.state_dict()), dict(other.state_dict()), rtol=1e-6, atol=1e-7)
    assert torch.equal(network.fixed.weight, Network().fixed.weight)
    assert not torch.equal(network.layer.weight, Network().layer.weight)
    assert scenes.epochs == [0, 1]
    assert [(epoch.number, epoch.steps, epoch.average_objects) for epoch in seen] == [(0, 2, 3.0), (1, 4, 3.0)]
    for epoch in seen:
        parts = [loss for loss in (epoch.flow_matching_loss, epoch.self_consistency_loss) if loss is not None]
        assert min(parts) <= epoch.loss <= max(parts)
    assert model.batch_mode == True  # noqa: E712  # as the guide asks
    assert model.generate({"shape": (3, 4, 2)}, "cpu", cond=torch.zeros(1, 3), word="kept")["shape"].shape == (3, 4, 2)


class Weighted(Network):
    """Its answer times one number, as the scene's branch of a weighted dual backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))

    def forward(self, x_t: Any, t: Tensor, cond: Tensor, d: Tensor, word: str) -> dict[str, Tensor]:
        return {"shape": super().forward(x_t, t, cond, d, word)["shape"] + 0 * self.factor}


def test_a_single_number_does_not_decay() -> None:
    network = Weighted()
    before = network.layer.weight.detach().clone()
    train_scenes(Scenes(), network, num_epochs=1, **settings(0.0) | {"weight_decay": 50.0})
    assert network.factor == 1
    assert network.layer.weight.norm() < 0.5 * before.norm()


class Broken(Scenes):
    def __getitem__(self, item: Any, /) -> Any:
        scene = super().__getitem__(item)
        return {**scene, "latents": {"shape": scene["latents"]["shape"] * (1e30 if item == 2 else 1.0)}}


def test_a_loss_that_is_no_number_ruins_no_weight_and_names_its_scene() -> None:
    network = Network()
    with pytest.raises(TrainingError, match="loss of scene '2' is inf in epoch 0"):
        train_scenes(Broken(), network, num_epochs=2, **settings(1.0))
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
    model = train_scenes(Scenes(), network, num_epochs=1, **settings(1.0))
    assert not model.training, "it is handed over to be sampled from"
    assert not network.training


def test_what_cannot_be_trained_is_told_at_once() -> None:
    with pytest.raises(
        ConfigError, match=r"num_epochs: 0.*accumulate_scenes: 0.*grad_clip: -1.*batch_mode is off.*requires a"
    ):
        train_scenes(
            Scenes(),
            Network().requires_grad_(False),
            num_epochs=0,
            accumulate_scenes=0,
            grad_clip=-1.0,  # it would climb
            objective={"batch_mode": False},
        )


def train_as(rank: int, folder: str) -> None:
    """One of two ranks."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    network = Network()
    seen: list[Epoch] = []
    train_scenes(Scenes(), network, num_epochs=2, accumulate_scenes=2, on_epoch=seen.append, **settings(0.0))
    torch.save({"state": network.state_dict(), "seen": [vars(e) for e in seen]}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_take_a_step_together(tmp_path: Path) -> None:
    """Two ranks with two scenes each are the naive loop over all four, each drawn by its own rank, coins alike."""
    torch.multiprocessing.spawn(train_as, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert_close(ranks[0]["state"], ranks[1]["state"], rtol=0, atol=0)
    assert ranks[0]["seen"] == ranks[1]["seen"]
    assert [epoch["average_objects"] for epoch in ranks[0]["seen"]] == [3.0, 3.0]
    other = Network()
    # Coins come from rank 0's seed and count up with each loss, on both ranks alike.
    models = [
        ShortCut(other, batch_mode=True, seed_or_generator=3 + rank, sync_decisions=True, **OBJECTIVE)
        for rank in (0, 1)
    ]
    for model in models:
        model._decision_seed = 3
    orders = [[order_of(epoch, rank, 2) for rank in (0, 1)] for epoch in (0, 1)]
    groups = [list(itertools.chain(*zip(*pair, strict=True))) for pair in orders]
    naive(other, groups, models, 0.0)
    assert_close(ranks[0]["state"], dict(other.state_dict()), rtol=1e-5, atol=1e-6)
