"""Pictures of any size for a network that wants sides of a certain kind: padded by edge values, in windows."""

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


@dataclass(frozen=True)
class Padding:
    """The one way pictures of one size become pictures that the network takes, and its maps come back.

    Training, validation, evaluation and prediction pad alike: to the right and below, by the values at the edge, so
    that a picture smaller than a training crop looks the same to all of them.
    height, width: of the pictures.  divisor: what padded sides are multiples of.  least: the least padded side.
    """

    height: int
    width: int
    divisor: int
    least: int = 1

    def grow(self, x: Tensor) -> Tensor:
        """x (..., height, width), its last row and column repeated until both sides are as they have to be."""
        for axis, side in ((-2, self.height), (-1, self.width)):
            padded = max(self.least, -(-side // self.divisor) * self.divisor)
            if padded != side:
                x = x.index_select(axis, torch.arange(padded, device=x.device).clamp_max(side - 1))
        return x

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
