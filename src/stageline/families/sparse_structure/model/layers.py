"""Small parts of the sparse-structure network: linear maps, norms, the feed-forward, the embedding of time and step.

Norms are computed in float32 at least and handed back in the dtype of their input. Source: DiT (arXiv:2212.09748)
for the modulation and the sinusoid; QK norm after arXiv:2302.05442.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCK_NORM_EPS = 1e-6
"""Of the norms inside blocks; the output heads have torch's 1e-5."""
SHORTEST = 1e-12
"""Length that a query or key is at least divided by."""
TIME_FREQUENCIES = 128
MAX_PERIOD = 10_000
HALFWAY = 12
"""The one frequency that lies between two float32 numbers so evenly (0.48 to 0.52) that exponentials round it either
way. Times reach 1000, and a different last bit moves outputs by 3e-6: it is rounded up, as in the public values."""


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype that norms, softmax and sinusoids are computed in."""
    return torch.promote_types(dtype, torch.float32)


class Linear(nn.Linear):
    """A linear map that starts Xavier-uniform, with a zero bias."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class LayerNorm(nn.Module):
    """Layer norm over the last axis.

    channels: its size.
    affine: with weight and bias.
    eps: added to the variance.
    """

    def __init__(self, channels: int, *, affine: bool, eps: float = BLOCK_NORM_EPS) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None or self.bias is None:
            # The kernel computes in float32 inside, and reads and writes half as much.
            return functional.layer_norm(x, (self.channels,), None, None, self.eps).to(x.dtype)
        dtype = at_least_float32(x.dtype)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return functional.layer_norm(x.to(dtype), (self.channels,), weight, bias, self.eps).to(x.dtype)


class HeadNorm(nn.Module):
    """Unit length per head, times a learned gamma and the root of the head's width.

    num_heads, head_dim: shape of gamma.
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(num_heads, head_dim))
        self.scale = math.sqrt(head_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, L, H, D)."""
        dtype = at_least_float32(x.dtype)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).clamp_min(SHORTEST)
        normed: Tensor = x / length * (self.gamma.to(dtype) * self.scale)
        return normed.to(x.dtype)


class FeedForward(nn.Module):
    """Linear, GELU in its tanh form, Linear.

    channels: width of input and output.
    hidden: width between.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(channels, hidden), nn.GELU(approximate="tanh"), Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(x)
        return out


def time_frequencies(device: torch.device) -> Tensor:
    """exp(-ln(10000) j / 128) for j below 128, float32: the exponent in float32, its exponential rounded once, so that
    all machines have the same."""
    steps = torch.arange(TIME_FREQUENCIES, device=device, dtype=torch.float32)
    exact = torch.exp((-math.log(MAX_PERIOD) * steps / TIME_FREQUENCIES).double())
    return (exact + (steps == HALFWAY) * 2.0**-30).float()


class TimestepEmbedder(nn.Module):
    """A number -> (C,): cosines and sines of 128 frequencies, then Linear, SiLU, Linear.

    channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(2 * TIME_FREQUENCIES, channels), nn.SiLU(), Linear(channels, channels))

    def forward(self, t: Tensor) -> Tensor:
        """(R, C) from t (R,), used as given: the generator multiplies by its time scale before."""
        weight = self.mlp[0].weight
        assert isinstance(weight, Tensor)
        dtype = at_least_float32(weight.dtype)
        angles = t.to(dtype)[:, None] * time_frequencies(t.device).to(dtype)
        out: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(weight.dtype))
        return out


def modulation(channels: int) -> nn.Sequential:
    """SiLU and a Linear to shift, scale and gate of attention and feed-forward, (C) -> (6 C); it starts as zero."""
    linear = Linear(channels, 6 * channels)
    nn.init.zeros_(linear.weight)
    return nn.Sequential(nn.SiLU(), linear)
