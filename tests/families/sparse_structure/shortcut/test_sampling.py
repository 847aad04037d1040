"""The samplers against a plain loop, closed forms and the orders of their solvers."""

from __future__ import annotations

import itertools
import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from stageline.errors import ConfigError
from stageline.families.sparse_structure.shortcut import (
    ClassifierFreeGuidanceWithExternalUnconditionalProbability,
    FlowMatching,
    ShortCut,
)
from stageline.families.sparse_structure.shortcut.flow_matching import SOLVERS
from stageline.objectives.states import map_state

from .toy import SIZES, Network, condition, data

SPREAD = 0.4
"""Standard deviation of Gaussian data, whose velocity and whose mean velocity over any step are known."""


def variance(t: Tensor) -> Tensor:
    return (1 - t) ** 2 + (t * SPREAD) ** 2


def exact(x: Tensor, t: Tensor, d: Tensor | None = None) -> Tensor:
    """The mean velocity over the step d from t, its limit for d = 0; all in thousandths."""
    time, step = (value.double().reshape(-1, 1, 1) / 1000 for value in (t, t * 0 if d is None else d))
    at_once = (time * SPREAD**2 - (1 - time)) / variance(time)
    over = (torch.sqrt(variance(time + step) / variance(time)) - 1) / step.where(step > 0, torch.ones_like(step))
    return x * over.where(step > 0, at_once)


def nowhere(x: Any, t: Tensor, d: Tensor) -> Any:
    return map_state(torch.zeros_like, x)


def start(num: int = 3) -> dict[str, Tensor]:
    return data(num, seed=9)


def loop(
    network: Network, x: dict[str, Tensor], cond: Tensor, times: list[float], d: float | None
) -> dict[str, Tensor]:
    """Euler, written out."""
    for t, end in itertools.pairwise(times):
        told = {} if d is None else {"d": torch.tensor([1000 * d])}
        v = network(x, torch.tensor([1000 * t]), cond, **told)
        x = {m: x[m] + (end - t) * v[m] for m in x}
    return x


@pytest.mark.parametrize("steps", [1, 2, 4, 25, 128])
def test_a_sample_is_that_of_a_plain_loop(steps: int) -> None:
    """Check 8: the step told is that of the sampler, 0 where it was never trained or is switched off."""
    network, cond = Network(), condition(3)
    times = [k / steps for k in range(steps + 1)]
    told = 0.0 if steps == 128 else 1 / steps
    shortcut = ShortCut(network, inference_steps=steps)
    assert_close(shortcut.generate({}, "cpu", cond, noise=start()), loop(network, start(), cond, times, told))
    shortcut.no_shortcut = True
    assert_close(shortcut.generate({}, "cpu", cond=cond, noise=start()), loop(network, start(), cond, times, 0.0))
    plain = FlowMatching(network).generate({}, "cpu", cond, noise=start(), steps=steps)
    assert_close(plain, loop(network, start(), cond, times, None))
    assert not plain["shape"].requires_grad


def test_times_are_rescaled_and_reversed(caplog: pytest.LogCaptureFixture) -> None:
    network, cond = Network(), condition(3)
    times = [k / 4 / (1 + 2 * (1 - k / 4)) for k in range(5)]
    shortcut = ShortCut(network, rescale_t=3.0, inference_steps=4)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = shortcut.generate({}, "cpu", cond, noise=start())
    assert caplog.text.count("steps of unequal size") == 1
    assert_close(found, loop(network, start(), cond, times, 0.25))
    shortcut.no_shortcut = shortcut.reversed_timestamp = True
    found = shortcut.generate({}, "cpu", cond, noise=start())
    assert_close(found, loop(network, start(), cond, [1 - t for t in times], 0.0))


def test_each_step_is_told_with_its_time() -> None:
    network, cond = Network(), condition(3)
    model = ShortCut(network, inference_steps=2)
    seen = list(model.generate_iter({}, "cpu", cond, noise=start()))
    assert [t for t, _, _ in seen] == [0.0, 0.5]
    assert_close(seen[-1][1], model.generate({}, "cpu", cond, noise=start()))
    for call in network.calls[:2]:
        assert call["t"].shape == call["d"].shape == (1,)  # type: ignore[union-attr]
        assert call["t"].dtype == call["d"].dtype == torch.float32  # type: ignore[union-attr]


