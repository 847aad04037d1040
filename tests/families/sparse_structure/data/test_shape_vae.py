"""The shape VAE: closed forms of its loss, order of its tokens, scales; on shapes that it never saw it learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stageline.errors import DataError
from stageline.families.sparse_structure.data.made import make_scene
from stageline.families.sparse_structure.data.poses import MODALITIES, PoseStatistics, decode_poses, encode_poses
from stageline.families.sparse_structure.model.scale import SceneScale
from stageline.families.sparse_structure.model.shape_vae import (
    ShapeVAE,
    VaeOutput,
    merge_voxels,
    split_voxels,
    vae_loss,
    voxel_iou,
)

BETA = 0.03


def cubes(count: int, side: int = 8) -> Tensor:
    return torch.rand(count, side, side, side, generator=torch.Generator().manual_seed(0)) < 0.3


def made(split: str, number: int) -> tuple[Tensor, np.ndarray]:
    """Voxels (B, 16, 16, 16) bool and classes (B,) of the objects of made-up scenes."""
    things = [thing for index in range(number) for thing in make_scene(split, index, 0).objects]
    return torch.from_numpy(np.stack([thing.voxels for thing in things])), np.array([thing.kind for thing in things])


def test_tokens_are_the_posterior_means_x_major_and_decode_to_the_same() -> None:
    model = ShapeVAE(channels=4, width=16).eval()
    voxels = cubes(2, 12)
    with torch.no_grad():
        mean, _ = model.encode(voxels)
        tokens = model.to_tokens(voxels)
        assert mean.shape == model.noise_shape(voxels) == (2, 4, 3, 3, 3)
        assert tokens.shape == (2, 27, 4)
        for x, y, z in ((0, 0, 1), (0, 1, 0), (2, 0, 1)):
            assert torch.equal(tokens[:, 9 * x + 3 * y + z], mean[:, :, x, y, z])
        logits = model(voxels, torch.zeros(model.noise_shape(voxels))).logits
        assert logits.shape == voxels.shape
        assert torch.equal(model.from_tokens(tokens), logits)
    for shape in ((2, 10, 12, 12), (12, 12, 12)):
        with pytest.raises(ValueError, match="a multiple of 4"):
            model.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match="26 tokens are no cube"):
        model.from_tokens(torch.zeros(1, 26, 4))
    with pytest.raises(ValueError, match="width 20"):
        ShapeVAE(width=20)


def test_neighbours_become_channels_and_come_back_where_they_were() -> None:
    voxels = torch.arange(2 * 6 * 4 * 8.0).reshape(2, 6, 4, 8)
    split = split_voxels(voxels)
    assert split.shape == (2, 8, 3, 2, 4)
    for x, y, z in ((0, 0, 1), (0, 3, 0), (5, 1, 6)):
        channel = (x % 2) * 4 + (y % 2) * 2 + z % 2
        assert torch.equal(split[:, channel, x // 2, y // 2, z // 2], voxels[:, x, y, z])
    assert torch.equal(merge_voxels(split), voxels)


def test_the_loss_has_its_closed_forms() -> None:
    voxels = cubes(3, 4)
    zero = torch.zeros(3, 2, 1, 1, 1)
    parts = vae_loss(VaeOutput(torch.zeros(3, 4, 4, 4), zero, zero), voxels)
    assert parts["occupancy"][0].item() == pytest.approx(3 * math.log(2))
    assert (parts["kl"][0].item(), parts["kl"][1], parts["occupancy"][1]) == (0, 3, 3)
    mean, log_variance = zero + 1.5, zero + math.log(0.25)
    parts = vae_loss(VaeOutput(torch.zeros(3, 4, 4, 4), mean, log_variance), voxels)
    expected = 3 * 2 * 0.5 * (1.5**2 + 0.25 - 1 - math.log(0.25)) / 64
    assert parts["kl"][0].item() == pytest.approx(expected)
    sure = torch.where(voxels, 20.0, -20.0)
    assert vae_loss(VaeOutput(sure, zero, zero), voxels)["occupancy"][0] < 1e-6
    weighted = vae_loss(VaeOutput(torch.zeros(3, 4, 4, 4), zero, zero), voxels, positive_weight=3.0)
    share = voxels.float().mean((1, 2, 3))
    assert weighted["occupancy"][0].item() == pytest.approx(float((math.log(2) * (1 + 2 * share)).sum()))


def test_the_loss_of_a_batch_is_the_sum_over_its_objects() -> None:
    torch.manual_seed(0)
    model, voxels = ShapeVAE(channels=4, width=16), cubes(4)
    noise = torch.randn(model.noise_shape(voxels))
    whole = vae_loss(model(voxels, noise), voxels)
    halves = [vae_loss(model(voxels[part], noise[part]), voxels[part]) for part in (slice(0, 1), slice(1, 4))]
    for name, (total, count) in whole.items():
        assert count == sum(half[name][1] for half in halves) == 4
        torch.testing.assert_close(total, halves[0][name][0] + halves[1][name][0])


def test_intersection_over_union() -> None:
    a = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    b = a.clone()
    a[0, :2], b[0, 1:3] = True, True
    assert voxel_iou(a, b).tolist() == pytest.approx([1 / 3, 1])


def test_a_scale_standardises_and_gives_back() -> None:
    scale = SceneScale(channels=3)
    tokens = torch.randn(4, 10, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.1, 0]) + 7
    assert torch.equal(scale.scale_shape(tokens), tokens)
    scale.measure_latents([tokens[:1], tokens[1:]])
    scaled = scale.scale_shape(tokens)
    torch.testing.assert_close(scaled.mean((0, 1)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        scaled.flatten(0, 1).std(0, correction=0), torch.tensor([1.0, 1.0, 0]), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(scale.unscale_shape(scaled), tokens)
    with pytest.raises(DataError, match="no objects"):
        scale.measure_latents([])


def test_a_scale_keeps_the_statistics_of_poses() -> None:
    poses = [make_scene("train", index, 0).poses for index in range(3)]
    encoded = [encode_poses(own) for own in poses]
    statistics, scale = PoseStatistics.of(encoded), SceneScale()
    scale.set_poses(statistics)
    other = SceneScale()
    other.load_state_dict(scale.state_dict())
    np.testing.assert_allclose(other.poses.to_array(), statistics.to_array(), rtol=1e-6)
    seen = statistics.standardise(encoded[1])
    latents = {name: torch.from_numpy(seen[name])[:, None] for name in reversed(MODALITIES)}
    back = decode_poses({name: value.numpy() for name, value in other.unscale_poses(latents).items()})
    np.testing.assert_allclose(back.rotation, poses[1].rotation, atol=1e-5)
    np.testing.assert_allclose(back.translation, poses[1].translation, atol=1e-5)


@pytest.mark.slow
def test_it_learns_shapes_that_it_never_saw() -> None:
    """IoU of at least 0.9 on held-out objects, none of which occurs in training; the mean shape of a class has 0.25."""
    torch.manual_seed(0)
    (train, train_kinds), (test, test_kinds) = made("train", 400), made("test", 60)
    assert not {shape.numpy().tobytes() for shape in train} & {shape.numpy().tobytes() for shape in test}
    model, rate, steps = ShapeVAE(), 3e-3, 300
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = (
            rate * min(1, (step + 1) / 20) * (0.525 + 0.475 * math.cos(math.pi * step / steps))
        )
        voxels = train[torch.randint(len(train), (32,))]
        parts = vae_loss(model(voxels, torch.randn(model.noise_shape(voxels))), voxels, positive_weight=2)
        loss = (parts["occupancy"][0] + BETA * parts["kl"][0]) / 32
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = model.from_tokens(model.to_tokens(test)) > 0
    means = {
        kind: train[torch.from_numpy(train_kinds == kind)].float().mean(0) >= 0.5 for kind in np.unique(train_kinds)
    }
    assert voxel_iou(found, test).mean() >= 0.9
    assert voxel_iou(torch.stack([means[kind] for kind in test_kinds]), test).mean() < 0.4
