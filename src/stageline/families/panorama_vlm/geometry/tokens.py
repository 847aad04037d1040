"""What the tokens of a plan look at: a unit direction and a solid angle each, which depend on the plan alone.

A view's tokens are a grid of rows x columns of equal patches, row by row. The global view's grid spans the panorama.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.geometry.tiles import TilePlan
from stageline.families.panorama_vlm.geometry.views import View, edge_tangents

Grid = int | tuple[int, int]
"""Tokens of a view: (rows, columns), or one number for both."""


class TokenDirections(NamedTuple):
    """Where tokens look.

    dirs: (V, S, 3) unit directions in world axes.  log_solid: (V, S) natural logarithm of the solid angle in steradian.
    Both are 0 for a token that looks at nothing: padding of a letterboxed or NaFlex global view.
    """

    dirs: Tensor
    log_solid: Tensor

    @property
    def mask(self) -> Tensor:
        """(V, S) bool: the token looks at something."""
        return self.dirs.square().sum(-1) > 0.5


def grid_of(grid: Grid) -> tuple[int, int]:
    """(rows, columns) of a grid; ConfigError where they are no positive integers."""
    rows, columns = (int(side) for side in grid) if isinstance(grid, (tuple, list)) else (int(grid),) * 2
    if rows < 1 or columns < 1:
        raise ConfigError(f"token grid is {grid!r}, expected rows and columns of at least 1")
    return rows, columns


def cell_centres(count: int) -> Tensor:
    """(count,) float64 centres of equal cells over [-1, 1]."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count * 2 - 1


def tile_rays(grid: Grid, tangents: tuple[float, float]) -> Tensor:
    """(S, 3) float64 rays (x, y, 1) in camera axes through the centres of a tile's cells, row by row.

    tangents: of half the width and half the height, measured to the outer edges of the outer cells.
    """
    rows, columns = grid_of(grid)
    x = cell_centres(columns) * tangents[0]
    y = -cell_centres(rows) * tangents[1]
    return torch.stack(
        (x.expand(rows, columns), y[:, None].expand(rows, columns), torch.ones(rows, columns, dtype=torch.float64)), -1
    ).reshape(-1, 3)


def naflex_grid(tokens: int) -> tuple[int, int]:
    """The largest grid of h x 2h patches with at most this many: 256 -> (11, 22)."""
    rows = max(1, math.isqrt(tokens // 2))
    return rows, 2 * rows


def global_span(plan: TilePlan, grid: tuple[int, int]) -> tuple[float, float]:
    """Width and height of the panorama as shares of the global view's sides: 1, 1 unless it is letterboxed."""
    if plan.global_mode != "letterbox":
        return 1.0, 1.0
    rows, columns = grid
    return min(1.0, 2 * rows / columns), min(1.0, columns / (2 * rows))


def _visible(count: int, share: float) -> tuple[Tensor, Tensor]:
    """Centre in [-1, 1] of the panorama and width, of the part of each of `count` cells that shows the panorama."""
    edges = torch.linspace(-1, 1, count + 1, dtype=torch.float64).clamp(-share, share) / share
    return (edges[1:] + edges[:-1]) / 2, edges[1:] - edges[:-1]


def _global_tokens(plan: TilePlan, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    shares = global_span(plan, grid)
    (along, width), (down, height) = _visible(grid[1], shares[0]), _visible(grid[0], shares[1])
    lam, phi = torch.meshgrid(along * math.pi, -down * math.pi / 2, indexing="xy")
    dirs = torch.stack((phi.cos() * lam.sin(), phi.sin(), phi.cos() * lam.cos()), -1)
    area = (height[:, None] * math.pi / 2) * (width[None] * math.pi)
    empty = area < 1e-12
    solid = torch.where(empty, 1.0, area * phi.cos())
    return dirs.masked_fill(empty[..., None], 0).reshape(-1, 3), solid.log().reshape(-1)


def _tile_tokens(view: View, grid: tuple[int, int], tangents: tuple[float, float]) -> tuple[Tensor, Tensor]:
    rays = tile_rays(grid, tangents)
    length = rays.norm(dim=-1)
    cell = (2 * tangents[0] / grid[1]) * (2 * tangents[1] / grid[0])
    dirs = rays / length[:, None] @ torch.from_numpy(view.rotation).T
    return dirs, math.log(cell) - 3 * length.log()


def directions(
    plan: TilePlan,
    grid: Grid,
    *,
    size: Grid | None = None,
    global_grid: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> TokenDirections:
    """Unit direction (V, S, 3) and log solid angle (V, S) of every token of a plan.

    grid: tokens of a view.  size: rendered pixels of a view, needed where pixel centres lie on the border (`corner`).
    global_grid: patches of a NaFlex tower's global view, the largest 2:1 grid that fits where absent; its missing
    tokens are padding.  dtype: of the result; everything is computed in float64.
    A tile's cell has the solid angle (2 t / G)^2 cos^3(a), a its angle off the axis.
    """
    rows, columns = grid_of(grid)
    found = []
    for view in plan.views:
        if view.kind != "global":
            found.append(_tile_tokens(view, (rows, columns), edge_tangents(view, plan.pixel_centres, size)))
        elif plan.global_mode == "naflex":
            found.append(_padded(_global_tokens(plan, global_grid or naflex_grid(rows * columns)), rows * columns))
        else:
            found.append(_global_tokens(plan, (rows, columns)))
    return TokenDirections(
        torch.stack([dirs for dirs, _ in found]).to(dtype), torch.stack([solid for _, solid in found]).to(dtype)
    )


def _padded(tokens: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    dirs, solid = tokens
    missing = count - len(solid)
    if missing < 0:
        raise ConfigError(
            f"the global view has {len(solid)} patches, more than the {count} tokens of a tile",
            remedy="give a smaller global_grid",
        )
    return torch.cat((dirs, dirs.new_zeros(missing, 3))), torch.cat((solid, solid.new_zeros(missing)))


def seen_tokens(seen: Tensor, dirs: Tensor) -> Tensor:
    """Which tokens look at a pixel that a partial panorama has: (...) bool.

    seen: (H, W) bool, over the whole sphere.  dirs: (..., 3) unit directions; 0 where a token looks at nothing.
    """
    height, width = seen.shape
    lam = torch.atan2(dirs[..., 0], dirs[..., 2]) / (2 * math.pi) + 0.5
    phi = 0.5 - torch.asin(dirs[..., 1].clamp(-1, 1)) / math.pi
    column = (lam * width).floor().long() % width
    row = (phi * height).floor().long().clamp(0, height - 1)
    return seen[row, column] & (dirs.square().sum(-1) > 0.5)
