"""Correspondence of tokens against the formulas in numpy, closed forms, and what the pictures show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.geometry import directions, pairs, plan, project
from stageline.families.panorama_vlm.geometry.matching import Correspondence, global_partners, jitter_pairs

from .sphere import Array, ray, sphere, waves

PLANS = [(90, 0.5), (90, 0.25), (60, 0.5), (120, 0.5), (75, 0.0)]


def place(d: Array, fov: float, yaw: float, pitch: float, grid: int) -> tuple[Array, Array, Array]:
    """u, v, valid of world directions in a tile, from scalar products with its axes."""
    psi, theta, t = np.radians(yaw), np.radians(pitch), np.tan(np.radians(fov) / 2)
    right = np.array([np.cos(psi), 0, -np.sin(psi)])
    forward = np.array([np.cos(theta) * np.sin(psi), np.sin(theta), np.cos(theta) * np.cos(psi)])
    up = np.cross(forward, right)
    depth = d @ forward
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = d @ right / depth / t, -(d @ up) / depth / t
    valid = (depth > 0) & (np.abs(u) <= 1 - 1 / grid) & (np.abs(v) <= 1 - 1 / grid)
    return np.where(valid, u, np.nan), np.where(valid, v, np.nan), valid


@pytest.mark.parametrize(("fov", "overlap"), PLANS)
@pytest.mark.parametrize("grid", [8, 16, 27])
def test_pairs_are_those_of_the_formulas(fov: float, overlap: float, grid: int) -> None:
    """Check 5: u, v and valid of every directed pair, the seam pair included, to 1e-9."""
    made = plan(fov, overlap)
    found = pairs(made, grid)
    assert len(found) == 2 * made.N
    for k, (a, b) in enumerate(found.directed):
        d = ray(fov, fov, made.views[a].yaw_deg, 0, grid, grid).reshape(-1, 3)
        u, v, valid = place(d, fov, made.views[b].yaw_deg, 0, grid)
        assert np.array_equal(found.valid[k].numpy(), valid)
        assert np.allclose(found.u[k], u, atol=1e-9, equal_nan=True)
        assert np.allclose(found.v[k], v, atol=1e-9, equal_nan=True)
        assert np.allclose(found.col[k], (u + 1) / 2 * grid - 0.5, atol=1e-9, equal_nan=True)
        assert np.allclose(found.row[k], (v + 1) / 2 * grid - 0.5, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize(("fov", "overlap", "count"), [(90, 0.5, 118), (90, 0.25, 88), (90, 0, 0), (60, 0.5, 120)])
def test_how_many_tokens_are_shared(fov: float, overlap: float, count: int) -> None:
    """Check 5: 118 of 256 for eight tiles of 90 degrees; none at overlap 0; the same for every pair."""
    assert set(pairs(plan(fov, overlap), 16).valid.sum(1).tolist()) == {count}


def test_closed_form_of_one_ring() -> None:
    """x' = (x - tan D) / (1 + x tan D) and y' = y / (cos D + x sin D): rows bend, columns do not shift linearly."""
    made, grid = plan(90, 0.5), 16
    found = pairs(made, grid)
    centres = (np.arange(grid) + 0.5) / grid * 2 - 1
    x, y = np.tile(centres, grid), np.repeat(-centres, grid)
    for (a, b), u, v, valid in zip(found.directed, found.u, found.v, found.valid, strict=True):
        right = made.views[a].right_neighbour == b
        delta = np.radians(made.step_deg if right else -made.step_deg)
        chosen = valid.numpy()
        assert np.allclose(u[valid], ((x - np.tan(delta)) / (1 + x * np.tan(delta)))[chosen], atol=1e-12)
        assert np.allclose(v[valid], (-y / (np.cos(delta) + x * np.sin(delta)))[chosen], atol=1e-12)
    assert (found.v[0] * torch.from_numpy(-y) >= 0)[found.valid[0]].all()


def test_homography_says_the_same() -> None:
    made, grid = plan(90, 0.25), 14
    found = pairs(made, grid)
    k = made.views[1].intrinsics(grid, grid)
    for number in (0, made.N - 1, made.N):
        a, b = found.directed[number]
        delta = np.radians(made.views[b].yaw_deg - made.views[a].yaw_deg)
        turn = np.array([[np.cos(delta), 0, -np.sin(delta)], [0, 1, 0], [np.sin(delta), 0, np.cos(delta)]])
        row, col = np.divmod(np.arange(grid * grid), grid)
        moved = k @ turn @ np.linalg.inv(k) @ np.stack((col, row, np.ones_like(col)))
        valid = found.valid[number].numpy()
        assert np.allclose(found.col[number][valid], (moved[0] / moved[2])[valid], atol=1e-9)
        assert np.allclose(found.row[number][valid], (moved[1] / moved[2])[valid], atol=1e-9)


def test_the_seam_is_a_pair_like_any_other() -> None:
    made = plan(90, 0.5)
    found = pairs(made, 16)
    seam, front = found.index(8, 1), found.index(4, 5)
    assert torch.allclose(found.u[seam], found.u[front], atol=1e-12, equal_nan=True)
    assert torch.allclose(found.v[seam], found.v[front], atol=1e-12, equal_nan=True)
    with pytest.raises(ConfigError, match="no pair"):
        found.index(1, 5)


def test_rings_above_each_other_share_tokens() -> None:
    made, grid = plan(60, 0.4, pitch_span_deg=96, caps=True), 12
    found = pairs(made, grid)
    kinds = set()
    for k, (a, b) in enumerate(found.directed):
        one, other = made.views[a], made.views[b]
        d = ray(60, 60, one.yaw_deg, one.pitch_deg, grid, grid).reshape(-1, 3)
        u, v, valid = place(d, 60, other.yaw_deg, other.pitch_deg, grid)
        assert np.array_equal(found.valid[k].numpy(), valid)
        assert np.allclose(found.u[k], u, atol=1e-9, equal_nan=True)
        assert np.allclose(found.v[k], v, atol=1e-9, equal_nan=True)
        if valid.any():
            kinds.add((one.kind, other.kind, one.ring == other.ring))
    assert {("tile", "tile", True), ("tile", "tile", False)} <= kinds


def test_grids_need_not_be_square() -> None:
    made = plan(90, 0.5)
    found = pairs(made, (6, 9))
    assert found.u.shape == (16, 54)
    assert found.col[found.valid].max() <= 8 + 1e-9
    assert found.row[found.valid].max() <= 5 + 1e-9


def test_features_are_sampled_where_the_direction_is() -> None:
    """The field of directions itself, sampled in the other view, gives back each token's own direction."""
    made, grid = plan(90, 0.5, pitch_span_deg=135), 48
    dirs = directions(made, grid).dirs
    found = pairs(made, grid)
    sampled = torch.nn.functional.normalize(found.sample(dirs[None])[0], dim=-1)
    apart = (sampled - dirs[found.a]).norm(dim=-1)[found.valid].max()
    assert apart < 1e-3
    assert (found.sample(dirs[None])[0][~found.valid] == 0).all()


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_every_token_has_a_partner_in_the_global_view(mode: Any) -> None:
    made, grid = plan(90, 0, global_mode=mode), 32
    tokens = directions(made, grid)
    found = global_partners(made, grid)
    assert found.valid.all()
    assert found.directed == tuple((k, 0) for k in range(1, 5))
    sampled = torch.nn.functional.normalize(found.sample(tokens.dirs[None])[0], dim=-1)
    apart = (sampled - tokens.dirs[1:]).norm(dim=-1)
    assert apart.max() < 0.03
    # The tile that looks back: its middle columns lie between the last and the first column of the global view.
    back = apart[made.yaws.index(-180.0)].reshape(grid, grid)
    assert back[:, grid // 2 - 2 : grid // 2 + 2].max() < 0.03


def test_partners_in_the_global_view_follow_the_formula() -> None:
    made, grid = plan(90, 0.5), 16
    d = np.stack([ray(90, 90, yaw, 0, grid, grid).reshape(-1, 3) for yaw in made.yaws])
    lam, phi = np.arctan2(d[..., 0], d[..., 2]), np.arctan2(d[..., 1], np.hypot(d[..., 0], d[..., 2]))
    found = global_partners(made, grid)
    assert np.allclose(found.col, (lam / (2 * np.pi) + 0.5) * grid - 0.5, atol=1e-9)
    assert np.allclose(found.row, (0.5 - phi / np.pi) * grid - 0.5, atol=1e-9)
    for mode in ("none", "naflex"):
        with pytest.raises(ConfigError, match="global view"):
            global_partners(plan(90, 0, global_mode=mode), grid)  # type: ignore[arg-type]


def test_a_turned_render_is_matched_like_a_neighbour() -> None:
    made, grid = plan(90, 0.5), 16
    neighbours = pairs(made, grid)
    turned = jitter_pairs(made, grid, 45.0)
    assert torch.allclose(turned.u, neighbours.u[[0]].expand(8, -1), atol=1e-12, equal_nan=True)
    still = jitter_pairs(made, grid, 0.0)
    assert still.valid.all()
    assert torch.allclose(still.col, torch.arange(16.0).double().tile(16).expand(8, -1), atol=1e-9)
    several = jitter_pairs(plan(90, 0, caps=True), grid, torch.tensor([22.5, 45.0, 90.0]))
    assert several.u.shape == (3, 6, 256)
    assert several.valid[:2].any(-1).all()
    assert not several.valid[2, :4].any()


def test_a_turned_render_shows_the_same_direction() -> None:
    made, grid = plan(90, 0, caps=True, global_mode="none"), 48
    offset = 30.0
    turned = [
        torch.from_numpy(ray(90, 90, tile.yaw_deg + offset, tile.pitch_deg, grid, grid).reshape(-1, 3))
        for tile in made.tiles
    ]
    found = jitter_pairs(made, grid, offset)
    sampled = torch.nn.functional.normalize(found.sample(torch.stack(turned)[None], of_pairs=True)[0], dim=-1)
    assert (sampled - directions(made, grid).dirs).norm(dim=-1)[found.valid].max() < 1e-3


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack((x.reshape(-1), y.reshape(-1))))[0, 1])


