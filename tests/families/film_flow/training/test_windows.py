"""Padding and windows: every pixel once or more, weights positive, mirrored edges as numpy mirrors them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stageline.families.film_flow.data.windows import Window, blend_weight, cover, mirror_index, pad_mirrored


@given(st.integers(2, 40), st.integers(0, 100))
def test_mirroring_is_numpys_reflection(size: int, extra: int) -> None:
    expected = np.pad(np.arange(size), (0, extra), mode="reflect")
    assert mirror_index(size, size + extra).tolist() == expected.tolist()


def test_one_pixel_is_repeated() -> None:
    assert mirror_index(1, 4).tolist() == [0, 0, 0, 0]


@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from([1, 4, 8]), st.integers(1, 40))
def test_padding_grows_to_the_next_multiple(height: int, width: int, divisor: int, least: int) -> None:
    x = torch.arange(height * width, dtype=torch.float32).reshape(1, height, width)
    padded = pad_mirrored(x, divisor, least)
    assert torch.equal(padded[..., :height, :width], x)
    for side, own in zip(padded.shape[1:], (height, width), strict=True):
        assert side >= max(own, least)
        assert side == least or side % divisor == 0
        assert side - own < divisor or side == least


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
