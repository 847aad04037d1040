"""A real picture with a pseudo-label: the retina inside scikit-image, and a ridge filter's guess at its vessels.

The label is made by a filter, not by a person: it is called "pseudo" in every name, prompt, manifest and table, and no
number against it is an accuracy. It has a false ring at the optic disc. The picture (`skimage.data.retina()`, CC0) is
inside the scikit-image wheel, so nothing is downloaded. The left half is for training, the right half is held out, with
a margin between them. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data, filters, transform

PSEUDO_ORIGIN = "pseudo-label: Sato ridge filter on skimage.data.retina(), made by no person"
SIZE = 704
MARGIN = 16
"""Pixels left out on each side of the middle; wider than the ridge filter's reach of 4 sigma = 16 px."""
BACKGROUND_SIGMA = 20.0
RIDGE_SIGMAS = (1, 2, 3, 4)
HYSTERESIS_QUANTILES = (0.88, 0.96)
MIN_COMPONENT_PIXELS = 80
FIELD_LEVEL = 0.06
"""Share of full brightness above which a pixel belongs to the field of view; the rim around it is nearly black."""
FIELD_EROSION = 12


@dataclass(frozen=True)
class PseudoLabelled:
    """One region of the picture.

    pixels: (H, W, 3) uint8.  mask: (H, W) uint8 {0, 1}, pseudo.  field: (H, W) bool, inside the field of view.
    """

    name: str
    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    field: NDArray[np.bool_]


def make_pseudo_label(green: NDArray[np.float64], field: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Guess the vessels: (H, W) green channel in [0, 1] -> (H, W) uint8 {0, 1}.

    Background removed by a wide Gaussian, Sato filter for dark ridges, hysteresis at two quantiles of the response
    inside `field`, small components dropped.
    """
    level = green - ndimage.gaussian_filter(green, BACKGROUND_SIGMA)
    ridges = np.where(field, filters.sato(level, sigmas=RIDGE_SIGMAS, black_ridges=True), 0.0)  # type: ignore[no-untyped-call]
    low, high = np.quantile(ridges[field], HYSTERESIS_QUANTILES)
    found = filters.apply_hysteresis_threshold(ridges, low, high) & field  # type: ignore[no-untyped-call]
    parts, _ = ndimage.label(found, np.ones((3, 3)))
    large = np.bincount(parts.ravel()) >= MIN_COMPONENT_PIXELS
    large[0] = False
    return np.asarray(large[parts], dtype=np.uint8)


@lru_cache(maxsize=1)
def load_pseudo_retina() -> PseudoLabelled:
    """The whole picture at 704 x 704 with its pseudo-label; about a second of work the first time."""
    picture = transform.resize(data.retina(), (SIZE, SIZE, 3), anti_aliasing=True)  # type: ignore[no-untyped-call]
    green = np.ascontiguousarray(picture[..., 1])
    field = ndimage.binary_fill_holes(picture.mean(axis=2) > FIELD_LEVEL)
    inner = ndimage.binary_erosion(field, iterations=FIELD_EROSION)
    mask = make_pseudo_label(green, inner)
    return PseudoLabelled("retina-pseudo", np.rint(picture * 255).astype(np.uint8), mask, inner)


def load_half(split: str) -> PseudoLabelled:
    """The left half (`train`) or the right, held-out half (any other split), each `MARGIN` px short of the middle."""
    whole = load_pseudo_retina()
    side, columns = (
        ("left", slice(0, SIZE // 2 - MARGIN)) if split == "train" else ("right", slice(SIZE // 2 + MARGIN, SIZE))
    )
    return PseudoLabelled(
        f"retina-pseudo-{side}",
        np.ascontiguousarray(whole.pixels[:, columns]),
        np.ascontiguousarray(whole.mask[:, columns]),
        np.ascontiguousarray(whole.field[:, columns]),
    )


def tile_boxes(field: NDArray[np.bool_], size: int) -> list[tuple[int, int, int, int]]:
    """Boxes (top, left, height, width) of a grid of size x size tiles at least half inside the field of view.

    The grid starts at the top left; what is left over at the right and bottom is covered by no tile.
    """
    height, width = field.shape
    boxes = []
    for top in range(0, height - size + 1, size):
        for left in range(0, width - size + 1, size):
            if field[top : top + size, left : left + size].mean() >= 0.5:
                boxes.append((top, left, size, size))
    return boxes
