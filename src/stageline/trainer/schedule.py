"""Learning rate as a closed-form function of the step: no state, so nothing to save and nothing to lose."""

from __future__ import annotations

import math

from stageline.config import TrainerConfig

ONECYCLE_START = 25.0
"""One-cycle: peak / first learning rate (Smith and Topin, arXiv:1708.07120; torch's OneCycleLR has the same)."""
ONECYCLE_END = 1e4
"""One-cycle: first / last learning rate (as above)."""
ONECYCLE_WARMUP = 0.3
"""One-cycle: share of rising steps where the config gives none (as above)."""


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2


def learning_rate_factor(step: int, steps: int, settings: TrainerConfig) -> float:
    """Factor in [0, 1] on the peak learning rate for one step.

    step: optimizer steps finished before, in [0, steps).
    steps: optimizer steps of the whole stage.
    settings: `schedule` and what goes with it.

    Warm-up takes W = `warmup_steps`, or round(`warmup_fraction` * steps), steps; the n-th of them has n / W of the
    peak. The others then run over the rest and would reach `final_lr_fraction` at `steps`, cosine_with_restarts from
    the peak again `schedule_cycles` times. onecycle rises and falls by cosines and has its own ends.
    """
    if settings.schedule == "onecycle":
        rising = min(1.0, settings.warmup_steps / steps) or settings.warmup_fraction or ONECYCLE_WARMUP
        return _onecycle_factor(step, steps, rising)
    warmup = settings.warmup_steps or round(settings.warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / warmup
    fraction = (step - warmup) / max(1, steps - warmup)
    end = settings.final_lr_fraction
    if settings.schedule == "cosine":
        return _cosine(1.0, end, fraction)
    if settings.schedule == "cosine_with_restarts":
        return _cosine(1.0, end, settings.schedule_cycles * fraction % 1.0)
    if settings.schedule == "linear":
        return 1.0 - (1.0 - end) * fraction
    if settings.schedule == "polynomial":
        return float(end + (1.0 - end) * (1.0 - fraction) ** settings.schedule_power)
    assert settings.schedule in ("constant", "constant_with_warmup"), settings.schedule
    return 1.0


def _onecycle_factor(step: int, steps: int, rising: float) -> float:
    low = 1.0 / ONECYCLE_START
    top = rising * steps - 1.0
    if step <= top:
        return _cosine(low, 1.0, step / top) if top > 0 else 1.0
    return _cosine(1.0, low / ONECYCLE_END, (step - top) / max(1e-9, steps - 1 - top))
