"""Learning rate: closed form at the ends, limits, and torch's own one-cycle as the reference."""

from __future__ import annotations

import math
import typing

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


def test_warm_up_in_steps_is_warm_up_in_parts():
    for schedule in ("constant", "cosine", "linear", "polynomial", "onecycle"):
        in_steps = factors(100, schedule=schedule, warmup_steps=10)
        assert in_steps == factors(100, schedule=schedule, warmup_fraction=0.1)


def test_a_warm_up_longer_than_the_stage_never_reaches_the_peak():
    assert factors(3, schedule="cosine", warmup_steps=4) == [0.25, 0.5, 0.75]
    assert max(factors(3, schedule="onecycle", warmup_steps=4)) == 1.0


def test_constant_with_warmup_is_constant():
    assert factors(9, schedule="constant_with_warmup", warmup_steps=3) == factors(
        9, schedule="constant", warmup_steps=3
    )


def test_restarts_are_so_many_cosines():
    one = factors(4, schedule="cosine", final_lr_fraction=0.2)
    assert factors(12, schedule="cosine_with_restarts", schedule_cycles=3, final_lr_fraction=0.2) == pytest.approx(
        3 * one
    )
    assert factors(7, schedule="cosine_with_restarts") == factors(7, schedule="cosine")


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_polynomial_equals_torch(power):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(()))], lr=0.5)
    reference = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=20, power=power)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step()
        reference.step()
    assert factors(20, schedule="polynomial", schedule_power=power) == pytest.approx(expected, rel=1e-9)


def test_polynomial_ends_at_the_share_of_the_peak():
    assert factors(2, schedule="polynomial", schedule_power=2.0, final_lr_fraction=0.2) == pytest.approx([1.0, 0.4])
    linear = factors(9, schedule="linear", final_lr_fraction=0.3)
    assert factors(9, schedule="polynomial", final_lr_fraction=0.3) == pytest.approx(linear)


@given(
    st.integers(1, 200),
    st.sampled_from(typing.get_args(TrainerConfig.model_fields["schedule"].annotation)),
    st.one_of(
        st.fixed_dictionaries({"warmup_fraction": st.floats(0, 1)}),
        st.fixed_dictionaries({"warmup_steps": st.integers(0, 300)}),
    ),
    st.fixed_dictionaries(
        {
            "final_lr_fraction": st.floats(0, 1),
            "schedule_cycles": st.integers(1, 9),
            "schedule_power": st.floats(0.1, 9),
        }
    ),
)
def test_factors_stay_in_range(steps, schedule, warmup, shape):
    found = factors(steps, schedule=schedule, **warmup, **shape)
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