def test_noise_is_drawn_in_alphabetical_order() -> None:
    """Check 8: from the model's own source, a call's, or torch's global one."""
    shapes = {name: (2, *size) for name, size in reversed(SIZES.items())}
    model = ShortCut(nowhere, inference_steps=1, seed_or_generator=11)
    rng = torch.Generator().manual_seed(11)
    expected = {name: torch.randn(shapes[name], generator=rng) for name in sorted(shapes)}
    assert_close(model(shapes, "cpu"), expected)
    assert_close(model.generate(shapes, "cpu", rng=torch.Generator().manual_seed(11)), expected)
    one = ShortCut(nowhere, inference_steps=1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        found = one.generate((2, 4, 3), "cpu")
        torch.manual_seed(3)
        assert torch.equal(found, torch.randn(2, 4, 3))
    with pytest.raises(ConfigError, match="the shape of 'shape' is 'large'"):
        model.generate({"shape": "large"}, "cpu")


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_have_their_orders(solver: Any) -> None:
    """Check 8: halving the step divides the error by 2, 4 and 16."""
    order = {"euler": 1, "midpoint": 2, "rk4": 4}[solver]
    model = FlowMatching(lambda x, t: 1.5 * x * (1 - t.double() / 2000), solver_method=solver)

    def error(steps: int) -> float:
        found = model.generate((), "cpu", noise=torch.ones(1, 1, 1, dtype=torch.float64), steps=steps)
        return abs(float(found) - math.exp(1.125))

    ratio = error(8) / error(16)
    assert 0.9 * 2**order < ratio < 1.1 * 2**order


@pytest.mark.parametrize("steps", [1, 2, 4, 64])
def test_an_exact_shortcut_lands_on_the_data_in_any_number_of_steps(steps: int) -> None:
    x0 = start()
    model = ShortCut(lambda x, t, d: {m: exact(x[m], t, d) for m in x})
    landed = model.generate({}, "cpu", noise=x0, steps=steps)
    assert_close(landed, {m: SPREAD * x0[m] for m in x0}, rtol=1e-5, atol=1e-6)


def test_an_exact_shortcut_agrees_with_itself_and_the_exact_velocity_is_the_least_loss() -> None:
    """The loss of self-consistency is 0; that of flow matching has its least value, whatever the time, at factor 1."""
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    model = ShortCut(
        lambda x, t, d: factor * exact(x, t, d), t_d_sampling="grid", self_consistency_prob=0.25, seed_or_generator=1
    )
    x1 = SPREAD * torch.randn(40_000, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total, details = model.loss(x1)
    assert int(details["num_sc"]) == 10_000
    assert details["self_consistency_loss"] < 1e-12
    (slope,) = torch.autograd.grad(total - 0, factor)
    assert abs(float(slope)) < 0.02 * float(details["flow_matching_loss"])
    anchored = ShortCut(lambda x, t, d: exact(x, t, d), anchor_smallest_step=True, t_d_sampling="grid")
    _, other = anchored.loss_from_draws(x1, model.sample_draws(x1))
    assert 1e-12 < other["self_consistency_loss"] < 1e-3, "two Euler steps of 1/128 where the network is told 0"


def test_guided_sampling_is_guided_inside_the_interval() -> None:
    """Check 8: 25 rescaled steps, of which 19 are guided: 44 evaluations."""
    network, cond = Network(), condition(3)
    guidance = ClassifierFreeGuidanceWithExternalUnconditionalProbability(
        network, strength=7.0, interval=(0, 500), unconditional_handling="zeros"
    ).eval()
    model = ShortCut(guidance, no_shortcut=True, rescale_t=3.0, inference_steps=25)
    found = model.generate({}, "cpu", cond, noise=start())
    assert len(network.calls) == 44
    x, times = start(), [k / 25 / (1 + 2 * (1 - k / 25)) for k in range(26)]
    for t, end in itertools.pairwise(times):
        at, d = torch.tensor([1000 * t]), torch.zeros(1)
        on, off = network(x, at, cond, d), network(x, at, 0 * cond, d)
        x = {m: x[m] + (end - t) * (8 * on[m] - 7 * off[m] if t <= 0.5 else on[m]) for m in x}
    assert_close(found, x)
