"""BiMamba: Mamba-2 blocks that scan a sequence in both directions with one call of the scan.

Both directions share z, x0 and the two projections (the idea of Vim's bidirectional block, arXiv:2401.09417) and have
their own convolution, step sizes, B, C, A and D. They are stacked on the head axis, one group per direction, so that
no kernel has to know of it.
"""

from __future__ import annotations

import math
from typing import Literal, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.scan.dispatch import ScanBackend, causal_conv, ssd
from stageline.families.panorama_vlm.scan.mixer import GatedRMSNorm, start_steps

Merge = Literal["mean", "sum", "concat"]


class BlockSettings(TypedDict, total=False):
    """What the blocks of one model have in common; what is absent is as in `BiMambaBlock`."""

    head_dim: int
    state: int
    merge: Merge
    dropout: float
    chunk_size: int
    scan_backend: ScanBackend


class BiMambaBlock(nn.Module):
    """x + dropout(W_out RMSNorm(y * SiLU(z))), y from a forward and a backward scan of one projection of Norm(x).

    width: d.  depth: blocks in the model; W_out starts smaller by 1 / sqrt(2 depth).  expand: inner width / d.
    head_dim: P.  state: N.  groups: of heads that share B and C, per direction.  conv_kernel: taps.  merge: `mean` or
    `sum` of the two outputs, or both side by side.  dropout: of the branch, in training.  chunk_size, scan_backend: of
    the scan.
    """

    def __init__(
        self,
        width: int,
        *,
        depth: int = 1,
        expand: int = 2,
        head_dim: int = 64,
        state: int = 64,
        groups: int = 1,
        conv_kernel: int = 4,
        merge: Merge = "mean",
        dropout: float = 0.0,
        chunk_size: int = 64,
        scan_backend: ScanBackend = "auto",
    ) -> None:
        super().__init__()
        inner = expand * width
        heads = inner // head_dim
        if heads * head_dim != inner or heads % groups or merge not in get_args(Merge):
            raise ConfigError(
                f"bimamba with inner width {inner}, head_dim {head_dim}, {groups} groups and merge {merge!r}",
                remedy="head_dim divides expand * width, groups divides their quotient, merge is mean, sum or concat",
            )
        self.inner, self.heads, self.head_dim, self.groups, self.state = inner, heads, head_dim, groups, state
        self.merge, self.chunk_size, self.scan_backend = merge, chunk_size, scan_backend
        self.stream = inner + 2 * groups * state
        """Channels of one direction's stream: x0, B, C."""
        own = 2 * groups * state + heads
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.in_proj = nn.Linear(width, 2 * inner + 2 * own, bias=False)
        self.conv1d = nn.Conv1d(2 * self.stream, 2 * self.stream, conv_kernel, groups=2 * self.stream)
        self.dt_bias = nn.Parameter(start_steps(2 * heads))
        self.A_log = nn.Parameter(torch.empty(2 * heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(2 * heads))
        merged = 2 * inner if merge == "concat" else inner
        self.gated_norm = GatedRMSNorm(merged)
        self.out_proj = nn.Linear(merged, width, bias=False)
        with torch.no_grad():
            self.out_proj.weight /= math.sqrt(2 * depth)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, d) -> (B, L, d).

        x: (B, L, d).  mask: (B, L), true for valid tokens. False ones may stand at the ends only: padding there is
        inert, a gap in the middle would be seen by the convolution.
        """
        u = self.norm(x)
        bc, H = 2 * self.groups * self.state, self.heads
        z, x0, bc_f, dt_f, bc_b, dt_b = torch.split(self.in_proj(u), [self.inner, self.inner, bc, H, bc, H], dim=-1)
        streams = torch.cat([x0, bc_f, torch.cat([x0, bc_b], dim=-1).flip(1)], dim=-1)
        both = None
        if mask is not None:
            keep = mask.to(streams.dtype).unsqueeze(-1)
            both = torch.cat([keep.expand(-1, -1, self.stream), keep.flip(1).expand(-1, -1, self.stream)], dim=-1)
            streams = streams * both
        streams = causal_conv(streams, self.conv1d.weight, self.conv1d.bias, self.scan_backend)
        y_f, y_b = self._scan(streams, torch.cat([dt_f, dt_b.flip(1)], dim=-1), mask)
        y = torch.cat([y_f, y_b], dim=-1) if self.merge == "concat" else y_f + y_b
        y = y / 2 if self.merge == "mean" else y
        gate = torch.cat([z, z], dim=-1) if self.merge == "concat" else z
        out: Tensor = x + self.dropout(self.out_proj(self.gated_norm(y, gate)))
        return out

    def _scan(self, streams: Tensor, dt: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both directions' outputs (B, L, d_i) in the order of the input, from one call."""
        steps = functional.softplus(dt.to(self.dt_bias.dtype) + self.dt_bias)
        if mask is not None:
            keep = mask.to(steps.dtype).unsqueeze(-1)
            steps = steps * torch.cat([keep.expand(-1, -1, self.heads), keep.flip(1).expand(-1, -1, self.heads)], -1)
        sizes = [self.inner, self.groups * self.state, self.groups * self.state] * 2
        x_f, B_f, C_f, x_b, B_b, C_b = torch.split(streams, sizes, dim=-1)
        y = ssd(
            torch.unflatten(torch.cat([x_f, x_b], dim=-1), -1, (2 * self.heads, self.head_dim)),
            steps,
            -torch.exp(self.A_log),
            torch.unflatten(torch.cat([B_f, B_b], dim=-1), -1, (2 * self.groups, self.state)),
            torch.unflatten(torch.cat([C_f, C_b], dim=-1), -1, (2 * self.groups, self.state)),
            self.D,
            self.chunk_size,
            backend=self.scan_backend,
        ).y
        y_f, y_b = torch.split(y.flatten(2), self.inner, dim=-1)
        return y_f, y_b.flip(1)


class BiMamba(nn.Module):
    """Blocks one after another.

    width: d.  depth: number of blocks.  block: of every one.
    """

    def __init__(self, width: int, depth: int = 4, **block: Unpack[BlockSettings]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BiMambaBlock(width, depth=depth, **block) for _ in range(depth))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, d) -> (B, L, d); arguments as in `BiMambaBlock`."""
        for block in self.blocks:
            x = block(x, mask)
        return x


def compact(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Valid tokens moved to the front in their order, so that no gap is left inside.

    x: (B, L, d).  mask: (B, L), true for valid tokens.
    Returns the tokens and mask in the new order, and (B, L) the new place of each old one.
    """
    order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
    moved = x.gather(1, order.unsqueeze(-1).expand_as(x))
    return moved, mask.gather(1, order), order.argsort(dim=1)
