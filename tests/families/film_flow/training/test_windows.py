"""Padding and windows: every pixel once or more, weights positive, edges repeated as numpy repeats them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stageline.families.film_flow.data.windows import Padding, Window, blend_weight, cover


@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from([1, 4, 8]), st.integers(1, 40))
def test_padding_repeats_the_edge_up_to_the_next_multiple(height: int, width: int, divisor: int, least: int) -> None:
    x = torch.arange(height * width, dtype=torch.float32).reshape(1, height, width)
    padding = Padding(height, width, divisor, least)
    padded = padding.grow(x)
    sides = [max(least, -(-own // divisor) * divisor) for own in (height, width)]
    missing = [(0, 0), *((0, side - own) for side, own in zip(sides, (height, width), strict=True))]
    np.testing.assert_array_equal(padded.numpy(), np.pad(x.numpy(), missing, mode="edge"))
    assert torch.equal(padding.cut(padded), x)


@given(st.integers(8, 90), st.integers(8, 90), st.sampled_from([8, 16]), st.floats(0, 0.9))
def test_windows_cover_every_pixel_and_stay_inside(height: int, width: int, side: int, overlap: float) -> None:
    height, width = max(height, side), max(width, side)
    counts = torch.zeros(height, width)
    for window in cover(height, width, side, overlap):
        part = window.cut(counts)
        assert part.shape == (window.height, window.width)
        part.add_(1)
    assert float(counts.min()) >= 1


def test_a_picture_of_window_size_is_one_window() -> None:
    assert cover(32, 32, 32, 0.25) == [Window(0, 0, 32, 32)]
    assert cover(32, 48, None, 0.25) == [Window(0, 0, 32, 48)]


@pytest.mark.parametrize("side", [8, 31])
def test_a_windows_weight_is_highest_in_the_middle_and_never_nothing(side: int) -> None:
    weight = blend_weight(Window(0, 0, side, side))
    assert float(weight.min()) > 0
    assert torch.equal(weight, weight.flip(0, 1))
    assert weight[side // 2, side // 2] == weight.max()
