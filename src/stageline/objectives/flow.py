"""The straight path from noise to data: states, velocities, endpoint estimates and training times.

Gaussian x_0, x_t = (1 - t) x_0 + t x_1, u = x_1 - x_0 (Lipman et al., arXiv:2210.02747; Liu et al., arXiv:2209.03003);
with a spread sigma the Brownian bridge of Tong et al. (arXiv:2302.00482, section 3). For binary pixels the mixture
path of Gat et al. (arXiv:2407.15595). Networks, losses and solvers stand elsewhere.

Shapes: x (B, ...), t (B,) in [0, 1], 0 noise, 1 data.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

TimeSampling = Literal["stratified", "uniform", "logit_normal"]
TIME_LOW, TIME_HIGH = 1e-4, 1.0 - 1e-3
"""Training times stay inside: at 1 the velocity of an endpoint estimate is singular, at 0 the bridge's is."""


def expand(t: Tensor, x: Tensor) -> Tensor:
    """t of shape (B,) as (B, 1, ...), ready to multiply x of shape (B, ...)."""
    return t.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))


def straight_path(x_0: Tensor, x_1: Tensor, t: Tensor, sigma_min: float = 0.0) -> Tensor:
    """x_t = (1 - (1 - sigma_min) t) x_0 + t x_1.

    sigma_min: spread that is left around x_1 at t = 1, in units of x_0 (arXiv:2210.02747, equation 22).
    """
    time = expand(t, x_1)
    return (1 - (1 - sigma_min) * time) * x_0 + time * x_1


def straight_velocity(x_0: Tensor, x_1: Tensor, sigma_min: float = 0.0) -> Tensor:
    """u = x_1 - (1 - sigma_min) x_0, the same at every time of the straight path (arXiv:2210.02747, equation 23)."""
    return x_1 - (1 - sigma_min) * x_0


def endpoint_of(x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Where the present velocity leads at t = 1: x_t + (1 - t) v."""
    return x_t + (1 - expand(t, x_t)) * velocity


def velocity_to(x_t: Tensor, endpoint: Tensor, t: Tensor) -> Tensor:
    """The velocity that leads from x_t to an endpoint: (x_1 - x_t) / (1 - t).  t in [0, 1)."""
    return (endpoint - x_t) / (1 - expand(t, x_t))


def bridge_state(mean: Tensor, t: Tensor, sigma: float, noise: Tensor) -> Tensor:
    """A point of the Brownian bridge around the path: mean + sigma sqrt(t (1 - t)) noise.

    mean: the straight path's x_t.  sigma: in units of x.  noise: standard normal, like mean.
    """
    time = expand(t, mean)
    return mean + sigma * torch.sqrt(time * (1 - time)) * noise


def bridge_velocity(x_0: Tensor, x_1: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Velocity whose flow keeps the bridge's spread: u + (1 - 2t) / (2 t (1 - t)) (x_t - mean).  t in (0, 1).

    Without the second term a residual spread is left at t = 1. It does not depend on sigma: x_t carries it.
    """
    time = expand(t, x_t)
    factor = (1 - 2 * time) / (2 * time * (1 - time))
    return straight_velocity(x_0, x_1) + factor * (x_t - straight_path(x_0, x_1, t))


def sample_times(num: int, sampling: TimeSampling, rng: torch.Generator) -> Tensor:
    """Training times of one batch, (num,) float32 on the CPU in [TIME_LOW, TIME_HIGH].

    stratified: one time per interval [i/num, (i+1)/num), in random order. uniform: independent.
    logit_normal: sigmoid of a standard normal (Esser et al., arXiv:2403.03206, section 3.1).
    """
    if sampling == "stratified":
        t = (torch.arange(num) + torch.rand(num, generator=rng)) / num
        t = t[torch.randperm(num, generator=rng)]
    elif sampling == "uniform":
        t = torch.rand(num, generator=rng)
    else:
        t = torch.sigmoid(torch.randn(num, generator=rng))
    return t.clamp(TIME_LOW, TIME_HIGH)


def binary_state(x_0: Tensor, x_1: Tensor, t: Tensor, draw: Tensor) -> Tensor:
    """Mixture path of binary pixels: each is x_1's with probability t, otherwise x_0's.

    x_0, x_1: {0, 1}.  draw: uniform in [0, 1), like x_1.
    """
    return torch.where(draw < expand(t, x_1), x_1, x_0)
