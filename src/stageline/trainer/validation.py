"""Validation over all ranks: each batch gives (sum, count) per metric, added in the order of ranks.

Every rank runs the same number of batches, because a sharded model's forward is a collective: a rank with nothing
left repeats the first sample and throws the result away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from stageline.config import TrainerConfig
from stageline.contract import StageTask
from stageline.data.batches import equal_batches
from stageline.errors import TrainingError
from stageline.objectives.step import ValidationContext, seeded
from stageline.stage import Stage
from stageline.trainer.interruption import StopRequest
from stageline.trainer.order import load_batches
from stageline.trainer.pictures import NUM_SAMPLES, Album
from stageline.trainer.ranks import Ranks, sum_pairs


@dataclass(frozen=True)
class ValidationPlan:
    """The batches of one rank: indices of samples, equally many lists on every rank.

    counted: how many of them count; the rest keep other ranks company and are thrown away.
    """

    batches: list[list[int]]
    counted: int


def plan_validation(
    num_samples: int, key: Callable[[int], Any], batch_size: int, rank: int, size: int
) -> ValidationPlan:
    """Every sample once over all ranks, samples of one key only in a batch.

    num_samples: of the validation set.  key: what must be equal in a batch (`StageTask.validation_key`).
    batch_size: the most samples of a batch.  rank, size: this rank among all.
    """
    order = sorted(range(num_samples), key=key)
    per_rank = [equal_batches(order[one::size], key, batch_size) for one in range(size)]
    own = per_rank[rank]
    count = max(len(batches) for batches in per_rank)
    return ValidationPlan(own + [[0]] * (count - len(own)), len(own))


def run_validation(
    task: StageTask,
    model: nn.Module,
    settings: TrainerConfig,
    ranks: Ranks,
    *,
    seed: int,
    stop: StopRequest,
    album: Album | None = None,
) -> tuple[dict[str, float], dict[str, float]] | None:
    """(metric -> mean, metric -> how many it is over) of the validation set; the same on every rank.

    A metric that counted nothing is left out. None where a rank was asked to stop: validation may take longer than
    a stopped process has. The model is left in the mode `set_train_mode` gives. album: takes pictures of this rank's
    first samples.
    """
    total = _measure(task, model, settings, ranks, seed=seed, stop=stop, few=False, album=album)
    if total is None:
        return None
    kept = {name: pair for name, pair in total.items() if pair[1] > 0}
    return {name: value / count for name, (value, count) in kept.items()}, {n: pair[1] for n, pair in kept.items()}


def check_validation(
    task: StageTask,
    model: nn.Module,
    settings: TrainerConfig,
    ranks: Ranks,
    stage: Stage,
    *,
    seed: int,
    stop: StopRequest,
) -> None:
    """Validate the first and the last batch (with samples of several sizes: the smallest and the largest), for nothing.

    Raises what validation raises, and TrainingError where the stage's metric is not measured. Random numbers that are
    drawn afterwards are the same as without. A request to stop is left to the loop.
    """
    with torch.random.fork_rng(devices=[ranks.device] if ranks.is_cuda else []):
        total = _measure(task, model, settings, ranks, seed=seed, stop=stop, few=True)
    if total is not None:
        declared_value(dict.fromkeys(total, 0.0), stage)


@torch.no_grad()
def _measure(
    task: StageTask,
    model: nn.Module,
    settings: TrainerConfig,
    ranks: Ranks,
    *,
    seed: int,
    stop: StopRequest,
    few: bool,
    album: Album | None = None,
) -> dict[str, tuple[float, float]] | None:
    """Metric -> (sum, count) over all ranks; None where a rank was asked to stop. few: first and last batch only."""
    size = settings.validation_batch_size
    plan = plan_validation(len(task.val_set), task.validation_key, size, ranks.rank, ranks.size)
    numbers = range(0, len(plan.batches), max(1, len(plan.batches) - 1) if few else 1)
    batches = [plan.batches[number] for number in numbers]
    loader = load_batches(task.val_set, batches, task.collate, num_workers=settings.num_workers, pin=ranks.is_cuda)
    pairs: list[Mapping[str, tuple[float, float]]] = []
    model.eval()
    try:
        for number, samples, batch in zip(numbers, batches, loader, strict=True):
            if ranks.sum([float(bool(stop.reason))])[0]:
                return None
            # What a family draws from torch's own generators, against its promise, is at least the same every time.
            ranks.seed_torch(seeded("validation", seed, samples[0]).initial_seed())
            context = ValidationContext(seed, tuple(samples))
            if album is not None and number == 0 and plan.counted:
                shown = min(NUM_SAMPLES, len(samples))
                context = replace(context, num_shown=shown, show=album.of_batch(context.samples))
            result = task.validate(model, ranks.fabric.to_device(batch), context)
            if number < plan.counted:
                pairs.append({name: (float(value), float(count)) for name, (value, count) in result.items()})
    finally:
        task.set_train_mode(model)
    return sum_pairs(ranks.gather(sum_pairs(pairs)))


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
