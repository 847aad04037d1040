"""Pictures for people: a panorama, and the borders of the views drawn on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from stageline.data.shown import Rgb
from stageline.families.panorama_vlm.geometry.projection import resize_sphere
from stageline.families.panorama_vlm.geometry.tiles import TilePlan
from stageline.families.panorama_vlm.geometry.views import View

WIDTH = 512
"""Of a drawn panorama, pixels."""
LINE_COLOURS = ((255, 255, 255), (255, 210, 60), (90, 220, 255), (255, 130, 200))
"""Of tile borders, in turn; each is drawn on a dark edge so that it shows on any picture."""
EDGE = (20, 20, 20)
POINTS = 48
"""Points per side of a tile's border."""


def shown(pixels: Tensor, width: int = WIDTH) -> Rgb:
    """A panorama (3, H, W) of uint8 or uint16 as (width / 2, width, 3) uint8."""
    whole = pixels if pixels.dtype == torch.uint8 else (pixels.int() // 257).to(torch.uint8)
    small = resize_sphere(whole[None].contiguous(), (width // 2, width))[0]
    return np.ascontiguousarray(small.permute(1, 2, 0).numpy())


def border(tile: View, points: int = POINTS) -> NDArray[np.float64]:
    """Longitude and latitude in degrees (4 * points, 2) along the border of a tile, closed.

    points: per side.
    """
    t_h, t_v = tile.tangents
    side = np.linspace(-1, 1, points, endpoint=False)
    ones = np.ones(points)
    x = np.concatenate([side, ones, -side, -ones]) * t_h
    y = np.concatenate([ones, -side, -ones, side]) * t_v
    world = np.stack([x, y, np.ones_like(x)], axis=1) @ tile.rotation.T
    lon = np.degrees(np.arctan2(world[:, 0], world[:, 2]))
    lat = np.degrees(np.arctan2(world[:, 1], np.hypot(world[:, 0], world[:, 2])))
    return np.stack([lon, lat], axis=1)


def draw_tiles(picture: Rgb, plan: TilePlan) -> Rgb:
    """A panorama (H, W, 3) with the borders of all tiles of a plan."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    height, width = picture.shape[:2]
    for number, tile in enumerate(plan.tiles):
        for line in _lines(border(tile), width, height):
            draw.line(line, fill=EDGE, width=5)
            draw.line(line, fill=LINE_COLOURS[number % len(LINE_COLOURS)], width=3)
    return np.asarray(image)


def _lines(places: NDArray[np.float64], width: int, height: int) -> Iterator[list[tuple[float, float]]]:
    """Polylines in pixels, cut where they cross the seam."""
    x = (places[:, 0] / 360 + 0.5) * width - 0.5
    y = (0.5 - places[:, 1] / 180) * height - 0.5
    closed = [*zip(x, y, strict=True), (x[0], y[0])]
    line = [closed[0]]
    for before, place in itertools.pairwise(closed):
        if abs(place[0] - before[0]) > width / 2:
            yield line
            line = []
        line.append(place)
    yield line


def panorama_pictures(pixels: Tensor, plan: TilePlan, number: int) -> dict[str, Rgb]:
    """The panorama (3, H, W) as it is and with the tiles of a plan. number: of its row, which stands in their names."""
    picture = shown(pixels)
    return {f"panorama-{number}": picture, f"tiles-{number}": draw_tiles(picture, plan)}
