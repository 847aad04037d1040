"""The two selective scans as sequential loops over time: slow, obvious, and what every faster path is compared with.

Mamba-1 (arXiv:2312.00752) has a decay per channel and state, Mamba-2 (arXiv:2405.21060) one per head. Letters as in
`inputs`; D is also the number of channels of a Mamba-1 scan.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stageline.families.panorama_vlm.scan.inputs import (
    Scan,
    check_mamba1_shapes,
    check_shapes,
    masked,
    scan_dtype,
    step_sizes,
)


def mamba1_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    mask: Tensor | None = None,
    reverse: bool = False,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Scan:
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t and y_t = C_t h_t + D x_t, per channel.

    x: (b, L, D).  dt: (b, L, D), > 0 (raw with `dt_softplus`).  A: (D, N), < 0.  B, C: (b, L, N).  D: (D,) or None.
    initial_state: (b, D, N), zero without.  mask: (b, L), true for what counts.  reverse: from the last step to the
    first.  dt_bias: (D,), added to dt.  dt_softplus: dt + dt_bias is passed through softplus.
    """
    check_mamba1_shapes(x, dt, A, B, C, D, initial_state)
    dtype = scan_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        steps = step_sizes(dt, dt_bias, dt_softplus=dt_softplus, dtype=dtype)
        inputs, steps, B = masked(mask, x.to(dtype), steps, B)
        A, B, C = A.to(dtype), B.to(dtype), C.to(dtype)
        state = x.new_zeros((x.shape[0], *A.shape), dtype=dtype) if initial_state is None else initial_state.to(dtype)
        outputs: list[Tensor] = [inputs[:, 0]] * x.shape[1]
        for t in _times(x.shape[1], reverse=reverse):
            decay = torch.exp(steps[:, t, :, None] * A)
            state = decay * state + (steps[:, t] * inputs[:, t])[:, :, None] * B[:, t, None, :]
            outputs[t] = (state * C[:, t, None, :]).sum(-1)
        y = torch.stack(outputs, dim=1)
        if D is not None:
            y = y + D.to(dtype) * inputs
    return Scan(y.to(x.dtype), state)


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    mask: Tensor | None = None,
    reverse: bool = False,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Scan:
    """H_t = exp(dt_t A) H_(t-1) + (dt_t x_t) outer B_t and y_t = H_t C_t + D x_t, per head; arguments as `ssd`."""
    check_shapes(x, dt, A, B, C, D, initial_state)
    dtype, share = scan_dtype(x), x.shape[2] // B.shape[2]
    with torch.autocast(x.device.type, enabled=False):
        steps = step_sizes(dt, dt_bias, dt_softplus=dt_softplus, dtype=dtype)
        inputs, steps, B = masked(mask, x.to(dtype), steps, B)
        A = A.to(dtype)
        B, C = (t.to(dtype).repeat_interleave(share, dim=2) for t in (B, C))
        shape = (*x.shape[:1], *x.shape[2:], B.shape[-1])
        state = x.new_zeros(shape, dtype=dtype) if initial_state is None else initial_state.to(dtype)
        outputs: list[Tensor] = [inputs[:, 0]] * x.shape[1]
        for t in _times(x.shape[1], reverse=reverse):
            decay = torch.exp(steps[:, t] * A)[:, :, None, None]
            state = decay * state + (steps[:, t, :, None] * inputs[:, t])[..., None] * B[:, t, :, None, :]
            outputs[t] = (state * C[:, t, :, None, :]).sum(-1)
        y = torch.stack(outputs, dim=1)
        if D is not None:
            y = y + D.to(dtype)[:, None] * inputs
    return Scan(y.to(x.dtype), state)


def _times(length: int, *, reverse: bool) -> range:
    return range(length - 1, -1, -1) if reverse else range(length)
