"""One optimizer step: micro-batches forward and backward, one exchange, one division, one update or none."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stageline.objectives.step import StepContext, seeded
from stageline.trainer.assembly import Parts
from stageline.trainer.gradients import clip, normalise, summing_scale
from stageline.trainer.memory import memory_advice
from stageline.trainer.order import StepPlan
from stageline.trainer.parameters import set_learning_rate
from stageline.trainer.ranks import lost_peers, sum_pairs
from stageline.trainer.schedule import learning_rate_factor

SMALLEST_SCALE = 1.0
"""fp16: an overflow above this loss scale halves the scale and is no fault; at or below it the gradient itself is."""


@dataclass(frozen=True)
class StepResult:
    """What came of a step. fault: why it was skipped, empty if it was not.  counted: whether the skip is a bad step.

    loss: mean over the true weight.  stop: how many ranks were asked to stop.
    """

    loss: float
    parts: Mapping[str, float]
    gradient_norm: float
    learning_rate: float
    fault: str
    counted: bool
    stop: int
    data_seconds: float


@dataclass(frozen=True)
class _Local:
    """One rank's sums over its micro-batches."""

    loss: float
    weight: float
    pairs: Mapping[str, tuple[float, float]]
    data_seconds: float


def run_step(
    parts: Parts,
    plan: StepPlan,
    batches: Iterator[Any],
    *,
    seed: int,
    step: int,
    steps: int,
    log: bool,
    asked: Callable[[], bool],
) -> StepResult:
    """Do the step that follows `step` finished ones.

    batches: this rank's micro-batches in the order of the plan.  log: also gather the loss parts of all ranks.
    asked: whether this process was asked to stop.  Every rank returns the same but data_seconds.
    """
    where = f"step {step + 1}"
    rate = parts.settings.learning_rate * learning_rate_factor(step, steps, parts.settings)
    set_learning_rate(parts.optimizer, rate)
    parts.optimizer.zero_grad(set_to_none=True)
    with memory_advice(parts.settings, where), lost_peers(where):
        local = _run_micro_batches(parts, plan, batches, seed=seed, step=step, steps=steps, log=log)
        total, weight, stop = parts.ranks.sum([local.loss, local.weight, float(asked())])
        loss = total / weight if weight > 0 else math.nan
        norm, fault, counted = math.nan, "", True
        if not math.isfinite(loss):
            fault = f"the loss is {loss}" if weight > 0 else "the batch has no weight"
        else:
            norm = normalise(
                parts.optimizer, parts.ranks, scale=summing_scale(parts.settings, parts.ranks.size), weight=weight
            )
            fault, counted = _gradient_fault(parts, norm)
        if not fault:
            _update(parts, norm)
        parts.optimizer.zero_grad(set_to_none=True)
        pairs = sum_pairs(parts.ranks.gather(local.pairs)) if log else {}
    means = {name: value / count for name, (value, count) in pairs.items() if count > 0}
    return StepResult(loss, means, norm, rate, fault, counted, round(stop), local.data_seconds)


def _run_micro_batches(
    parts: Parts, plan: StepPlan, batches: Iterator[Any], *, seed: int, step: int, steps: int, log: bool
) -> _Local:
    ranks = parts.ranks
    scale = summing_scale(parts.settings, ranks.size)
    sums: list[torch.Tensor] = []
    weight, waited = 0.0, 0.0
    pairs: list[Mapping[str, tuple[float, float]]] = []
    for number, micro in enumerate(plan.micro_batches):
        start = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - start
        context = StepContext(
            step=step,
            progress=step / steps,
            rng=seeded("step", seed, step, ranks.rank, number),
            shared=seeded("shared", seed, step, number),
            micro=number,
            gather=ranks.gather_rows,
        )
        # Dropout and the like draw from torch's own generators.
        ranks.seed_torch(seeded("global", seed, step, ranks.rank, number).initial_seed())
        with parts.hold_sync(number < len(plan.micro_batches) - 1):
            loss = parts.task.loss(parts.model, ranks.fabric.to_device(batch), context)
            ranks.fabric.backward(loss.sum * (0.0 if micro.padding else scale))
        if not micro.padding:
            sums.append(loss.sum.detach().double())
            weight += loss.weight
        if log and not micro.padding:
            pairs.append({name: (float(value), float(count)) for name, (value, count) in loss.parts.items()})
    total = float(torch.stack(sums).sum()) if sums else 0.0
    return _Local(total, weight, sum_pairs(pairs), waited)


def _gradient_fault(parts: Parts, norm: float) -> tuple[str, bool]:
    """(why the gradient cannot be used, whether that is a bad step)."""
    if math.isfinite(norm):
        return "", True
    scaler = parts.ranks.scaler
    if scaler is None:
        return f"the gradient norm is {norm}", True
    scale = scaler.get_scale()
    scaler.update()
    return f"the gradient norm is {norm} at loss scale {scale:g}", scale <= SMALLEST_SCALE


def _update(parts: Parts, norm: float) -> None:
    clip(parts.optimizer, norm, parts.settings.gradient_clip_val)
    parts.step_optimizer.step()
    if parts.ema is not None:
        parts.ema.update(parts.own)
