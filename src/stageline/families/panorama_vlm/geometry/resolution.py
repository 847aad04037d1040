"""How large a panorama has to be for a tile size: when it is reduced before sampling, and to what. No torch.

At the centre of a tile one output pixel spans 2 t / T radians (t the tangent of half the width, T the size), a pixel of
the panorama 2 pi / W. Undersampling begins at the critical width W* = pi T / t. A larger panorama is reduced once, with
a filter, to W' = ratio * W*, and then sampled bilinearly: a small ratio blurs, a large one aliases; 1.9 was best by
measurement against area averages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.geometry.views import View

Antialias = Literal["auto", "fast", "best", "off"]
Filter = Literal["bicubic", "bilinear"]

ASPECT_SLACK = 0.02
"""How far, as a share, width / height may be from 2 in a picture of the whole sphere."""
TRIGGER = 1.25
"""A panorama up to this much wider than W' is not worth a reduction."""
MULTIPLE = 32
"""W' is a multiple of it, so that a turn by an eighth of the panorama is a whole number of columns."""
SUPPORT = 8
"""Pixels of the reduced panorama that are padded before a reduction; a bicubic filter reaches 2."""


def is_whole_sphere(height: int, width: int) -> bool:
    """Whether a picture of that size may show the whole sphere: twice as wide as high, to ASPECT_SLACK."""
    return abs(width / (2 * height) - 1) <= ASPECT_SLACK


@dataclass(frozen=True)
class Quality:
    """ratio: W' / W*.  filter: of the reduction.  supersampling: samples per output pixel and side, then averaged."""

    ratio: float
    filter: Filter
    supersampling: int = 1


QUALITIES: dict[Antialias, Quality | None] = {
    "auto": Quality(1.9, "bicubic"),
    "fast": Quality(1.27, "bilinear"),
    "best": Quality(2.5, "bicubic", supersampling=2),
    "off": None,
}


def quality_of(antialias: Antialias) -> Quality | None:
    """What a setting means, None for `off`; ConfigError for a word that is none."""
    if antialias not in QUALITIES:
        raise ConfigError(f"antialias is {antialias!r}, expected one of {', '.join(QUALITIES)}")
    return QUALITIES[antialias]


def critical_width(views: Iterable[View], size: tuple[int, int]) -> float:
    """W*, the panorama's width in pixels below which its tiles are enlarged; of the view with the finest pixels.

    views: perspective views; others are passed over, and 0 is the answer where there are none.  size: (height, width)
    of a tile in pixels.
    """
    height, width = size
    return max(
        (
            math.pi * pixels / tangent
            for view in views
            if view.kind != "global"
            for pixels, tangent in zip((width, height), view.tangents, strict=True)
        ),
        default=0.0,
    )


def reduced_width(width: int, views: Iterable[View], size: tuple[int, int], antialias: Antialias = "auto") -> int:
    """W': the width to which a panorama is reduced before tiles are sampled from it; its own where it is not."""
    quality = quality_of(antialias)
    wanted = quality.ratio * critical_width(views, size) if quality else 0.0
    if wanted == 0.0 or width <= TRIGGER * wanted:
        return width
    return max(MULTIPLE, round(wanted / MULTIPLE) * MULTIPLE)


def reduced_size(
    height: int, width: int, views: Iterable[View], size: tuple[int, int], antialias: Antialias = "auto"
) -> tuple[int, int]:
    """(height, width) that is sampled for a panorama of that size: its own, or W' / 2 and W'."""
    target = reduced_width(width, views, size, antialias)
    return (height, width) if target == width else (target // 2, target)
