"""FiLM heads, their application in delta form, and the junction gate (Perez et al. 2018, arXiv:1709.07871).

delta = dgamma * x + beta; ungated y = x + delta; gated y = x + g * delta with g = 1 - a (1 - v) J. In this form a head
that is zero, a gate that is closed and a condition that is absent each leave x bitwise as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from stageline.families.film_flow.config.film_plan import FilmPlan, HeadVariant

Interp = Literal["maxpool", "nearest"]


class FilmLimit(NamedTuple):
    """Soft bounds: dgamma -> gamma * tanh(dgamma / gamma), likewise beta. Positive; None is unbounded."""

    gamma: float | None = None
    beta: float | None = None


class Modulation(NamedTuple):
    """What one decoder stage applies. gamma, beta: (B, C_s, 1, 1) float32.  gate: (B, 1, h, w) float32 or None."""

    gamma: Tensor
    beta: Tensor
    gate: Tensor | None


class FilmHead(nn.Module):
    """Condition (B, D) -> dgamma, beta, each (B, C_s). The first half of the outputs is dgamma, the second beta.

    silu_v1 is ours; relu_v0 is what imported checkpoints were trained with, where the LayerNorm may be absent.
    """

    def __init__(
        self, cond_dim: int, hidden: int, channels: int, variant: HeadVariant = "silu_v1", *, layernorm: bool = True
    ) -> None:
        super().__init__()
        self.norm: nn.Module = nn.LayerNorm(cond_dim) if layernorm else nn.Identity()
        self.fc1 = nn.Linear(cond_dim, hidden)
        self.act = nn.ReLU() if variant == "relu_v0" else nn.SiLU()
        self.fc2 = nn.Linear(hidden, 2 * channels)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        gamma, beta = self.fc2(self.act(self.fc1(self.norm(cond)))).chunk(2, dim=1)
        return gamma, beta


def make_heads(plan: FilmPlan, *, layernorm: bool = True) -> nn.ModuleDict:
    """One head per selected decoder stage, keyed by its index: names are `film.{s}.…`."""
    return nn.ModuleDict(
        {
            str(s): FilmHead(
                plan.cond_dim, plan.head_hidden, plan.decoder_channels[s], plan.head_variant, layernorm=layernorm
            )
            for s in plan.stages
        }
    )


def modulate(
    head: nn.Module, cond: Tensor, present: Tensor, strength: Tensor, limit: FilmLimit, gate: Tensor | None
) -> Modulation:
    """A head's output made ready for its site; exactly zero where the condition is absent.

    cond: (B, D) float32.  present: (B,) bool.  strength: scalar in [0, 1].
    """
    gamma, beta = head(cond)
    if limit.gamma is not None:
        gamma = limit.gamma * torch.tanh(gamma / limit.gamma)
    if limit.beta is not None:
        beta = limit.beta * torch.tanh(beta / limit.beta)
    here = present[:, None]
    gamma = torch.where(here, gamma * strength, 0.0)
    beta = torch.where(here, beta * strength, 0.0)
    return Modulation(gamma[:, :, None, None], beta[:, :, None, None], gate)


class FilmSite(nn.Module):
    """The place in a decoder stage where FiLM is applied. Has no parameters; without a modulation it does nothing."""

    def forward(self, x: Tensor, modulation: Modulation | None) -> Tensor:
        if modulation is None:
            return x
        delta = modulation.gamma * x + modulation.beta
        if modulation.gate is not None:
            delta = modulation.gate * delta
        return x + delta.to(x.dtype)


class ConditionProjection(nn.Module):
    """Frozen features (B, F) -> condition (B, D); the only trained part of conditioning.

    cond_source `probe`: Linear -> SiLU -> Linear, `hidden` wide inside. Any other: Linear -> LayerNorm. Text-like
    sources are named `text_proj`, all others `image_proj`.
    """

    def __init__(self, features: int, cond_dim: int, cond_source: str, hidden: int) -> None:
        super().__init__()
        self.features = features
        self.key = "text_proj" if cond_source in ("text", "probe") else "image_proj"
        layers = nn.ModuleDict()
        if cond_source == "probe":
            layers["fc1"], layers["fc2"] = nn.Linear(features, hidden), nn.Linear(hidden, cond_dim)
        else:
            layers["proj"], layers["norm"] = nn.Linear(features, cond_dim), nn.LayerNorm(cond_dim)
        self.add_module(self.key, layers)
        self.is_probe = cond_source == "probe"

    def forward(self, vec: Tensor) -> Tensor:
        layers = getattr(self, self.key)
        first, second = ("fc1", "fc2") if self.is_probe else ("proj", "norm")
        h = layers[first](vec)
        out: Tensor = layers[second](functional.silu(h) if self.is_probe else h)
        return out


def resize_junction(junction: Tensor, height: int, width: int, interp: Interp = "maxpool") -> Tensor:
    """The junction map at a decoder stage's size: max-pooled going down, so that no small disc is lost, bilinear up.

    junction: (B, 1, H, W) in [0, 1] -> (B, 1, height, width) in [0, 1]. `nearest` is for imported checkpoints.
    """
    if junction.shape[-2:] == (height, width):
        return junction
    if interp == "nearest":
        return functional.interpolate(junction, size=(height, width), mode="nearest")
    rows, columns = min(height, junction.shape[-2]), min(width, junction.shape[-1])
    pooled = functional.adaptive_max_pool2d(junction, (rows, columns))
    if (rows, columns) == (height, width):
        return pooled
    return functional.interpolate(pooled, size=(height, width), mode="bilinear", align_corners=False).clamp(0.0, 1.0)


def gate_map(junction: Tensor, strength: Tensor, value: float, height: int, width: int, interp: Interp) -> Tensor:
    """g = 1 - a (1 - v) J at a decoder stage's size; 1 leaves FiLM alone, 0 switches it off.

    strength: a, scalar in [0, 1].  value: v in [0, 1].
    """
    return 1.0 - strength * (1.0 - value) * resize_junction(junction, height, width, interp)


class SiteDiagnostics(NamedTuple):
    """Numbers of one decoder stage, scalars.

    gamma_abs, beta_abs: means of |dgamma| and |beta|.  gamma_spread: standard deviation of gamma over the batch, mean
    over channels (0 says that every sample gets the same modulation).  change_p50, change_p95: quantiles over the
    batch of ||delta|| / ||x||.
    """

    gamma_abs: Tensor
    beta_abs: Tensor
    gamma_spread: Tensor
    change_p50: Tensor
    change_p95: Tensor


def diagnose(modulations: Mapping[int, Modulation], changes: Mapping[int, Tensor]) -> dict[int, SiteDiagnostics]:
    """Diagnostics per decoder stage from what was applied and the relative changes (B,) it made."""
    found = {}
    for s, modulation in modulations.items():
        change = changes[s].detach().float()
        gamma, beta = modulation.gamma.detach(), modulation.beta.detach()
        found[s] = SiteDiagnostics(
            gamma.abs().mean(),
            beta.abs().mean(),
            gamma.std(dim=0, correction=0).mean(),
            torch.quantile(change, 0.5),
            torch.quantile(change, 0.95),
        )
    return found


def relative_change(before: Tensor, after: Tensor) -> Tensor:
    """||after - before|| / ||before|| per sample, (B,)."""
    size: Tensor = torch.linalg.vector_norm(before.detach().float(), dim=(1, 2, 3))
    difference: Tensor = torch.linalg.vector_norm((after - before).detach().float(), dim=(1, 2, 3))
    return difference / size.clamp_min(1e-12)
