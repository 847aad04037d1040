"""The standard unidirectional Mamba-2 mixer (arXiv:2405.21060), with the key names of transformers' `Mamba2Mixer`.

It is here so that our scan can be held against a published layer; the panorama's own layer is `model/bimamba`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.scan.dispatch import ScanBackend, causal_conv, ssd


class GatedRMSNorm(nn.Module):
    """RMSNorm(y * SiLU(gate)): the gate before the norm, in float32.

    width: of the last axis.  groups: parts of it that are normed each on its own.  eps: added to the mean square.
    """

    def __init__(self, width: int, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.groups = groups
        self.eps = eps

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        wide = y if y.dtype == torch.float64 else y.float()
        wide = wide * functional.silu(gate.to(wide.dtype))
        parts = torch.unflatten(wide, -1, (self.groups, -1))
        normed = parts * (parts.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        out: Tensor = (normed.flatten(-2) * self.weight).to(y.dtype)
        return out


def start_steps(num: int, low: float = 1e-3, high: float = 1e-1, floor: float = 1e-4) -> Tensor:
    """dt_bias: the inverse softplus of step sizes drawn log-uniformly from [low, high], never below the floor."""
    steps = torch.exp(torch.empty(num).uniform_(math.log(low), math.log(high))).clamp(min=floor)
    return steps + torch.log(-torch.expm1(-steps))


class Mamba2Mixer(nn.Module):
    """in_proj -> causal conv -> SSD -> gated norm -> out_proj; arguments are named as in transformers' `Mamba2Config`.

    hidden_size: d.  num_heads, head_dim: their product is expand * d; without num_heads it follows.  state_size: N.
    n_groups: groups of heads that share B and C.  conv_kernel: taps.  chunk_size: of the scan.  use_bias: in the two
    projections.  use_conv_bias: in the convolution.  layer_norm_epsilon: of the gated norm.  scan_backend: see `ssd`.
    time_step_limit: range that step sizes are clamped to.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int | None = None,
        head_dim: int = 64,
        state_size: int = 128,
        expand: int = 2,
        n_groups: int = 1,
        conv_kernel: int = 4,
        chunk_size: int = 64,
        use_bias: bool = False,
        use_conv_bias: bool = True,
        layer_norm_epsilon: float = 1e-5,
        time_step_limit: tuple[float, float] = (0.0, math.inf),
        scan_backend: ScanBackend = "auto",
    ) -> None:
        super().__init__()
        inner = expand * hidden_size
        heads = inner // head_dim if num_heads is None else num_heads
        if heads * head_dim != inner or heads % n_groups:
            raise ConfigError(
                f"{heads} heads of {head_dim} in {n_groups} groups do not make the inner width {inner}",
                remedy="num_heads * head_dim is expand * hidden_size, and n_groups divides num_heads",
            )
        self.inner, self.heads, self.head_dim = inner, heads, head_dim
        self.groups, self.size = n_groups, state_size
        self.chunk_size, self.scan_backend, self.time_step_limit = chunk_size, scan_backend, time_step_limit
        channels = inner + 2 * n_groups * state_size
        self.in_proj = nn.Linear(hidden_size, inner + channels + heads, bias=use_bias)
        self.conv1d = nn.Conv1d(channels, channels, conv_kernel, groups=channels, bias=use_conv_bias)
        self.dt_bias = nn.Parameter(start_steps(heads))
        self.A_log = nn.Parameter(torch.arange(1, heads + 1).float().log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GatedRMSNorm(inner, n_groups, layer_norm_epsilon)
        self.out_proj = nn.Linear(inner, hidden_size, bias=use_bias)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(b, L, d) -> (b, L, d).

        hidden_states: (b, L, d).  attention_mask: (b, L), 1 for what counts; padding on either side is inert.
        """
        b, length, _ = hidden_states.shape
        keep = None if attention_mask is None else attention_mask.unsqueeze(-1).to(hidden_states.dtype)
        projected = self.in_proj(hidden_states if keep is None else hidden_states * keep)
        channels = self.inner + 2 * self.groups * self.size
        gate, stream, dt = torch.split(projected, [self.inner, channels, self.heads], dim=-1)
        stream = causal_conv(stream, self.conv1d.weight, self.conv1d.bias, self.scan_backend)
        if keep is not None:
            stream = stream * keep
        x, B, C = torch.split(stream, [self.inner, self.groups * self.size, self.groups * self.size], dim=-1)
        steps = functional.softplus(dt.to(self.dt_bias.dtype) + self.dt_bias).clamp(*self.time_step_limit)
        y = ssd(
            torch.unflatten(x, -1, (self.heads, self.head_dim)),
            steps,
            -torch.exp(self.A_log),
            torch.unflatten(B, -1, (self.groups, self.size)),
            torch.unflatten(C, -1, (self.groups, self.size)),
            self.D,
            self.chunk_size,
            mask=attention_mask,
            backend=self.scan_backend,
        ).y
        out: Tensor = self.out_proj(self.norm(y.reshape(b, length, self.inner), gate))
        return out
