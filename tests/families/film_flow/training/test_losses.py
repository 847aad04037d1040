"""Losses by closed form: one value per sample, empty masks, weights, the focal loss's normalisation."""

from __future__ import annotations

import math

import torch
from torch.nn import functional
from torch.testing import assert_close

from stageline.families.film_flow import losses


def masks() -> torch.Tensor:
    mask = torch.zeros(3, 1, 16, 16)
    mask[0, 0, 4:8, 4:8] = 1
    mask[1, 0, :, 7:9] = 1
    return mask


def test_dice_of_a_hit_a_miss_and_nothing() -> None:
    mask = masks()
    assert_close(losses.dice(mask, mask), torch.zeros(3))
    apart = torch.zeros_like(mask)
    apart[0, 0, 10:14, 10:14] = 1
    assert_close(losses.dice(apart, mask)[0], torch.tensor(1 - 1 / 33))
    half = losses.dice(0.5 * mask, mask)
    assert_close(half[0], torch.tensor(1 - 17 / 25))


def test_cross_entropy_is_the_mean_over_a_samples_pixels() -> None:
    mask, logits = masks(), torch.zeros(3, 1, 16, 16)
    assert_close(losses.bce(logits, mask), torch.full((3,), math.log(2)))
    soft = torch.full_like(mask, 0.25)
    best = torch.full_like(mask, math.log(1 / 3))
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert_close(losses.bce(best, soft), torch.full((3,), expected))


def test_a_weight_map_is_a_weighted_mean() -> None:
    value = torch.tensor([[[[1.0, 3.0]]]])
    weight = torch.tensor([[[[3.0, 1.0]]]])
    assert_close(losses.pixel_mean(value, weight), torch.tensor([1.5]))
    assert_close(losses.pixel_mean(value, torch.full_like(weight, 7.0)), losses.pixel_mean(value))


def test_mask_loss_gives_the_named_terms() -> None:
    logits = torch.randn(3, 1, 16, 16)
    terms = losses.mask_loss(logits, masks(), "bce_dice")
    assert set(terms) == {"bce", "dice"}
    assert set(losses.mask_loss(logits, masks(), "dice")) == {"dice"}
    assert all(value.shape == (3,) for value in terms.values())
    reference = functional.binary_cross_entropy_with_logits(logits, masks(), reduction="none").mean(dim=(1, 2, 3))
    assert_close(terms["bce"], reference)


def test_the_soft_skeleton_of_a_bar_is_thin_and_inside_it() -> None:
    bar = torch.zeros(1, 1, 24, 24)
    bar[0, 0, 8:13, 2:22] = 1
    skeleton = losses.soft_skeleton(bar)
    assert bool((skeleton <= bar + 1e-6).all())
    assert skeleton[0, 0, 10, 6:18].min() > 0.5
    assert float(skeleton[0, 0, :, 12].sum()) <= 1.5


def test_centreline_dice_sees_a_gap_that_dice_hardly_does() -> None:
    mask = masks()[1:2]
    broken = mask.clone()
    broken[0, 0, 7:9] = 0
    thin = mask.clone()
    thin[..., 8] = 0
    assert_close(losses.soft_cldice(mask, mask), torch.zeros(1), atol=1e-6, rtol=0)
    assert losses.soft_cldice(broken, mask) > 0.01
    assert losses.soft_cldice(thin, mask) < losses.dice(thin, mask)


def test_the_focal_loss_is_zero_for_a_perfect_map_and_divided_by_peaks() -> None:
    heat = torch.zeros(1, 1, 8, 8)
    heat[0, 0, 2, 2] = 1
    perfect = torch.where(heat > 0.5, 20.0, -20.0)
    assert_close(losses.junction_focal(perfect, heat), torch.zeros(1), atol=1e-6, rtol=0)
    flat = torch.zeros(1, 1, 8, 8)
    # At p = 1/2: a peak costs log 2 / 4, every other pixel with heat 0 as much.
    assert_close(losses.junction_focal(flat, heat), torch.tensor([64 * math.log(2) / 4]))
    two = heat.clone()
    two[0, 0, 5, 5] = 1
    assert_close(losses.junction_focal(flat, two), torch.tensor([32 * math.log(2) / 4]))
    empty = torch.zeros(1, 1, 8, 8)
    assert_close(losses.junction_focal(flat, empty), torch.tensor([64 * math.log(2) / 4]))


def test_heat_near_a_peak_is_forgiven() -> None:
    heat = torch.zeros(1, 1, 8, 8)
    heat[0, 0, 2, 2] = 1
    logits = torch.full((1, 1, 8, 8), -20.0)
    logits[0, 0, 2, 2] = 20.0
    logits[0, 0, 2, 3] = 2.0
    near = heat.clone()
    near[0, 0, 2, 3] = 0.8
    assert losses.junction_focal(logits, near) < 0.01 * losses.junction_focal(logits, heat)


def test_the_alternative_junction_loss_is_smaller_for_the_right_map() -> None:
    heat = torch.zeros(1, 1, 8, 8)
    heat[0, 0, 2:4, 2:4] = 1
    right, wrong = torch.where(heat > 0, 9.0, -9.0), torch.where(heat > 0, -9.0, 9.0)
    assert losses.junction_bce_dice(right, heat) < 0.05 < losses.junction_bce_dice(wrong, heat)
