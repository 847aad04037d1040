"""A loop for scenes and networks of one's own, in Python: ShortCut over whole scenes, on one process or several.

What comes of it has no identity: no run, no checkpoint, nothing that is reused or continued; the caller keeps the
weights. Stages of stageline (`stageline train global_flow`) have all that. Source: the scene-level ShortCut guide.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from stageline.errors import ConfigError, TrainingError
from stageline.families.sparse_structure.data.order import SceneSampler
from stageline.families.sparse_structure.data.scene_dataset import scene_collate_fn
from stageline.families.sparse_structure.shortcut import ShortCut, ShortCutLoss


@dataclass(frozen=True)
class Epoch:
    """What one pass over the scenes came to, over all processes.

    number: from 0.  loss: mean over scenes.  average_objects: per scene.  steps: of the optimizer, since the beginning.
    flow_matching_loss, self_consistency_loss: means over the scenes that took this branch, None where none did.
    """

    number: int
    loss: float
    flow_matching_loss: float | None
    self_consistency_loss: float | None
    average_objects: float
    steps: int


def train_scenes(
    dataset: Dataset[Any],
    reverse_fn: nn.Module,
    *,
    num_epochs: int = 100,
    learning_rate: float = 1e-4,
    weight_decay: float = 0.01,
    grad_clip: float = 1.0,
    accumulate_scenes: int = 1,
    num_workers: int = 0,
    seed: int = 0,
    device: str | torch.device = "cpu",
    objective: Mapping[str, Any] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> ShortCut:
    """Train a network on scenes with AdamW at a constant rate; returns the ShortCut around it, in eval mode, to sample.

    dataset: `SceneDataset`, or anything with a length whose items are such scenes; `object_counts()` groups scenes of
        one size where it is there.  reverse_fn: the network, trained in place.
    num_epochs: passes over the scenes.  learning_rate, weight_decay: of AdamW, for parameters that require gradients;
        a single number, as the factor of a weighted dual backbone, does not decay.
    grad_clip: largest norm of the gradient; 0 does not clip.  accumulate_scenes: per process and step.
    num_workers: loader processes.  seed: of order and draws.  device: where it trains.
    objective: further arguments of `ShortCut`; `batch_mode` is on.  on_epoch: called after each epoch.

    Where torch.distributed is initialised each process takes its own scenes and gradients are averaged over processes:
    a step is a mean over accumulate_scenes x processes scenes, each of weight 1. TrainingError for a loss that is not
    finite, before it reaches a weight.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if _is_distributed() else (0, 1)
    num_scenes = len(dataset)  # type: ignore[arg-type]  # said above
    numbers = {"num_epochs": num_epochs, "accumulate_scenes": accumulate_scenes, "scenes of dataset": num_scenes}
    faults = [f"{name}: {number}, at least 1" for name, number in numbers.items() if number < 1]
    rates = {"learning_rate": learning_rate, "weight_decay": weight_decay, "grad_clip": grad_clip}
    faults += [f"{name}: {number}, at least 0" for name, number in rates.items() if not number >= 0]
    if (objective or {}).get("batch_mode", True) is not True:
        faults.append("objective.batch_mode is off, and a scene is trained as a whole here")
    trained = [parameter for parameter in reverse_fn.parameters() if parameter.requires_grad]
    faults += [] if trained else ["no parameter of reverse_fn requires a gradient"]
    if faults:
        raise ConfigError(f"train_scenes: {'; '.join(faults)}", remedy="mend them")
    reverse_fn.to(device)
    model = ShortCut(reverse_fn, **{"seed_or_generator": seed + rank, **(objective or {}), "batch_mode": True})
    # Buffers are left alone: copying them anew before the target's passes would spoil the student's graph.
    network: nn.Module = reverse_fn if world == 1 else DistributedDataParallel(reverse_fn, broadcast_buffers=False)
    counts = dataset.object_counts() if hasattr(dataset, "object_counts") else [1] * num_scenes
    sampler = SceneSampler(counts, rank=rank, world_size=world, seed=seed)
    loader = DataLoader(dataset, batch_size=1, sampler=sampler, collate_fn=scene_collate_fn, num_workers=num_workers)
    # A single number is no weight to keep small: the factor of the scene's branch would be drawn to zero.
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim()]},
        {"params": [p for p in trained if not p.dim()], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)
    network.train()
    done = steps = 0
    for epoch in range(num_epochs):
        sampler.set_epoch(epoch)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch)
        sums = torch.zeros(len(_SUMS), dtype=torch.float64)
        for scenes in _grouped(loader, accumulate_scenes):
            optimizer.zero_grad(set_to_none=True)
            for number, scene in enumerate(scenes, 1):
                latents, conditions = (_moved(scene[part], device) for part in ("latents", "conditionals"))
                with _synchronised(network, number == len(scenes)):
                    draws = model.sample_draws(latents, reverse_fn=network, progress=done / (num_epochs * len(sampler)))
                    found = model.loss_terms(latents, draws, reverse_fn=network, **conditions)
                    _refuse_strange(found.total, scene, epoch)
                    (found.total / len(scenes)).backward()  # type: ignore[no-untyped-call]
                sums += _measured(found, scene["num_objects"])
                done += 1
            if grad_clip:
                nn.utils.clip_grad_norm_(trained, grad_clip)
            optimizer.step()
            steps += 1
        if on_epoch is not None:
            on_epoch(_summed(epoch, sums, steps, device, world))
    return model.eval()


_SUMS = ("scenes", "loss", "objects", "fm", "num_fm", "sc", "num_sc")


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _grouped(loader: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The scenes of one optimizer step after the other; of the last one perhaps fewer."""
    scenes = iter(loader)
    while group := list(itertools.islice(scenes, size)):
        yield group


def _moved(values: Mapping[str, Any], device: str | torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()}


def _synchronised(network: nn.Module, is_last: bool) -> AbstractContextManager[Any]:
    """Gradients are averaged over processes once a step, with the last scene."""
    if is_last or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    waiting: AbstractContextManager[Any] = network.no_sync()
    return waiting


def _refuse_strange(loss: Tensor, scene: Mapping[str, Any], epoch: int) -> None:
    """TrainingError for a loss that is not finite: after one step of it no weight would be a number any more."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss of scene {scene.get('scene_id', '')!r} is {value} in epoch {epoch}; no weight has seen it",
            remedy="lower learning_rate or grad_clip, and look for values out of range in this scene",
        )


def _measured(found: ShortCutLoss, num_objects: int) -> Tensor:
    """What a scene adds to `_SUMS`."""
    parts = [found.parts[f"{part}_loss"] for part in ("flow_matching", "self_consistency")]
    numbers = [1.0, found.total.detach(), num_objects, *(value for part in parts for value in part)]
    return torch.tensor([float(number) for number in numbers], dtype=torch.float64)


def _summed(epoch: int, sums: Tensor, steps: int, device: str | torch.device, world: int) -> Epoch:
    """Sums of all processes as means."""
    if world > 1:
        own = sums.to(device, torch.float32)
        dist.all_reduce(own)
        sums = own.cpu()
    s = dict(zip(_SUMS, sums.tolist(), strict=True))
    return Epoch(
        number=epoch,
        loss=s["loss"] / s["scenes"],
        flow_matching_loss=s["fm"] / s["num_fm"] if s["num_fm"] else None,
        self_consistency_loss=s["sc"] / s["num_sc"] if s["num_sc"] else None,
        average_objects=s["objects"] / s["scenes"],
        steps=steps,
    )
