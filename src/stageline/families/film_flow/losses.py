"""Losses of film_flow, one value per sample, so that a batch may be split without changing their sum.

Legend: B samples; maps are (B, 1, H, W); masks and heat in [0, 1]; `valid` is 1 inside of one rectangle per sample, 0
where the picture is padded, None where all pixels count: the loss is that of the rectangles. Every function returns
(B,) float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SMOOTH = 1.0
"""Pixels added to both sides of a Dice ratio: empty against empty is a loss of 0."""
SKELETON_STEPS = 5
"""Erosions of the soft skeleton: covers vessels up to 10 pixels wide."""
HEAT_PEAK = 0.99
"""Heat above this is a positive of the junction loss."""


def pixel_mean(value: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over the pixels of each sample, weighted where a weight map is given."""
    if weight is None:
        return value.flatten(1).mean(dim=1)
    return (value * weight).flatten(1).sum(dim=1) / weight.flatten(1).sum(dim=1)


def bce(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy; `target` may be soft."""
    value = functional.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    return pixel_mean(value, weight)


def dice(probability: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 - (2 sum(p m) + 1) / (sum(p) + sum(m) + 1), per sample (Milletari et al., arXiv:1606.04797, smoothed)."""
    if valid is not None:
        probability, target = probability * valid, target * valid
    p, m = probability.float().flatten(1), target.float().flatten(1)
    return 1 - (2 * (p * m).sum(1) + SMOOTH) / (p.sum(1) + m.sum(1) + SMOOTH)


def soft_skeleton(probability: Tensor, steps: int = SKELETON_STEPS) -> Tensor:
    """Differentiable skeleton by iterated opening (Shit et al., arXiv:2003.07311, algorithm 1)."""

    def erode(x: Tensor) -> Tensor:
        vertical = -functional.max_pool2d(-x, (3, 1), 1, (1, 0))
        horizontal = -functional.max_pool2d(-x, (1, 3), 1, (0, 1))
        return torch.minimum(vertical, horizontal)

    def opened(x: Tensor) -> Tensor:
        return functional.max_pool2d(erode(x), 3, 1, 1)

    x = probability.float()
    skeleton = functional.relu(x - opened(x))
    for _ in range(steps):
        x = erode(x)
        ridge = functional.relu(x - opened(x))
        skeleton = skeleton + functional.relu(ridge - skeleton * ridge)
    return skeleton


def soft_cldice(probability: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 - harmonic mean of the shares of each one's soft skeleton that lies in the other (arXiv:2003.07311, eq. 1)."""
    if valid is not None:  # a skeleton ends at the picture's edge, so that each is made of its own rectangle
        rows = [_inside(valid[row, 0]) for row in range(len(valid))]
        parts = [(probability[n : n + 1, :, y, x], target[n : n + 1, :, y, x]) for n, (y, x) in enumerate(rows)]
        return torch.cat([soft_cldice(p, m) for p, m in parts])
    p, m = probability.float(), target.float()
    skeleton_p, skeleton_m = soft_skeleton(p).flatten(1), soft_skeleton(m).flatten(1)
    precision = ((skeleton_p * m.flatten(1)).sum(1) + SMOOTH) / (skeleton_p.sum(1) + SMOOTH)
    sensitivity = ((skeleton_m * p.flatten(1)).sum(1) + SMOOTH) / (skeleton_m.sum(1) + SMOOTH)
    return 1 - 2 * precision * sensitivity / (precision + sensitivity)


def _inside(valid: Tensor) -> tuple[slice, slice]:
    """Rows and columns of the rectangle of ones in a map (H, W)."""
    there = (valid.any(dim=1).nonzero().flatten().tolist(), valid.any(dim=0).nonzero().flatten().tolist())
    return slice(there[0][0], there[0][-1] + 1), slice(there[1][0], there[1][-1] + 1)


def weigh(weight: Tensor | None, valid: Tensor | None) -> Tensor | None:
    """Weights of pixels with those that do not count at zero."""
    if weight is None or valid is None:
        return valid if weight is None else weight
    return weight * valid


def mask_loss(
    logits: Tensor, target: Tensor, kind: str, weight: Tensor | None = None, valid: Tensor | None = None
) -> dict[str, Tensor]:
    """The terms of `model.loss` by name: `bce`, `dice` or both. `weight` weighs the pixels of the cross-entropy."""
    terms: dict[str, Tensor] = {}
    if "bce" in kind:
        terms["bce"] = bce(logits, target, weigh(weight, valid))
    if "dice" in kind:
        terms["dice"] = dice(torch.sigmoid(logits.float()), target, valid)
    return terms


def junction_focal(logits: Tensor, heat: Tensor, valid: Tensor | None = None) -> Tensor:
    """Penalty-reduced focal loss on a heat map, over the number of its peaks (Law & Deng, arXiv:1808.01244, eq. 1).

    heat: 1 at a junction's centre, falling off around it. A sample without a peak is divided by 1.
    """
    x = logits.float()
    p = torch.sigmoid(x)
    peak = heat > HEAT_PEAK
    hit = -((1 - p) ** 2) * functional.logsigmoid(x)
    miss = -((1 - heat) ** 4) * p**2 * functional.logsigmoid(-x)
    loss = torch.where(peak, hit, miss)
    total = (loss if valid is None else loss * valid).flatten(1).sum(1)
    return total / peak.flatten(1).sum(1).clamp_min(1)


def junction_bce_dice(logits: Tensor, heat: Tensor, valid: Tensor | None = None) -> Tensor:
    """Cross-entropy and Dice on the heat map: the alternative to the focal loss."""
    return bce(logits, heat, valid) + dice(torch.sigmoid(logits.float()), heat, valid)
