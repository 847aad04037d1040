"""Pictures of any size for a network that wants sides of a certain kind: mirrored padding and overlapping windows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SIGMA_SHARE = 0.125
"""Standard deviation of a window's weight as a share of its side."""
LEAST_WEIGHT = 1e-3
"""Weight of a window's corners, so that no pixel is divided by zero."""


@dataclass(frozen=True)
class Window:
    """A square part of a picture: top and left corner, side, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, x: Tensor) -> Tensor:
        """The part of x (..., H, W) in this window."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]


def mirror_index(size: int, padded: int) -> Tensor:
    """Indices (padded,) into a side of `size` pixels, mirrored at its end as often as needed, the edge not repeated."""
    index = torch.arange(padded)
    if size == 1:
        return torch.zeros_like(index)
    period = 2 * (size - 1)
    index = index % period
    return torch.where(index < size, index, period - index)


def pad_mirrored(x: Tensor, divisor: int, least: int = 1) -> Tensor:
    """x (..., H, W) grown to the right and below, until both sides are multiples of `divisor` and at least `least`."""
    height, width = (max(least, -(-side // divisor) * divisor) for side in x.shape[-2:])
    for axis, side in ((-2, height), (-1, width)):
        if side != x.shape[axis]:
            x = x.index_select(axis, mirror_index(x.shape[axis], side).to(x.device))
    return x


@dataclass(frozen=True)
class Padding:
    """The one way pictures of one size become pictures that the network takes, and its maps come back.

    height, width: of the pictures.  divisor: what padded sides are multiples of.  least: the least padded side.
    """

    height: int
    width: int
    divisor: int
    least: int = 1

    def grow(self, x: Tensor) -> Tensor:
        """x (..., height, width) with mirrored edges to the right and below."""
        return pad_mirrored(x, self.divisor, self.least)

    def cut(self, x: Tensor) -> Tensor:
        """The pictures' own part (..., height, width) of a padded map."""
        return x[..., : self.height, : self.width]


def cover(height: int, width: int, side: int | None, overlap: float) -> list[Window]:
    """Windows that cover a picture; one window of its own size where side is None.

    side: of a window, at most height and width.  overlap: least share of its side that neighbours have in common.
    """
    if side is None or (height <= side and width <= side):
        return [Window(0, 0, height, width)]
    stride = max(1, int(side * (1 - overlap)))

    def starts(length: int) -> list[int]:
        return [*range(0, length - side, stride), length - side]

    return [Window(top, left, side, side) for top in starts(height) for left in starts(width)]


def blend_weight(window: Window) -> Tensor:
    """Gaussian weight (height, width) of a window's pixels, in [LEAST_WEIGHT, 1]."""

    def bell(side: int) -> Tensor:
        distance = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
        return torch.exp(-(distance**2) / (2 * (SIGMA_SHARE * side) ** 2))

    return (bell(window.height)[:, None] * bell(window.width)[None]).clamp_min(LEAST_WEIGHT)
