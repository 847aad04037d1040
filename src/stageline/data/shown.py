"""What of a measured set is shown to people: which samples, and how two masks are drawn. Loads no torch.

The colours stay apart for people who do not tell red from green, or blue from yellow, and without any colour too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rgb = NDArray[np.uint8]
Scalar = TypeVar("Scalar", np.uint8, np.bool_)
AGREED, MISSED, INVENTED = (255, 255, 255), (255, 170, 40), (40, 130, 255)
"""Found and true; true only (orange); found only (blue). Each about twice as bright as the next."""
LEAST_PIXELS = 640
"""A smaller picture is enlarged by a whole factor before outlines are drawn, so that they do not cover thin things."""
LINE_PIXELS = 2
"""Width of an outline, inside its mask."""
DARKENED = 0.45
"""Brightness that is left of a picture below outlines: every colour of theirs is brighter than what remains."""


def ranked(values: Mapping[str, float], *, higher_is_better: bool) -> list[str]:
    """Samples, best first; equal ones in their order. values: sample -> value of the main metric."""
    return sorted(values, key=values.__getitem__, reverse=higher_is_better)


def notable(values: Mapping[str, float], *, higher_is_better: bool) -> dict[str, str]:
    """Sample -> best, median or worst, in this order; nothing below three samples. values: as for `ranked`."""
    order = ranked(values, higher_is_better=higher_is_better)
    if len(order) < 3:
        return {}
    return {order[0]: "best", order[len(order) // 2]: "median", order[-1]: "worst"}


def boundary(mask: ArrayLike, width: int = LINE_PIXELS) -> NDArray[np.bool_]:
    """The pixels of a mask (H, W) from which its outside is reached in `width` steps along rows and columns.

    The frame of the picture is no boundary: what lies behind it is not known.
    """
    inside = np.asarray(mask, dtype=np.bool_)
    kept: NDArray[np.bool_] = inside
    for _ in range(width):
        grown = np.pad(kept, 1, constant_values=True)
        kept = kept & grown[:-2, 1:-1] & grown[2:, 1:-1] & grown[1:-1, :-2] & grown[1:-1, 2:]
    return inside & ~kept


def outlines(picture: Rgb, truth: ArrayLike, found: ArrayLike) -> Rgb:
    """The boundaries of two masks on their darkened picture, as RGB: white where both run, orange and blue where one.

    picture: (H, W) or (H, W, 3) uint8.  truth, found: masks (H, W). A picture below LEAST_PIXELS is enlarged.
    """
    factor = max(1, -(-LEAST_PIXELS // max(picture.shape[:2])))
    rgb = np.broadcast_to(picture[..., None], (*picture.shape, 3)) if picture.ndim == 2 else picture
    result: Rgb = _enlarged(np.rint(rgb * DARKENED).astype(np.uint8), factor)
    a, b = (boundary(_enlarged(np.asarray(mask, dtype=np.bool_), factor)) for mask in (found, truth))
    return _coloured(result, a, b)


def compared(found: ArrayLike, truth: ArrayLike) -> Rgb:
    """A predicted mask (H, W) and the true one on black: white where both, orange where missed, blue where invented."""
    a, b = np.asarray(found, dtype=np.bool_), np.asarray(truth, dtype=np.bool_)
    return _coloured(np.zeros((*a.shape, 3), dtype=np.uint8), a, b)


def _coloured(picture: Rgb, found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Rgb:
    picture[found & truth], picture[~found & truth], picture[found & ~truth] = AGREED, MISSED, INVENTED
    return picture


def _enlarged(pixels: NDArray[Scalar], factor: int) -> NDArray[Scalar]:
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)
