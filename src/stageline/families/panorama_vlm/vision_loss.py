"""The loss of stage `vision`: matched tokens of two views agree (VICReg), and the tower stays near where it started.

Pairs of tokens come from the kinds in `vicreg.pairs`, each exact: `adjacent` tiles of the plan, a tile and the `global`
view, a tile and the same tile turned (`jitter`), a tile with other colours (`photometric`). Tokens of one side stand on
their centres, those of the other are interpolated where the first ones look.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from stageline.config import note_once
from stageline.families.panorama_vlm import vicreg
from stageline.families.panorama_vlm.data.sets import Batch
from stageline.families.panorama_vlm.features import cut_turned, cut_views
from stageline.families.panorama_vlm.geometry.matching import Correspondence, global_partners, jitter_pairs, pairs
from stageline.families.panorama_vlm.model.assembly import PanoramaModel
from stageline.objectives.step import StepContext, ValidationContext, of_one_rank

if TYPE_CHECKING:
    from collections.abc import Callable

    from stageline.families.panorama_vlm.config import PanoramaVlmConfig

JITTER = (0.25, 0.75)
"""A second render of a tile is turned by this share of its width, drawn evenly."""
ANCHOR_WARNING = 0.9
"""Mean cosine to the tower as it was, below which it drifts away from what a language model is aligned with later."""


class Matched:
    """Matched tokens of all kinds of a batch.

    x, y: (K, n, D) of K directed pairs.  valid: (K, n).
    """

    def __init__(self, x: Tensor, y: Tensor, valid: Tensor) -> None:
        self.x, self.y, self.valid = x, y, valid


class VisionLoss:
    """Loss and measures of one stage's model."""

    def __init__(self, config: PanoramaVlmConfig) -> None:
        self.config, self.settings = config, config.vicreg
        self.plan, self.grid, self.size = config.image_processing.plan, config.grid, config.tile_size
        self._anchor: nn.Module | None = None

    def set_anchor(self, tower: nn.Module) -> None:
        """Compare the model's tower with this one, which stays outside of the model and does not train."""
        self._anchor = tower.eval().requires_grad_(requires_grad=False)

    def terms(self, network: PanoramaModel, batch: Batch, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, its parts) of a batch, terms over all ranks."""
        total, parts, _, _ = self._all(network, batch, [context.rng] * len(batch), context.gather, context.shared)
        return total, parts

    def measures(self, network: PanoramaModel, batch: Batch, context: ValidationContext) -> dict[str, Tensor]:
        """Loss, parts and diagnostics of a validation batch."""
        draws = [context.rng(row) for row in range(len(batch))]
        total, parts, matched, features = self._all(network, batch, draws, of_one_rank, draws[0])
        flat = features.flatten(0, -2)
        if "anchor_cos" in parts and float(parts["anchor_cos"]) < ANCHOR_WARNING:
            note_once(
                f"stage vision: tokens have a mean cosine below {ANCHOR_WARNING} to those of the untrained tower; what "
                "a language model is aligned with may be lost: fewer steps, a lower rate, or more vicreg.anchor_weight"
            )
        return {
            "val_loss": total,
            **parts,
            "pair_cos": vicreg.pair_cosine(matched.x[matched.valid], matched.y[matched.valid]),
            "pair_retrieval": vicreg.pair_retrieval(matched.x, matched.y, matched.valid),
            "feature_std": vicreg.feature_std(flat),
            "effective_rank": vicreg.effective_rank(flat),
        }

    def _all(
        self,
        network: PanoramaModel,
        batch: Batch,
        draws: Sequence[torch.Generator],
        gather: Callable[[Tensor], Tensor],
        shared: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor], Matched, Tensor]:
        device = next(network.parameters()).device
        views = cut_views(self.config, batch.pictures).to(device)
        tokens = network.encode(views)
        features = self._tapped(network, tokens)
        matched = self._matched(network, batch, views, features, draws)
        assert network.projector is not None
        terms = self._spread(network.projector, matched, features, gather, shared)
        weights = (self.settings.invariance_weight, self.settings.variance_weight, self.settings.covariance_weight)
        total = weights[0] * terms.inv + weights[1] * terms.var + weights[2] * terms.cov
        parts = {"invariance": terms.inv, "variance": terms.var, "covariance": terms.cov}
        if self._anchor is not None:
            cosine = self._anchor_cosine(network, views, tokens)
            total = total + self.settings.anchor_weight * (1 - cosine)
            parts["anchor_cos"] = cosine
        return total, parts, matched, features

    def _spread(
        self,
        projector: nn.Module,
        matched: Matched,
        features: Tensor,
        gather: Callable[[Tensor], Tensor],
        shared: torch.Generator,
    ) -> vicreg.VicregTerms:
        """Terms over the matched tokens of all ranks, pooled or inside each directed pair.

        Tokens are gathered before the projector, whose batch norm then sees the whole batch on every rank; in one call
        over both sides, which two in a row would see apart.
        """
        settings, keep = self.settings, matched.valid.flatten()
        sides = [gather(side.flatten(0, 1)[keep]) for side in (matched.x, matched.y)]
        left, right = projector(torch.cat(sides).float()).chunk(2)
        if settings.statistics == "per_pair":
            valid = gather(matched.valid)
            x, y = (side.new_zeros(*valid.shape, side.shape[-1]) for side in (left, right))
            x[valid], y[valid] = left, right
            return vicreg.loss(x, y, settings.form, valid, statistics="per_pair")
        raw = None
        if settings.statistics_on == "raw":
            whole = projector(gather(features.flatten(0, -2)).float())
            raw = (whole, whole)
        return vicreg.loss(left, right, settings.form, raw=raw, max_tokens=settings.max_tokens, rng=shared)

    def _anchor_cosine(self, network: PanoramaModel, views: Tensor, tokens: Tensor) -> Tensor:
        """Mean cosine of the tower's tokens (B, V, S, D) to those of the tower as it was."""
        assert self._anchor is not None
        with torch.no_grad():
            before = network.encode_with(self._anchor.to(views.device), views)
        return functional.cosine_similarity(tokens.float(), before.float(), dim=-1).mean()

    def _tapped(self, network: PanoramaModel, features: Tensor) -> Tensor:
        """What the loss acts on: the tower's tokens, or those behind a resampler that keeps their places."""
        if self.settings.tap == "vision":
            return features
        tokens = network.image_tokens(features).tokens
        return tokens.reshape(*features.shape[:3], tokens.shape[-1])

    def _matched(
        self,
        network: PanoramaModel,
        batch: Batch,
        views: Tensor,
        features: Tensor,
        draws: Sequence[torch.Generator],
    ) -> Matched:
        plan = self.plan
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        first = 1 if plan.has_global else 0
        for kind in self.config.vicreg_pairs:
            if kind == "adjacent":
                found.append(_sampled(pairs(plan, self.grid, size=self.size), features))
            elif kind == "global":
                found.append(_sampled(global_partners(plan, self.grid, size=self.size), features))
            elif kind == "jitter":
                shares = torch.stack([torch.rand((), generator=rng) for rng in draws])
                offsets = (JITTER[0] + (JITTER[1] - JITTER[0]) * shares) * plan.fov_deg
                turned = cut_turned(self.config, batch.pictures, offsets).to(views.device)
                others = network.encode(turned)
                places = jitter_pairs(plan, self.grid, offsets, size=self.size)
                found.append(_sampled(places, features, others))
            else:
                others = network.encode(_recoloured(views[:, first:], draws, self.settings.color_jitter))
                x = features[:, first:].flatten(0, 1)
                found.append((x, others.flatten(0, 1), torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)))
        x, y, valid = (torch.cat(part) for part in zip(*found, strict=True))
        return Matched(x, y, valid)


def _sampled(places: Correspondence, features: Tensor, others: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of views `a`, features of views `b` where they look, and which count: (B * P, S, D) and (B * P, S).

    features: (B, V, S, D) of all views.  others: (B, P, S, D) of a second render of the views, if there is one.
    """
    x = features[:, places.a.to(features.device)]
    y = places.sample(features.float() if others is None else others.float(), of_pairs=others is not None)
    valid = places.valid.to(features.device).expand(*x.shape[:3])
    return x.flatten(0, 1).float(), y.flatten(0, 1), valid.flatten(0, 1)


def _recoloured(views: Tensor, draws: Sequence[torch.Generator], strength: float) -> Tensor:
    """Views (B, V, 3, T, T) with another brightness and contrast for each panorama, in [0, 1].

    strength: largest change of either, drawn evenly, in (0, 1].
    """
    shares = torch.stack([torch.rand(2, generator=rng) for rng in draws]).to(views) * 2 - 1
    brightness, contrast = (shares[:, k].view(-1, 1, 1, 1, 1) for k in (0, 1))
    mean = views.mean(dim=(-3, -2, -1), keepdim=True)
    return ((views - mean) * (1 + strength * contrast) + mean + strength * brightness).clamp(0, 1)
