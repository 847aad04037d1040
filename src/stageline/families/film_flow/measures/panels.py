"""Pictures of one sample of an evaluation, each by itself: maps as grey, images, junctions over their image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stageline.data.shown import Rgb

NODE = (220, 30, 90)
HEAT = np.array([1.0, 0.55, 0.1])
"""Colour in which a junction map glows over its picture."""


def grey(values: Any, low: float = 0.0, high: float = 1.0) -> NDArray[np.uint8]:
    """A map (H, W) in [low, high] as grey (H, W)."""
    level = np.clip((np.asarray(values, dtype=np.float64) - low) / (high - low), 0, 1)
    return np.rint(level * 255).astype(np.uint8)


def maps_of(
    mean: Tensor, threshold: float, std: Tensor | None, junction: Tensor | None
) -> dict[str, NDArray[np.uint8]]:
    """Kind -> picture (H, W) uint8 of the first sample of maps (B, 1, H, W) in [0, 1].

    probability: 0..255 is [0, 1].  mask: 0 and 255.  spread: 255 is a standard deviation of 0.5.  junctions: as given.
    """
    maps = {"probability": mean, "mask": (mean > threshold).float()}
    if std is not None:
        maps["spread"] = std * 2
    if junction is not None:
        maps["junctions"] = junction
    return {kind: (m[0, 0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy() for kind, m in maps.items()}


def picture(image: Any) -> NDArray[np.uint8]:
    """An image (C, H, W) in [-1, 1] as (H, W) where C is 1, as (H, W, 3) where it is 3."""
    level = np.rint((np.clip(np.asarray(image, dtype=np.float64), -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.ascontiguousarray(level[0] if len(level) == 1 else level.transpose(1, 2, 0))


def junctions(image: NDArray[np.uint8], heat: Any, nodes: Any) -> Rgb:
    """A junction map (H, W) glowing over a darkened picture, true nodes (N, 2) as crosses. image: as of `picture`."""
    glow = np.clip(np.asarray(heat, dtype=np.float64), 0, 1)[..., None]
    rgb = image[..., None] if image.ndim == 2 else image
    result: Rgb = np.rint(np.clip(rgb * 0.45 * (1 - glow) + 255 * glow * HEAT, 0, 255)).astype(np.uint8)
    for row, column in np.rint(np.asarray(nodes, dtype=np.float64).reshape(-1, 2)).astype(int):
        for r, c in ((row, column), (row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= r < result.shape[0] and 0 <= c < result.shape[1]:
                result[r, c] = NODE
    return result
