"""Directions and solid angles of tokens: against the formulas, closed forms of areas, and the pixels themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.geometry import directions, plan, project
from stageline.families.panorama_vlm.geometry.tokens import seen_tokens

from .sphere import ray, scene, sphere


@pytest.mark.parametrize("grid", [4, 16, (6, 9)])
def test_directions_are_those_of_the_formulas(grid: Any) -> None:
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    made = plan(75, 0.3, pitch_span_deg=140, caps=True)
    dirs, solid = directions(made, grid)
    assert (dirs.shape, solid.shape) == ((made.num_views, rows * columns, 3), (made.num_views, rows * columns))
    assert np.allclose(dirs[0], sphere(rows, columns).reshape(-1, 3), atol=1e-12)
    for tile in made.tiles:
        expected = ray(75, 75, tile.yaw_deg, tile.pitch_deg, rows, columns).reshape(-1, 3)
        assert np.allclose(dirs[tile.index], expected, atol=1e-12)
    assert torch.allclose(dirs.norm(dim=-1), torch.ones(()).double(), atol=1e-12)


def test_solid_angles_add_up() -> None:
    """A tile's to 4 asin(sin^2(f / 2)), the global view's to 4 pi; the six faces of a cube to 4 pi."""
    cube = directions(plan(90, 0, caps=True), 64).log_solid.exp().sum(1)
    assert cube[0].item() == pytest.approx(4 * math.pi, rel=1e-3)
    assert cube[1:].sum().item() == pytest.approx(4 * math.pi, rel=1e-3)
    narrow = directions(plan(50, 0), 64).log_solid.exp().sum(1)
    assert narrow[1].item() == pytest.approx(4 * math.asin(math.sin(math.radians(25)) ** 2), rel=1e-3)


def test_a_tile_of_two_plans_looks_the_same_way() -> None:
    few, many = directions(plan(90, 0), 8).dirs, directions(plan(90, 0.5), 8).dirs
    assert torch.equal(few, many[[0, 1, 3, 5, 7]])


def test_letterbox_drops_padding() -> None:
    boxed, whole = directions(plan(90, 0, global_mode="letterbox"), 16), directions(plan(90, 0), (8, 16))
    assert boxed.mask[0].reshape(16, 16).any(1).tolist() == [False] * 4 + [True] * 8 + [False] * 4
    assert torch.allclose(boxed.dirs[0][boxed.mask[0]], whole.dirs[0], atol=1e-12)
    assert boxed.log_solid[0].exp()[boxed.mask[0]].sum().item() == pytest.approx(4 * math.pi, rel=1e-2)
    assert boxed.mask[1:].all()
    assert torch.isfinite(boxed.log_solid).all()
    # 27 rows: the panorama ends inside of rows 6 and 20, which count with the part that shows it.
    odd = directions(plan(90, 0, global_mode="letterbox"), 27)
    assert odd.mask[0].reshape(27, 27).any(1).sum() == 15
    assert odd.log_solid[0].exp()[odd.mask[0]].sum().item() == pytest.approx(4 * math.pi, rel=1e-2)


def test_naflex_fills_a_wide_grid() -> None:
    made = plan(90, 0, global_mode="naflex")
    tokens = directions(made, 16)
    assert tokens.mask[0].tolist() == [True] * 242 + [False] * 14
    assert np.allclose(tokens.dirs[0, :242], sphere(11, 22).reshape(-1, 3), atol=1e-12)
    assert torch.equal(directions(made, 16, global_grid=(8, 16)).mask[0].sum(), torch.tensor(128))
    with pytest.raises(ConfigError, match="more than the 256 tokens"):
        directions(made, 16, global_grid=(12, 24))
    assert len(directions(plan(90, 0, global_mode="none"), 4).dirs) == 4


@pytest.mark.parametrize("centres", ["half", "corner"])
@pytest.mark.parametrize("size", [12, 13])
def test_pixels_show_what_their_directions_say(centres: Any, size: int) -> None:
    """A grid of one token per pixel: every tile, caps included, shows the scene in the direction of its tokens."""
    made = plan(70, 0.2, pitch_span_deg=120, caps=True, pixel_centres=centres, global_mode="none")
    dirs = directions(made, size, size=size).dirs.numpy()
    shown = project(scene(sphere(128, 256)), made, size, antialias="off").permute(0, 2, 3, 1).numpy()
    assert np.abs(shown.reshape(made.num_views, -1, 3) - scene(dirs)).max() < 1e-4


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_the_global_view_shows_what_its_directions_say(mode: Any) -> None:
    made = plan(90, 0, global_mode=mode)
    tokens = directions(made, 32)
    shown = project(scene(sphere(128, 256)), made, 32)[0].permute(1, 2, 0).reshape(-1, 3).numpy()
    seen = tokens.mask[0].numpy()
    assert np.abs(shown - scene(tokens.dirs[0].numpy()))[seen].max() < 1e-2
    assert (shown[~seen] == 0).all()


def test_pixels_of_a_patch_average_to_its_direction_in_corner_mode() -> None:
    made = plan(90, 0, pixel_centres="corner", global_mode="none")
    pixel_x = np.linspace(-1, 1, 12).reshape(4, 3).mean(1)
    dirs = directions(made, 4, size=12).dirs[made.yaws.index(0.0)].numpy()
    assert np.allclose((dirs[:, 0] / dirs[:, 2]).reshape(4, 4)[0], pixel_x, atol=1e-12)
    with pytest.raises(ConfigError, match="corner"):
        directions(made, 4)


def test_which_tokens_see_a_part_of_the_sphere() -> None:
    """The front half, and a band around the horizon; a token counts where its centre looks."""
    dirs = directions(plan(90, 0), 16).dirs
    whole = torch.ones(180, 360, dtype=torch.bool)
    assert seen_tokens(whole, dirs).all()
    half = whole.clone()
    half[:, :90] = half[:, 270:] = False
    seen = seen_tokens(half, dirs)
    front, back = plan(90, 0).yaws.index(0.0) + 1, plan(90, 0).yaws.index(-180.0) + 1
    assert seen[front].all()
    assert not seen[back].any()
    assert seen[0].reshape(16, 16).sum(1).tolist() == [8] * 16
    band = torch.zeros_like(whole)
    band[60:120] = True
    assert seen_tokens(band, dirs)[0].reshape(16, 16).any(1).tolist() == [False] * 5 + [True] * 6 + [False] * 5
    assert not seen_tokens(whole, torch.zeros(3, 3)).any(), "padding looks at nothing"


def test_dtype_and_grid() -> None:
    assert directions(plan(90, 0), 2, dtype=torch.float32).dirs.dtype == torch.float32
    with pytest.raises(ConfigError, match="token grid"):
        directions(plan(90, 0), 0)
