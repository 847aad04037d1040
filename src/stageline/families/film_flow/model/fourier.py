"""Learned filters in Fourier space: a real map over the half plane of frequencies that `rfft2` keeps.

MedSegDiff (arXiv:2211.00611, FF-parser) multiplies the full spectrum by a real map A and takes the real part. For real
input that equals filtering with (A(k) + A(-k)) / 2, of which half a plane says all (`half_plane`, exact).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from stageline.errors import ConfigError

DEFAULT_GRID = 32
"""Rows of the small map that is resized to the size at hand; a map per pixel ties a checkpoint to one image size."""


def half_plane(full: Tensor) -> Tensor:
    """A full map (C, H, W) -> the symmetric half map (C, H, W // 2 + 1) with the same effect on real input."""
    mirrored = torch.roll(full.flip((-2, -1)), (1, 1), dims=(-2, -1))
    return ((full + mirrored) / 2)[..., : full.shape[-1] // 2 + 1].contiguous()


def full_plane(half: Tensor, width: int) -> Tensor:
    """A symmetric full map (C, H, width) whose half plane is `half`; the inverse of `half_plane` on such maps."""
    rest = half[..., 1 : width - half.shape[-1] + 1].flip((-2, -1))
    return torch.cat((half, torch.roll(rest, 1, dims=-2)), dim=-1).contiguous()


def filter_real(x: Tensor, half: Tensor) -> Tensor:
    """x (B, C, H, W) filtered by a half map (C, H, W // 2 + 1), at least in float32."""
    wide = x if x.dtype == torch.float64 else x.float()
    # torch types its fft functions as Any.
    fft = cast(Any, torch.fft)
    spectrum = fft.rfft2(wide) * half.to(wide.dtype)
    return cast(Tensor, fft.irfft2(spectrum, s=(x.shape[-2], x.shape[-1]))).to(x.dtype)


def hat_weights(positions: Tensor, size: int, *, periodic: bool) -> Tensor:
    """Linear interpolation as a matrix: (n,) positions in index units -> (n, size) weights, each row summing to 1."""
    distance = positions[:, None] - torch.arange(size, device=positions.device, dtype=positions.dtype)
    if periodic:
        distance = torch.remainder(distance + size / 2, size) - size / 2
    return (1.0 - distance.abs()).clamp_min(0.0)


class FourierFilter(nn.Module):
    """One filter per channel, starting as the identity.

    grid: rows and columns of the stored half map. fixed: the map is used as it is and belongs to one size, which is
    then checked (imported checkpoints); otherwise it is read at the frequencies of the input by bilinear interpolation.
    """

    def __init__(self, channels: int, grid: tuple[int, int], *, fixed_width: int = 0) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.ones(channels, *grid))
        self.fixed_width = fixed_width

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2], x.shape[-1]
        if self.fixed_width:
            if (height, width) != (self.map.shape[-2], self.fixed_width):
                raise ConfigError(
                    f"the network got a feature map of {height}x{width}, but its Fourier maps are stored for "
                    f"{self.map.shape[-2]}x{self.fixed_width}",
                    remedy="use the image size the checkpoint was trained with, or sliding windows of that size",
                    code="E_SIZE",
                )
            return filter_real(x, self.map)
        return filter_real(x, self.resized(height, width))

    def resized(self, height: int, width: int) -> Tensor:
        """The half map at the frequencies of an input of this size, (C, height, width // 2 + 1)."""
        rows, columns = self.map.shape[-2], self.map.shape[-1]
        vertical = torch.arange(height, device=self.map.device, dtype=self.map.dtype)
        vertical = torch.where(vertical < (height + 1) // 2, vertical, vertical - height) * (rows / height)
        horizontal = torch.arange(width // 2 + 1, device=self.map.device, dtype=self.map.dtype)
        horizontal = horizontal * (2 * (columns - 1) / width)
        return (
            hat_weights(vertical, rows, periodic=True)
            @ self.map
            @ hat_weights(horizontal, columns, periodic=False).transpose(0, 1)
        )
