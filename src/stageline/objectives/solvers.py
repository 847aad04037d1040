"""Integrates a flow from noise (t = 0) to data (t = 1) and counts what that cost.

The network may give a velocity or an estimate of the endpoint; the velocity of an endpoint estimate,
(x_1 - x_t) / (1 - t), is singular at t = 1: there every solver ends with an Euler step, which lands on it exactly.
Sources: Euler, Heun, midpoint and RK4 as in Hairer, Norsett & Wanner, Solving ODEs I, II.1; dopri5 from torchdiffeq.
`fixed_step` is one step of any state; `integrate` is the whole way of one tensor whose network may be of either kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from stageline.objectives.flow import velocity_to
from stageline.objectives.states import State, map_state

Solver = Literal["euler", "heun", "midpoint", "dopri5"]
FixedSolver = Literal["euler", "heun", "midpoint", "rk4"]
Prediction = Literal["endpoint", "velocity"]
Network = Callable[[Tensor, Tensor], Tensor]
"""(x (B, ...), t (B,)) -> velocity or endpoint estimate, like x."""

ADAPTIVE_END = 1.0 - 1e-3
"""Where dopri5 stops and the last Euler step starts."""


def fixed_step(solver: FixedSolver, velocity: Callable[[Any, float], Any], x: State, t: float, end: float) -> Any:
    """The state at `end`, one step after x at t.

    solver: `euler` asks once (order 1), `heun` and `midpoint` twice (order 2), `rk4` four times (order 4).
    velocity: (state, time) -> velocity, of the same structure as the state.  t, end: in [0, 1], in either order.
    """
    span = end - t
    first = velocity(x, t)
    if solver == "euler":
        return _moved(x, first, span)
    if solver == "heun":
        second = velocity(_moved(x, first, span), end)
        return map_state(lambda x, a, b: x + span * (a + b) / 2, x, first, second)
    half = span / 2
    second = velocity(_moved(x, first, half), t + half)
    if solver == "midpoint":
        return _moved(x, second, span)
    third = velocity(_moved(x, second, half), t + half)
    fourth = velocity(_moved(x, third, span), t + span)
    mean = map_state(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, first, second, third, fourth)
    return _moved(x, mean, span)


def _moved(x: State, velocity: State, span: float) -> Any:
    return map_state(lambda x, v: x + span * v, x, velocity)


@dataclass(frozen=True)
class Solution:
    """x: the state at t = 1.  last: what the network said at its last evaluation.  nfe: its evaluations."""

    x: Tensor
    last: Tensor
    nfe: int


class _Counted:
    """The network, remembering how often it was asked and its last answer."""

    def __init__(self, network: Network, prediction: Prediction) -> None:
        self.network = network
        self.prediction = prediction
        self.nfe = 0
        self.last: Tensor | None = None

    def ask(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """(answer, time (B,)) at one time for the whole batch."""
        time = torch.full((x.shape[0],), t, dtype=torch.float32, device=x.device)
        self.nfe += 1
        self.last = self.network(x, time)
        return self.last, time

    def velocity(self, x: Tensor, t: float) -> Tensor:
        answer, time = self.ask(x, t)
        return answer if self.prediction == "velocity" else velocity_to(x, answer, time)

    def euler(self, x: Tensor, t: float, end: float) -> Tensor:
        """One Euler step; for an endpoint estimate the share of the way that the step is, so that end = 1 is exact."""
        answer, _ = self.ask(x, t)
        if self.prediction == "velocity":
            return x + (end - t) * answer
        if end == 1.0:
            return answer
        return x + (end - t) / (1 - t) * (answer - x)

    def step(self, solver: FixedSolver, x: Tensor, t: float, end: float) -> Tensor:
        if solver == "euler" or (end == 1.0 and self.prediction == "endpoint"):  # the velocity there is singular
            return self.euler(x, t, end)
        stepped: Tensor = fixed_step(solver, self.velocity, x, t, end)
        return stepped


def integrate(
    network: Network, x_0: Tensor, *, steps: int, solver: Solver, prediction: Prediction, tolerance: float = 1e-3
) -> Solution:
    """Follow the flow from x_0 (B, ...) at t = 0 to t = 1.

    steps: equal steps of a fixed-step solver, at least 1; dopri5 chooses its own.
    tolerance: relative and absolute, of dopri5; its step sizes depend on the whole batch: hand it one sample where
    results may not depend on batch mates.
    """
    counted = _Counted(network, prediction)
    if solver == "dopri5":
        x = counted.euler(_adaptive(counted, x_0, tolerance), ADAPTIVE_END, 1.0)
    else:
        x = x_0
        for k in range(steps):
            x = counted.step(solver, x, k / steps, (k + 1) / steps)
    assert counted.last is not None, "steps is at least 1"
    return Solution(x, counted.last, counted.nfe)


def _adaptive(counted: _Counted, x_0: Tensor, tolerance: float) -> Tensor:
    from torchdiffeq import odeint

    times = torch.tensor([0.0, ADAPTIVE_END], dtype=torch.float64, device=x_0.device)
    path = odeint(
        lambda t, x: counted.velocity(x, float(t)), x_0, times, method="dopri5", rtol=tolerance, atol=tolerance
    )
    end: Tensor = path[-1]
    return end.to(x_0.dtype)


def sample_binary(
    network: Network, x_0: Tensor, *, steps: int, draw: Callable[[int], Tensor], eps: float = 1e-6
) -> Solution:
    """Euler sampler of the binary mixture path (arXiv:2407.15595, section 3.3, for two states).

    network: (x in {0, 1}, t) -> probability of x_1 = 1.  x_0: Bernoulli(1/2) pixels.  draw(k): uniform in [0, 1), like
    x_0, for step k.  eps: the least 1 - t that is divided by.
    Solution.x and .last are the last probability; it is evaluated at t = (steps - 1) / steps.
    """
    counted = _Counted(network, "endpoint")
    x, p = x_0, torch.full_like(x_0, 0.5)
    answer = p
    for k in range(steps):
        t = k / steps
        answer, _ = counted.ask(x, t)
        p = (p + (answer - p) / max(1 - t, eps) / steps).clamp(0, 1)
        x = (draw(k) < p).to(x_0.dtype)
    return Solution(answer, answer, counted.nfe)
