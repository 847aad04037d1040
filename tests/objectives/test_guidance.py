"""Guidance: both ways of counting are one formula."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from stageline.objectives.guidance import guided_by_scale, guided_by_strength


def test_a_strength_is_a_scale_less_one() -> None:
    on, off = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for strength in (-1.0, 0.0, 0.5, 7.0):
        assert_close(guided_by_strength(on, off, strength), guided_by_scale(on, off, 1 + strength))
    assert torch.equal(guided_by_strength(on, off, 0.0), on)
    assert torch.equal(guided_by_scale(on, off, 0.0), off)
    each = guided_by_strength(on, off, torch.tensor([0.0, 1.0, 0.0, 2.0], dtype=torch.float64)[:, None])
    assert_close(each[1::2], torch.stack([2 * on[1] - off[1], 3 * on[3] - 2 * off[3]]))
