"""Building blocks of the U-Nets: normalisation, time embedding, residual block, attention. They know nothing of FiLM.

Topology after MedSegDiff (arXiv:2211.00611) and its public MIT implementation by lucidrains. Tensors: x_BCHW; emb_BT is
the time embedding with T = 4 * model_channels. Variant `msd_v0` keeps that implementation's conventions, which only
imported checkpoints need; `plain` is ours: SiLU everywhere, attention that starts as the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stageline.families.film_flow.config.film_plan import GROUPS

BackboneVariant = Literal["plain", "msd_v0"]
AttentionKind = Literal["full", "linear", "none"]

HEADS = 4
HEAD_DIM = 32


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each pixel; the epsilon is larger for half precision, as in msd_v0."""

    def __init__(self, channels: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        eps = 1e-5 if x.dtype in (torch.float32, torch.float64) else 1e-3
        wide = x if x.dtype == torch.float64 else x.float()
        var, mean = torch.var_mean(wide, dim=1, correction=0, keepdim=True)
        normed = (wide - mean) * (var + eps).rsqrt() * self.weight
        return (normed if self.bias is None else normed + self.bias).to(x.dtype)


class TimeEmbedding(nn.Module):
    """Sinusoid of t * time_scale, then two linear layers. t: (B,) in [0, 1] -> (B, 4 * model_channels)."""

    def __init__(self, model_channels: int, time_scale: float, variant: BackboneVariant) -> None:
        super().__init__()
        self.size = model_channels
        self.time_scale = time_scale
        self.fc1 = nn.Linear(model_channels, 4 * model_channels)
        self.act = nn.GELU() if variant == "msd_v0" else nn.SiLU()
        self.fc2 = nn.Linear(4 * model_channels, 4 * model_channels)

    def forward(self, t: Tensor) -> Tensor:
        half = self.size // 2
        frequency = torch.exp(
            torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10_000) / (half - 1))
        )
        phase = t.float()[:, None] * self.time_scale * frequency
        wave = torch.cat((phase.sin(), phase.cos()), dim=-1).to(self.fc1.weight.dtype)
        out: Tensor = self.fc2(self.act(self.fc1(wave)))
        return out


class ConvBlock(nn.Module):
    """Conv3x3 -> GroupNorm(8) -> optional scale and shift, h * (1 + a) + b -> SiLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, channels_out)

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        h: Tensor = self.norm(self.conv(x))
        if scale_shift is not None:
            h = h * (1 + scale_shift[0]) + scale_shift[1]
        out: Tensor = functional.silu(h)
        return out


class ResBlock(nn.Module):
    """Two ConvBlocks with a shortcut; the first takes scale and shift from the time embedding.

    time_size: size of the embedding, 0 for a block without time.  dropout: between the two blocks, training only.
    recompute: forget activations and compute them again in the backward pass.
    """

    def __init__(
        self, channels_in: int, channels_out: int, time_size: int, *, dropout: float = 0.0, recompute: bool = False
    ) -> None:
        super().__init__()
        self.time = nn.Linear(time_size, 2 * channels_out) if time_size else None
        self.block1 = ConvBlock(channels_in, channels_out)
        self.dropout = nn.Dropout(dropout)
        self.block2 = ConvBlock(channels_out, channels_out)
        same = channels_in == channels_out
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)
        self.recompute = recompute

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        if self.recompute and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(self._compute, x, emb, use_reentrant=False)
            return out
        return self._compute(x, emb)

    def _compute(self, x: Tensor, emb: Tensor | None) -> Tensor:
        scale_shift = None
        if self.time is not None and emb is not None:
            scale, shift = self.time(functional.silu(emb))[:, :, None, None].chunk(2, dim=1)
            scale_shift = (scale, shift)
        h: Tensor = self.block2(self.dropout(self.block1(x, scale_shift)))
        out: Tensor = h + self.shortcut(x)
        return out


def split_heads(x: Tensor) -> Tensor:
    """(B, heads * d, H, W) -> (B, heads, H * W, d)."""
    return x.reshape(x.shape[0], HEADS, HEAD_DIM, -1).transpose(2, 3)


def join_heads(x: Tensor, like: Tensor) -> Tensor:
    """(B, heads, H * W, d) -> (B, heads * d, H, W), H and W taken from `like`."""
    return x.transpose(2, 3).reshape(x.shape[0], -1, like.shape[-2], like.shape[-1])


class FullAttention(nn.Module):
    """Residual softmax attention over all pixels, 4 heads of 32, never as an explicit N x N matrix."""

    def __init__(self, channels: int, variant: BackboneVariant) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * HEADS * HEAD_DIM, 1, bias=False)
        self.out = nn.Conv2d(HEADS * HEAD_DIM, channels, 1)
        if variant == "plain":
            start_at_zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part) for part in self.qkv(self.norm(x)).chunk(3, dim=1))
        mixed: Tensor = self.out(join_heads(functional.scaled_dot_product_attention(q, k, v), x))
        return x + mixed


class LinearAttention(nn.Module):
    """Residual attention of linear cost: softmax over features for q, over positions for k.

    q is scaled by 32^-1/2 after its softmax; msd_v0 has a ChannelNorm after the output projection.
    """

    def __init__(self, channels: int, variant: BackboneVariant) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * HEADS * HEAD_DIM, 1, bias=False)
        self.out = nn.Conv2d(HEADS * HEAD_DIM, channels, 1)
        self.out_norm: nn.Module = ChannelNorm(channels) if variant == "msd_v0" else nn.Identity()
        if variant == "plain":
            start_at_zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part) for part in self.qkv(self.norm(x)).chunk(3, dim=1))
        q = q.softmax(dim=-1) * HEAD_DIM**-0.5
        context = k.softmax(dim=-2).transpose(2, 3) @ v
        mixed: Tensor = self.out_norm(self.out(join_heads(q @ context, x)))
        return x + mixed


def make_attention(kind: AttentionKind, channels: int, variant: BackboneVariant) -> nn.Module:
    """The attention of one level; `none` passes through."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "full": lambda: FullAttention(channels, variant),
        "linear": lambda: LinearAttention(channels, variant),
        "none": nn.Identity,
    }
    return makers[kind]()


def start_at_zero(layer: nn.Conv2d | nn.Linear) -> None:
    """Zero weight and bias, so that the residual branch starts as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
