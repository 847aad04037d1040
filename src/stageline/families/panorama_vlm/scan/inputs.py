"""What all scans share: their result, the step sizes, masks and reversed time.

Letters: b batch, L sequence, H heads, P width of a head, N state, g groups (r = H / g heads share B and C). The
arguments are named as in `mamba_ssm` (arXiv:2405.21060), the state is (P, N) as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from stageline.errors import ConfigError, Faults


class Scan(NamedTuple):
    """What a scan gives.

    y: outputs, shape and type of x.  state: after the last step in scan order, (b, H, P, N), or (b, D, N) of a Mamba-1
    scan; float32, or float64 where x is.
    """

    y: Tensor
    state: Tensor


def scan_dtype(x: Tensor) -> torch.dtype:
    """The type a scan computes in: float64 stays, everything else is float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def step_sizes(dt: Tensor, dt_bias: Tensor | None, *, dt_softplus: bool, dtype: torch.dtype) -> Tensor:
    """dt + dt_bias, through softplus where asked for; in the scan's type.

    dt: (b, L, H).  dt_bias: (H,) or None.  dt_softplus: whether dt is still raw.  dtype: of the scan.
    """
    steps = dt.to(dtype)
    if dt_bias is not None:
        steps = steps + dt_bias.to(dtype)
    return functional.softplus(steps) if dt_softplus else steps


def masked(mask: Tensor | None, *series: Tensor) -> tuple[Tensor, ...]:
    """Series that are zero where the mask is; with x, dt and B zero, a step neither decays the state nor adds to it.

    mask: (b, L), true or 1 for what counts; None leaves all.  series: (b, L, ...). What stands where the mask is zero
    does not matter, be it no number.
    """
    if mask is None:
        return series
    out = ~mask.bool()
    return tuple(part.masked_fill(out.reshape(*out.shape, *[1] * (part.ndim - 2)), 0) for part in series)


def check_mamba1_shapes(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, initial_state: Tensor | None
) -> None:
    """ConfigError with every shape of a Mamba-1 scan that does not fit the others."""
    faults = Faults(ConfigError, "mamba1", "x and dt (b, L, D), L > 0, A (D, N), B and C (b, L, N), D (D,)")
    if x.ndim != 3 or A.ndim != 2:
        faults.add(f"x has shape {tuple(x.shape)}, expected 3 axes; A has {tuple(A.shape)}, expected 2")
        faults.raise_if_any()
    b, length, channels = x.shape
    size = A.shape[1]
    expected = {
        "dt": (dt, (b, length, channels)),
        "A": (A, (channels, size)),
        "B": (B, (b, length, size)),
        "C": (C, (b, length, size)),
        "D": (D, (channels,)),
        "initial_state": (initial_state, (b, channels, size)),
    }
    _compare(faults, length, expected)
    faults.raise_if_any()


def _compare(faults: Faults, length: int, expected: Mapping[str, tuple[Tensor | None, tuple[int, ...]]]) -> None:
    if length < 1:
        faults.add("a sequence of no steps")
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            faults.add(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")


def check_shapes(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, initial_state: Tensor | None
) -> None:
    """ConfigError with every shape of an SSD scan that does not fit the others."""
    words = "x (b, L, H, P), L > 0, dt (b, L, H), A and D (H,), B and C (b, L, g, N), g divides H"
    faults = Faults(ConfigError, "ssd", words)
    if x.ndim != 4 or B.ndim != 4:
        faults.add(f"x has shape {tuple(x.shape)} and B {tuple(B.shape)}; both have 4 axes")
        faults.raise_if_any()
    b, length, heads, width = x.shape
    groups, size = B.shape[2:]
    expected = {
        "dt": (dt, (b, length, heads)),
        "A": (A, (heads,)),
        "B": (B, (b, length, groups, size)),
        "C": (C, (b, length, groups, size)),
        "D": (D, (heads,)),
        "initial_state": (initial_state, (b, heads, width, size)),
    }
    _compare(faults, length, expected)
    if groups < 1 or heads % groups:
        faults.add(f"{heads} heads cannot be shared out over {groups} groups")
    faults.raise_if_any()