def patches(made: Any, overlap_pixels: int, grid: int) -> torch.Tensor:
    """(1, V, S, 1) mean of each token's pixels on a texture with features of 8 degrees."""
    texture = waves(sphere(256, 512), degrees=8).repeat(3, -1)
    shown = project(texture, made, grid * overlap_pixels, antialias="off")[:, :1]
    return torch.nn.functional.avg_pool2d(shown, overlap_pixels).flatten(2).transpose(1, 2)[None]


def test_paired_patches_show_the_same() -> None:
    """Check 5: patch means of a texture correlate where they are paired exactly, and hardly where columns are."""
    made, grid = plan(90, 0.5), 16
    means = patches(made, 6, grid)
    found: Correspondence = pairs(made, grid)
    own, other = means[0][found.a], found.sample(means)[0]
    assert correlation(own[found.valid], other[found.valid]) >= 0.85
    # What pairing by strips would do: the right half of a tile beside the left half of the next one.
    field = means[0, 1:, :, 0].reshape(8, grid, grid)
    assert correlation(field[:, :, grid // 2 :], field.roll(-1, 0)[:, :, : grid // 2]) <= 0.4
    wrong = Correspondence(found.a, found.b, found.u, -found.v, found.valid, found.grid).sample(means)[0]
    assert correlation(own[found.valid], wrong[found.valid]) <= 0.4
