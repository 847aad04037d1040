"""Validation over all ranks: each batch gives (sum, count) per metric, added in the order of ranks.

Every rank runs the same number of batches, because a sharded model's forward is a collective: a rank with nothing
left repeats the first sample and throws the result away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stageline.config import TrainerConfig
from stageline.errors import TrainingError
from stageline.objectives.step import seeded
from stageline.stage import Stage
from stageline.trainer.interruption import StopRequest
from stageline.trainer.order import load_batches
from stageline.trainer.ranks import Ranks, sum_pairs
from stageline.trainer.task import Task


def validation_lists(num_samples: int, batch_size: int, rank: int, size: int) -> tuple[list[list[int]], int]:
    """(index lists of one rank, how many of them count). All ranks have equally many lists."""
    per_rank = -(-num_samples // size)
    count = -(-per_rank // batch_size)
    own = list(range(rank, num_samples, size))
    lists = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
    return lists + [[0]] * (count - len(lists)), len(lists)


@torch.no_grad()
def run_validation(
    task: Task, model: nn.Module, settings: TrainerConfig, ranks: Ranks, *, seed: int, stop: StopRequest
) -> tuple[dict[str, float], dict[str, float]] | None:
    """(metric -> mean, metric -> how many it is over) of the validation set; the same on every rank.

    A metric that counted nothing is left out. None where a rank was asked to stop: validation may take longer than
    a stopped process has. The model is left in the mode `set_train_mode` gives.
    """
    lists, counted = validation_lists(len(task.val_set), settings.validation_batch_size, ranks.rank, ranks.size)
    loader = load_batches(task.val_set, lists, task.collate, num_workers=settings.num_workers, pin=ranks.is_cuda)
    pairs: list[Mapping[str, tuple[float, float]]] = []
    model.eval()
    try:
        for number, batch in enumerate(loader):
            if ranks.sum([float(bool(stop.reason))])[0]:
                return None
            torch.manual_seed(seeded("validation", seed, ranks.rank, number).initial_seed())
            result = task.validate(model, ranks.fabric.to_device(batch))
            if number < counted:
                pairs.append({name: (float(value), float(count)) for name, (value, count) in result.items()})
    finally:
        task.set_train_mode(model)
    total = sum_pairs(ranks.gather(sum_pairs(pairs)))
    kept = {name: pair for name, pair in total.items() if pair[1] > 0}
    return {name: value / count for name, (value, count) in kept.items()}, {n: pair[1] for n, pair in kept.items()}


def declared_value(metrics: Mapping[str, Any], stage: Stage) -> float:
    """The stage's declared metric among what validation measured."""
    if stage.metric not in metrics:
        raise TrainingError(
            f"stage {stage.name!r} declares the metric {stage.metric!r}, validation measured {sorted(metrics)}",
            remedy="name a measured metric in the family's stages, or mend its `validate`",
        )
    return float(metrics[stage.metric])


def is_better(value: float, best: float | None, stage: Stage) -> bool:
    """Whether a value of the declared metric beats the best so far; nan never does."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value > best if stage.direction == "max" else value < best
