"""Learning rate: closed form at the ends, limits, and torch's own one-cycle as the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stageline.config import TrainerConfig
from stageline.trainer.schedule import learning_rate_factor


def factors(steps: int, **settings) -> list[float]:
    config = TrainerConfig(**settings)
    return [learning_rate_factor(step, steps, config) for step in range(steps)]


def test_constant_is_one():
    assert factors(5, schedule="constant") == [1.0] * 5


def test_warm_up_rises_in_equal_parts_to_the_peak():
    found = factors(100, schedule="constant", warmup_fraction=0.1)
    assert found[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert set(found[10:]) == {1.0}


def test_cosine_by_hand():
    found = factors(8, schedule="cosine", final_lr_fraction=0.2)
    assert found[0] == 1.0
    assert found[4] == pytest.approx(0.6)
    assert found[2] == pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)


def test_linear_by_hand():
    assert factors(4, schedule="linear", final_lr_fraction=0.5) == pytest.approx([1.0, 0.875, 0.75, 0.625])


@given(
    st.integers(1, 200),
    st.sampled_from(["constant", "cosine", "linear", "onecycle"]),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_factors_stay_in_range(steps, schedule, warmup, final):
    found = factors(steps, schedule=schedule, warmup_fraction=warmup, final_lr_fraction=final)
    assert all(0 <= factor <= 1 + 1e-12 and math.isfinite(factor) for factor in found)


@pytest.mark.parametrize(("steps", "rising"), [(100, 0.3), (37, 0.25), (10, 0.3)])
def test_one_cycle_equals_torch(steps, rising):
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.AdamW([parameter], lr=0.5)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=steps, pct_start=rising)
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step()
        if len(expected) < steps:
            reference.step()
    settings = {"schedule": "onecycle", "warmup_fraction": 0.0 if rising == 0.3 else rising}
    assert factors(steps, **settings) == pytest.approx(expected, rel=1e-9, abs=1e-9)
