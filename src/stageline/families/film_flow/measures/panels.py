"""Sample pictures of an evaluation: tiles side by side with a caption above each, as RGB arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Rgb = NDArray[np.uint8]
TILE_PIXELS = 216
"""Least height of a tile; smaller maps are enlarged by whole factors, so that pixels stay square."""
CAPTION_PIXELS = 22
FONT_PIXELS = 15
GAP_PIXELS = 6
PAPER, INK = 255, (40, 40, 40)
RIGHT, MISSED, WRONG = (255, 255, 255), (230, 140, 20), (30, 120, 220)
"""Colours of a compared mask: found, missed (orange), found where there is nothing (blue)."""
NODE = (220, 30, 90)
HEAT = np.array([1.0, 0.55, 0.1])
"""Colour in which a junction map glows over its picture."""


@dataclass(frozen=True)
class Tile:
    """One picture of a row. pixels: (H, W, 3) uint8."""

    caption: str
    pixels: Rgb


def grey(values: Any, low: float = 0.0, high: float = 1.0) -> Rgb:
    """A map (H, W) in [low, high] as grey."""
    level = np.clip((np.asarray(values, dtype=np.float64) - low) / (high - low), 0, 1)
    return np.asarray(np.repeat(np.rint(level * 255).astype(np.uint8)[..., None], 3, axis=2))


def picture(image: Any) -> Rgb:
    """An image (C, H, W) in [-1, 1], C 1 or 3, as RGB."""
    level = np.rint((np.clip(np.asarray(image, dtype=np.float64), -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(level.transpose(1, 2, 0), (*level.shape[1:], 3)))


def compared(found: Any, truth: Any) -> Rgb:
    """A predicted mask (H, W) against the true one: white where both, orange where missed, blue where invented."""
    a, b = np.asarray(found) != 0, np.asarray(truth) != 0
    result = np.zeros((*a.shape, 3), dtype=np.uint8)
    result[a & b], result[~a & b], result[a & ~b] = RIGHT, MISSED, WRONG
    return result


def junctions(image: Rgb, heat: Any, nodes: Any) -> Rgb:
    """A junction map (H, W) glowing over a darkened picture, true nodes (N, 2) as crosses."""
    glow = np.clip(np.asarray(heat, dtype=np.float64), 0, 1)[..., None]
    result: Rgb = np.rint(np.clip(image * 0.45 * (1 - glow) + 255 * glow * HEAT, 0, 255)).astype(np.uint8)
    for row, column in np.rint(np.asarray(nodes, dtype=np.float64).reshape(-1, 2)).astype(int):
        for r, c in ((row, column), (row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= r < result.shape[0] and 0 <= c < result.shape[1]:
                result[r, c] = NODE
    return result


def join_tiles(tiles: Sequence[Tile], title: str = "") -> Rgb:
    """Tiles of one size in a row, each under its caption, with a title line above where one is given."""
    factor = max(1, -(-TILE_PIXELS // tiles[0].pixels.shape[0]))
    pixels = [np.repeat(np.repeat(tile.pixels, factor, axis=0), factor, axis=1) for tile in tiles]
    head = CAPTION_PIXELS * (2 if title else 1)
    height = head + max(part.shape[0] for part in pixels) + GAP_PIXELS
    width = sum(part.shape[1] + GAP_PIXELS for part in pixels) + GAP_PIXELS
    canvas = Image.new("RGB", (width, height), (PAPER, PAPER, PAPER))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=FONT_PIXELS)
    if title:
        draw.text((GAP_PIXELS, 3), title, fill=INK, font=font)
    left = GAP_PIXELS
    for tile, part in zip(tiles, pixels, strict=True):
        draw.text((left, head - CAPTION_PIXELS + 3), tile.caption, fill=INK, font=font)
        canvas.paste(Image.fromarray(part), (left, head))
        left += part.shape[1] + GAP_PIXELS
    return np.asarray(canvas)
