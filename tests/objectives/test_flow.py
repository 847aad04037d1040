"""The straight path, its bridge and its training times: closed forms, limits and round trips."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from stageline.objectives.flow import (
    TIME_HIGH,
    TIME_LOW,
    binary_state,
    bridge_state,
    bridge_velocity,
    endpoint_of,
    sample_times,
    straight_path,
    straight_velocity,
    velocity_to,
)


def points(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x_0 = torch.randn(5, 1, 4, 3, generator=rng, dtype=torch.float64)
    x_1 = torch.rand(5, 1, 4, 3, generator=rng, dtype=torch.float64) * 2 - 1
    return x_0, x_1, torch.tensor([0.0, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64)


def test_the_path_starts_at_noise_and_ends_at_data() -> None:
    x_0, x_1, _ = points()
    assert torch.equal(straight_path(x_0, x_1, torch.zeros(5)), x_0)
    assert torch.equal(straight_path(x_0, x_1, torch.ones(5)), x_1)


def test_the_velocity_is_the_derivative_of_the_path() -> None:
    x_0, x_1, t = points()
    step = 1e-6
    moved = straight_path(x_0, x_1, t + step)
    assert_close((moved - straight_path(x_0, x_1, t)) / step, straight_velocity(x_0, x_1), atol=1e-6, rtol=0)


def test_a_spread_around_the_data_is_left_at_the_end() -> None:
    """With sigma_min the path ends on x_1 + sigma_min x_0, and is straight from every time to there."""
    x_0, x_1, t = points()
    end = straight_path(x_0, x_1, torch.ones(5), 0.1)
    assert_close(end, x_1 + 0.1 * x_0)
    assert_close(endpoint_of(straight_path(x_0, x_1, t, 0.1), straight_velocity(x_0, x_1, 0.1), t), end)


def test_endpoint_and_velocity_are_inverses() -> None:
    x_0, x_1, t = points()
    x_t = straight_path(x_0, x_1, t)
    assert_close(endpoint_of(x_t, straight_velocity(x_0, x_1), t), x_1)
    assert_close(endpoint_of(x_t, velocity_to(x_t, x_1, t), t), x_1)
    velocity = torch.randn(x_0.shape, dtype=torch.float64)
    assert_close(velocity_to(x_t, endpoint_of(x_t, velocity, t), t), velocity)


def test_the_bridge_without_spread_is_the_straight_path() -> None:
    x_0, x_1, t = points()
    mean = straight_path(x_0, x_1, t)
    assert torch.equal(bridge_state(mean, t, 0.0, torch.ones_like(mean)), mean)
    inner = t.clamp(0.1, 0.9)
    on_path = straight_path(x_0, x_1, inner)
    assert_close(bridge_velocity(x_0, x_1, on_path, inner), straight_velocity(x_0, x_1))


def test_the_bridge_velocity_keeps_the_bridge_spread() -> None:
    """Transported from t = 0.2 to 0.8 by its own velocity, a point at +1 sigma stays at +1 sigma."""
    sigma, steps = 0.25, 4000
    x_0, x_1 = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    t, end = 0.2, 0.8
    one = torch.ones(1, 1, dtype=torch.float64)
    x = bridge_state(straight_path(x_0, x_1, torch.tensor([t])), torch.tensor([t], dtype=torch.float64), sigma, one)
    for k in range(steps):
        now = torch.tensor([t + (k + 0.5) * (end - t) / steps], dtype=torch.float64)
        x = x + (end - t) / steps * bridge_velocity(x_0, x_1, x, now)
    assert_close(x.item(), end + sigma * math.sqrt(end * (1 - end)), atol=1e-3, rtol=0)


def test_the_bridge_has_the_stated_variance() -> None:
    noise = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([0.3, 0.5], dtype=torch.float64)
    spread = bridge_state(torch.zeros_like(noise), t, 0.7, noise).std(dim=1)
    assert_close(spread, 0.7 * torch.sqrt(t * (1 - t)), atol=3e-3, rtol=0)


def test_stratified_times_hit_every_interval_once() -> None:
    for num in (1, 2, 7, 64):
        t = sample_times(num, "stratified", torch.Generator().manual_seed(num))
        assert sorted((t * num).floor().clamp(max=num - 1).int().tolist()) == list(range(num))


def test_stratified_times_are_in_random_order() -> None:
    t = sample_times(64, "stratified", torch.Generator().manual_seed(0))
    assert not torch.equal(t, t.sort().values)


@pytest.mark.parametrize("sampling", ["stratified", "uniform", "logit_normal"])
def test_times_are_a_function_of_the_generator_and_stay_inside(sampling: str) -> None:
    def draw() -> torch.Tensor:
        return sample_times(5000, sampling, torch.Generator().manual_seed(3))  # type: ignore[arg-type]

    t = draw()
    assert torch.equal(t, draw())
    assert t.min() >= torch.tensor(TIME_LOW)
    assert t.max() <= torch.tensor(TIME_HIGH)
    assert abs(t.mean().item() - 0.5) < 0.02


def test_uniform_and_logit_normal_have_their_own_spread() -> None:
    uniform = sample_times(50_000, "uniform", torch.Generator().manual_seed(0))
    normal = sample_times(50_000, "logit_normal", torch.Generator().manual_seed(0))
    assert_close(uniform.std().item(), 1 / math.sqrt(12), atol=5e-3, rtol=0)
    assert_close(torch.logit(normal).std().item(), 1.0, atol=2e-2, rtol=0)


def test_binary_pixels_come_from_either_end() -> None:
    x_0 = torch.zeros(3, 1, 100, 100)
    x_1 = torch.ones(3, 1, 100, 100)
    t = torch.tensor([0.0, 0.25, 1.0])
    state = binary_state(x_0, x_1, t, torch.rand(x_0.shape, generator=torch.Generator().manual_seed(0)))
    assert set(state.unique().tolist()) == {0.0, 1.0}
    assert_close(state.mean(dim=(1, 2, 3)), t, atol=2e-2, rtol=0)
    same = binary_state(x_1, x_1, t, torch.rand(x_0.shape))
    assert torch.equal(same, x_1)
