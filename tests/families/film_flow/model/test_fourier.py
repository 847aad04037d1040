"""Fourier maps: the half plane says everything the full one does to real input."""

from __future__ import annotations

import pytest
import torch

from stageline.errors import ConfigError
from stageline.families.film_flow.model.fourier import FourierFilter, filter_real, full_plane, half_plane

SIZES = [(8, 8), (7, 7), (8, 7), (7, 8), (12, 9), (1, 4), (4, 1)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_half_map_does_what_the_full_one_did(height: int, width: int) -> None:
    """Acceptance check 23."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, height, width, dtype=torch.float64, generator=rng)
    full = torch.randn(3, height, width, dtype=torch.float64, generator=rng)
    old = torch.fft.ifft2(torch.fft.fft2(x) * full).real
    new = filter_real(x, half_plane(full))
    assert (old - new).abs().max() <= 1e-12


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_full_and_half_are_inverse_on_symmetric_maps(height: int, width: int) -> None:
    half = half_plane(torch.randn(2, height, width, dtype=torch.float64))
    full = full_plane(half, width)
    assert full.shape == (2, height, width)
    assert torch.allclose(half_plane(full), half, atol=1e-15)


def test_ones_are_the_identity_at_any_size() -> None:
    layer = FourierFilter(3, (32, 17))
    for size in ((32, 32), (20, 12), (9, 15), (64, 48)):
        x = torch.randn(2, 3, *size)
        assert torch.allclose(layer(x), x, atol=1e-5)


def test_at_the_grids_own_size_the_map_is_used_as_it_is() -> None:
    layer = FourierFilter(2, (16, 9))
    torch.nn.init.normal_(layer.map)
    assert torch.allclose(layer.resized(16, 16), layer.map, atol=1e-6)
    x = torch.randn(1, 2, 16, 16)
    assert torch.allclose(layer(x), filter_real(x, layer.map), atol=1e-5)


def test_a_resized_map_means_the_same_frequencies() -> None:
    """A map that is linear in |frequency| filters a wave by its frequency, whatever the picture's size."""
    layer = FourierFilter(1, (32, 17))
    rows = torch.arange(32.0)
    vertical = torch.where(rows < 16, rows, 32 - rows) / 32
    horizontal = torch.arange(17.0) / 32
    layer.map.data = (vertical[:, None] + horizontal[None, :])[None]
    for size in (16, 32, 48, 64):
        position = torch.arange(float(size))
        wave = torch.cos(2 * torch.pi * position / 8)
        x = (wave[:, None] * wave[None, :])[None, None]
        assert torch.allclose(layer(x), x * (1 / 8 + 1 / 8), atol=1e-4)


def test_an_imported_map_belongs_to_one_size() -> None:
    layer = FourierFilter(2, (8, 5), fixed_width=8)
    assert layer(torch.randn(1, 2, 8, 8)).shape == (1, 2, 8, 8)
    with pytest.raises(ConfigError, match=r"16x8.*8x8") as error:
        layer(torch.randn(1, 2, 16, 8))
    assert error.value.code == "E_SIZE"
