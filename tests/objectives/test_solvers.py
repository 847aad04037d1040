"""Solvers against closed forms: exact cases, orders of convergence, the exact last step, counted evaluations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from stageline.objectives.flow import velocity_to
from stageline.objectives.solvers import FixedSolver, Prediction, Solver, fixed_step, integrate, sample_binary

START = torch.tensor([[0.7], [-1.3]], dtype=torch.float64)
FIXED: tuple[Solver, ...] = ("euler", "heun", "midpoint")


class Counter:
    """x' = a x, and how often it was asked."""

    def __init__(self, rate: float = 1.5) -> None:
        self.rate, self.calls = rate, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (x.shape[0],)
        self.calls += 1
        return self.rate * x


@pytest.mark.parametrize("solver", [*FIXED, "dopri5"])
@pytest.mark.parametrize("prediction", ["endpoint", "velocity"])
def test_reported_evaluations_are_the_calls(solver: Solver, prediction: Prediction) -> None:
    """Acceptance check 17."""
    network = Counter(0.3)
    solution = integrate(network, START, steps=4, solver=solver, prediction=prediction)
    assert solution.nfe == network.calls > 0


def test_each_solver_costs_what_it_should() -> None:
    def cost(solver: Solver, prediction: Prediction) -> int:
        return integrate(Counter(), START, steps=4, solver=solver, prediction=prediction).nfe

    assert [cost(solver, "velocity") for solver in FIXED] == [4, 8, 8]
    assert [cost(solver, "endpoint") for solver in FIXED] == [4, 7, 7]


@pytest.mark.parametrize("solver", [*FIXED, "dopri5"])
def test_a_constant_velocity_is_integrated_exactly(solver: Solver) -> None:
    velocity = torch.tensor([[2.0], [-0.5]], dtype=torch.float64)
    solution = integrate(lambda *_: velocity, START, steps=3, solver=solver, prediction="velocity")
    assert_close(solution.x, START + velocity)


def test_euler_on_a_linear_field_is_the_compound_interest_formula() -> None:
    solution = integrate(Counter(1.5), START, steps=5, solver="euler", prediction="velocity")
    assert_close(solution.x, START * (1 + 1.5 / 5) ** 5)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_the_error_falls_with_the_solver_order(solver: Solver, order: int) -> None:
    def error(steps: int) -> float:
        solution = integrate(Counter(1.0), START, steps=steps, solver=solver, prediction="velocity")
        return float((solution.x - math.e * START).abs().max())

    assert math.log2(error(32) / error(64)) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2), ("rk4", 4)])
def test_one_step_of_several_tensors_is_that_of_each_in_either_direction(solver: FixedSolver, order: int) -> None:
    """x' = 2 t x, y' = y: states are mappings, time is told to every evaluation, and back is the way that was come."""

    def velocity(state: dict[str, Tensor], t: float) -> dict[str, Tensor]:
        return {"y": state["y"], "x": 2 * t * state["x"]}

    def error(step: float) -> float:
        there = fixed_step(solver, velocity, {"x": START, "y": START}, 0.3, 0.3 + step)
        assert list(there) == ["x", "y"]
        assert_close(there["y"], START * sum(step**n / math.factorial(n) for n in range(order + 1)))
        back = fixed_step(solver, velocity, there, 0.3 + step, 0.3)
        assert float((back["y"] - START).abs().max()) < 2 * step ** (order + 1)
        return float((there["x"] - START * math.exp((0.3 + step) ** 2 - 0.09)).abs().max())

    assert math.log2(error(0.2) / error(0.1)) > order + 0.6, "one step is wrong by the power order + 1 of its size"


def test_dopri5_meets_its_tolerance() -> None:
    solution = integrate(Counter(1.0), START, steps=1, solver="dopri5", prediction="velocity", tolerance=1e-8)
    # The last thousandth is one Euler step: e * 1e-6 / 2 is its error.
    assert_close(solution.x, math.e * START, atol=3e-6, rtol=0)


@pytest.mark.parametrize("solver", [*FIXED, "dopri5"])
def test_every_solver_ends_on_its_last_endpoint_estimate(solver: Solver) -> None:
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 6, generator=rng)
    x_0 = torch.randn(2, 6, generator=rng)
    solution = integrate(lambda x, _: torch.tanh(x @ weight), x_0, steps=4, solver=solver, prediction="endpoint")
    assert torch.equal(solution.x, solution.last)


def test_one_euler_step_is_the_networks_own_endpoint() -> None:
    """Acceptance check 17."""
    x_0 = torch.randn(3, 1, 5, 5)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(7 * x)

    assert torch.equal(integrate(network, x_0, steps=1, solver="euler", prediction="endpoint").x, network(x_0, x_0))


@pytest.mark.parametrize("solver", [*FIXED, "dopri5"])
def test_a_fixed_endpoint_is_reached_by_every_solver(solver: Solver) -> None:
    target = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    solution = integrate(lambda *_: target, START, steps=3, solver=solver, prediction="endpoint")
    assert torch.equal(solution.x, target)


def test_endpoint_and_velocity_prediction_take_the_same_way() -> None:
    def endpoint(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(2 * x)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return velocity_to(x, endpoint(x, t), t)

    one = integrate(endpoint, START, steps=6, solver="euler", prediction="endpoint")
    other = integrate(velocity, START, steps=6, solver="euler", prediction="velocity")
    assert_close(one.x, other.x)


def test_a_binary_flow_ends_at_what_the_network_says() -> None:
    target = torch.tensor([[1.0, 0.0, 0.25]])
    solution = sample_binary(
        lambda *_: target, torch.zeros(1, 3), steps=5, draw=lambda _: torch.full((1, 3), 0.5), eps=1e-6
    )
    assert torch.equal(solution.last, target)
    assert solution.nfe == 5


def test_binary_states_follow_the_probability_on_the_way() -> None:
    """With K steps the pixel's probability at step k is 1/2 + (k+1) (p_1 - 1/2) / K for a constant network."""
    steps, seen = 4, []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append((round(t[0].item() * steps), x.mean().item()))
        return torch.ones_like(x)

    rng = torch.Generator().manual_seed(0)
    x_0 = (torch.rand(1, 40_000, generator=rng) < 0.5).float()
    sample_binary(network, x_0, steps=steps, draw=lambda _: torch.rand(1, 40_000, generator=rng))
    assert [k for k, _ in seen] == [0, 1, 2, 3]
    assert [mean for _, mean in seen] == pytest.approx([0.5, 0.625, 0.75, 0.875], abs=0.01)
