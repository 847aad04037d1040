"""The Mamba-2 scan in chunks of matrix products, plain torch (state space duality, arXiv:2405.21060, section 6).

Inside a chunk of Q steps the scan is a masked product like attention; between chunks only states are passed on. Work
and memory are linear in L, and autograd gives the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def chunked_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs without the skip D x, and the state after the last step.

    x: (b, L, H, P).  dt: (b, L, H), ready to use: 0 makes a step inert.  A: (H,).  B, C: (b, L, g, N); all of one
    type.  chunk_size: Q, any number > 0.  initial_state: (b, H, P, N) or None.
    """
    b, length, heads, width = x.shape
    groups, size = B.shape[2:]
    share, chunk = heads // groups, min(chunk_size, length)
    pad = -length % chunk
    count = (length + pad) // chunk

    # Zeros on the right are inert: decay exp(0) = 1 and no input. Then (b, c, g, r, Q, ...) for all.
    inputs = functional.pad(x * dt.unsqueeze(-1), (0, 0, 0, 0, 0, pad))
    inputs = inputs.view(b, count, chunk, groups, share, width).permute(0, 1, 3, 4, 2, 5)
    log_decay = functional.pad(dt * A, (0, 0, 0, pad)).view(b, count, chunk, groups, share).permute(0, 1, 3, 4, 2)
    B, C = (functional.pad(t, (0, 0, 0, 0, 0, pad)).view(b, count, chunk, groups, size).transpose(2, 3) for t in (B, C))

    total = log_decay.cumsum(-1)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    # The exponent is masked, not the result: a positive exponent could overflow, and inf * 0 is NaN in the gradient.
    exponent = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(later, float("-inf"))
    scores = (C @ B.transpose(-1, -2)).unsqueeze(3)
    inside = (exponent.exp() * scores) @ inputs

    to_end = (total[..., -1:] - total).exp().unsqueeze(-1)
    summed = (inputs * to_end).permute(0, 1, 2, 3, 5, 4).reshape(b, count, groups, share * width, chunk) @ B
    summed = summed.view(b, count, heads, width, size)
    chunk_decay = total[..., -1].exp().reshape(b, count, heads, 1, 1)

    state = torch.zeros_like(summed[:, 0]) if initial_state is None else initial_state
    before = []
    for c in range(count):
        before.append(state)
        state = chunk_decay[:, c] * state + summed[:, c]
    states = torch.stack(before, dim=1).view(b, count, groups, share * width, size)
    carried = (C @ states.transpose(-1, -2)).view(b, count, groups, chunk, share, width).transpose(3, 4)
    y = inside + carried * total.exp().unsqueeze(-1)
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(b, count * chunk, heads, width)
    return y[:, :length], state
