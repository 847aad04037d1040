"""Pictures of one sample of an evaluation, each by itself: maps as grey, images, junctions over their image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stageline.data.shown import Rgb

NODE = (220, 30, 90)
HEAT = np.array([1.0, 0.55, 0.1])
"""Colour in which a junction map glows over its picture."""


def grey(values: Any, low: float = 0.0, high: float = 1.0) -> NDArray[np.uint8]:
    """A map (H, W) in [low, high] as grey (H, W)."""
    level = np.clip((np.asarray(values, dtype=np.float64) - low) / (high - low), 0, 1)
    return np.rint(level * 255).astype(np.uint8)


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
