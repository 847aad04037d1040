"""Crops, flips and right-angle turns of a training sample: one drawn transform, applied to every map by indexing alone.

The transform is a function of (seed, epoch, index). Labels are never resampled, so a transformed mask is binary, and
every map of a sample (image, mask, target, heat) goes through the same indices. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stageline.data.rng import numpy_rng

A = TypeVar("A", bound=NDArray[Any])
Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""


@dataclass(frozen=True)
class Transform:
    """Crop to `box`, then mirror rows and columns, then turn by `quarter_turns` x 90 degrees counter-clockwise."""

    box: Box
    flip_rows: bool = False
    flip_columns: bool = False
    quarter_turns: int = 0

    def crop(self, array: A) -> A:
        """The part of (..., H, W) inside the box, as a view."""
        top, left, height, width = self.box
        part: A = array[..., top : top + height, left : left + width]  # type: ignore[assignment]
        return part

    def orient(self, array: A) -> A:
        """Mirror and turn an already cropped (..., h, w)."""
        if self.flip_rows:
            array = np.flip(array, axis=-2)
        if self.flip_columns:
            array = np.flip(array, axis=-1)
        turned: A = np.ascontiguousarray(np.rot90(array, self.quarter_turns, axes=(-2, -1)))  # type: ignore[assignment]
        return turned

    def __call__(self, array: A) -> A:
        """The transformed (..., H, W)."""
        return self.orient(self.crop(array))


def draw_transform(
    seed: int, epoch: int, index: int, shape: tuple[int, int], crop_size: int, *, flips: bool
) -> Transform:
    """The transform of one training sample: a random square crop, and with `flips` one of the 8 symmetries of a square.

    shape: (H, W) of the picture, both at least `crop_size`.
    """
    rng = numpy_rng("augmentation", seed, epoch, index)
    top, left = (int(rng.integers(side - crop_size + 1)) for side in shape)
    box = (top, left, crop_size, crop_size)
    if not flips:
        return Transform(box)
    return Transform(box, bool(rng.integers(2)), bool(rng.integers(2)), int(rng.integers(4)))
