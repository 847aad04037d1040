"""Which samples are shown, and how two masks are drawn so that everybody tells them apart."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from scipy import ndimage

from stageline.data.shown import (
    AGREED,
    DARKENED,
    INVENTED,
    LEAST_PIXELS,
    LINE_PIXELS,
    MISSED,
    boundary,
    compared,
    notable,
    outlines,
    ranked,
)

DICHROMATS = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
"""Linear RGB as a person without one kind of cones sees it (Machado, Oliveira and Fernandes 2009, severity 1)."""


def linear(colour: tuple[int, int, int]) -> np.ndarray:
    """sRGB of 0 to 255 as linear RGB (IEC 61966-2-1)."""
    value = np.array(colour) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def luminance(colour: tuple[int, int, int]) -> float:
    return float(linear(colour) @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_boundary_is_a_mask_without_its_erosion(width: int) -> None:
    draw = np.random.default_rng(width)
    for share, shape in ((0.5, (9, 14)), (0.9, (20, 17)), (0.0, (4, 4)), (1.0, (5, 3)), (0.7, (1, 6))):
        mask = draw.random(shape) < share
        inner = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(2, 1), width, border_value=1)
        assert np.array_equal(boundary(mask, width), mask & ~inner)


@pytest.mark.parametrize("shape", [(40, 30), (700, 900, 3)])
def test_outlines_lie_on_the_boundaries_and_the_rest_is_the_darkened_picture(shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(1)
    picture = draw.integers(0, 256, shape, dtype=np.uint8)
    truth, found = (ndimage.gaussian_filter(draw.random(shape[:2]), 3) > 0.5 for _ in range(2))
    factor = -(-LEAST_PIXELS // max(shape[:2])) if max(shape[:2]) < LEAST_PIXELS else 1
    shown = outlines(picture, truth, found)
    assert shown.shape == (factor * shape[0], factor * shape[1], 3)
    a, b = (boundary(np.kron(mask, np.ones((factor, factor), bool)), LINE_PIXELS) for mask in (found, truth))
    rgb = picture if picture.ndim == 3 else np.stack([picture] * 3, axis=2)
    dark = np.rint(np.kron(rgb, np.ones((factor, factor, 1))) * DARKENED)
    for where, colour in ((a & b, AGREED), (~a & b, MISSED), (a & ~b, INVENTED)):
        assert where.any()
        assert (shown[where] == colour).all()
    assert np.array_equal(shown[~(a | b)], dark[~(a | b)])


def test_compared_masks_have_a_colour_for_each_of_the_four_cases() -> None:
    found, truth = np.array([[1, 1], [0, 0]]), np.array([[1, 0], [1, 0]])
    assert compared(found, truth).tolist() == [[[*AGREED], [*INVENTED]], [[*MISSED], [0, 0, 0]]]


def test_colours_are_told_apart_with_any_eyes_and_without_colour() -> None:
    colours = (AGREED, MISSED, INVENTED)
    brightest = luminance((round(255 * DARKENED),) * 3)
    levels = sorted((luminance(colour) for colour in colours), reverse=True)
    assert levels[-1] > brightest, "a line is brighter than any picture below it"
    assert all(high / low > 1.9 for high, low in pairwise(levels))
    for name, matrix in DICHROMATS.items():
        seen = [np.clip(np.array(matrix) @ linear(colour), 0, 1) for colour in colours]
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 0.4, name


def test_notable_samples_are_the_ends_and_the_middle_of_the_order() -> None:
    values = {"a": 0.5, "b": 0.9, "c": 0.1, "d": 0.5, "e": 0.7}
    assert ranked(values, higher_is_better=True) == ["b", "e", "a", "d", "c"]
    assert notable(values, higher_is_better=True) == {"b": "best", "a": "median", "c": "worst"}
    assert notable(values, higher_is_better=False) == {"c": "best", "d": "median", "b": "worst"}
    assert notable({"a": 1.0, "b": 2.0}, higher_is_better=True) == {}
