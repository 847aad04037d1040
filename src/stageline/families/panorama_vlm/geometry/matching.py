"""Which tokens see the same thing: where the centre of a token of one view lies on the grid of another.

All views share one optical centre, so two of them differ by a rotation, whatever the depth of what they see. Positions
are exact and fall between the other view's tokens, whose features are therefore interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.geometry.tiles import TilePlan
from stageline.families.panorama_vlm.geometry.tokens import Grid, directions, global_span, grid_of, tile_rays
from stageline.families.panorama_vlm.geometry.views import View, edge_tangents, rotation

SLACK = 1e-12
"""A token centre that lies on the outermost centre of the other grid, but for rounding, is inside."""


@dataclass(frozen=True)
class Correspondence:
    """Places of the tokens of views `a` on the grids of views `b`.

    a, b: (P,) int64 indices of views.  u, v: (..., P, S) float64 in [-1, 1], right and down, over all of the
    other view (`grid_sample` coordinates with align_corners=False), NaN where the token is not inside.
    valid: (..., P, S) bool.  grid: (rows, columns) of every view.  wraps: the other view closes around the seam, as the
    global one does.
    """

    a: Tensor
    b: Tensor
    u: Tensor
    v: Tensor
    valid: Tensor
    grid: tuple[int, int]
    wraps: bool = False

    @property
    def col(self) -> Tensor:
        """(..., P, S) column on the other grid: 0 is the centre of the first one."""
        return (self.u + 1) / 2 * self.grid[1] - 0.5

    @property
    def row(self) -> Tensor:
        """(..., P, S) row on the other grid: 0 is the centre of the uppermost one."""
        return (self.v + 1) / 2 * self.grid[0] - 0.5

    @property
    def directed(self) -> tuple[tuple[int, int], ...]:
        """The pairs (a, b) of view indices."""
        return tuple(zip(self.a.tolist(), self.b.tolist(), strict=True))

    def index(self, a: int, b: int) -> int:
        """Place of the directed pair (a, b); ConfigError for views that are no pair."""
        if (a, b) not in self.directed:
            raise ConfigError(f"views {a} and {b} are no pair of neighbours; pairs: {list(self.directed)}")
        return self.directed.index((a, b))

    def __len__(self) -> int:
        return len(self.a)

    def sample(self, features: Tensor, *, of_pairs: bool = False) -> Tensor:
        """Features of views `b`, interpolated bilinearly where the tokens of `a` look: (B, P, S, D), 0 where not valid.

        features: (B, V, S, D) of all views of the plan; with of_pairs (B, P, S, D) of the views `b` themselves, as for
        a second render. float32 or float64.
        """
        batch, _, tokens, width = features.shape
        chosen = features if of_pairs else features[:, self.b.to(features.device)]
        rows, columns = self.grid
        field = chosen.reshape(batch * len(self), rows, columns, width).permute(0, 3, 1, 2)
        u, v = (part.nan_to_num().to(features) for part in (self.u, self.v))
        if self.wraps:
            field = functional.pad(field, (1, 1, 0, 0), mode="circular")
            u = u * columns / (columns + 2)
        places = torch.stack((u, v), -1).expand(batch, len(self), tokens, 2).reshape(batch * len(self), 1, tokens, 2)
        found = functional.grid_sample(field, places, mode="bilinear", padding_mode="border", align_corners=False)
        found = found[:, :, 0].transpose(1, 2).reshape(batch, len(self), tokens, width)
        return found * self.valid.to(features.device)[..., None]


def _place(rays: Tensor, relative: Tensor, tangents: tuple[float, float], grid: tuple[int, int]) -> tuple[Tensor, ...]:
    """u, v, valid (..., S) of rays (S, 3) of one camera in another; relative: (..., 3, 3), other from this."""
    e = torch.einsum("...ij,sj->...si", relative, rays)
    depth = torch.where(e[..., 2] > 0, e[..., 2], math.nan)
    u, v = e[..., 0] / depth / tangents[0], -e[..., 1] / depth / tangents[1]
    valid = (u.abs() <= 1 - 1 / grid[1] + SLACK) & (v.abs() <= 1 - 1 / grid[0] + SLACK)
    return u.masked_fill(~valid, math.nan), v.masked_fill(~valid, math.nan), valid


def _matched(a: Sequence[View], b: Sequence[View], plan: TilePlan, grid: Grid, size: Grid | None) -> Correspondence:
    shape = grid_of(grid)
    tokens = shape[0] * shape[1]
    u, v = torch.full((2, len(a), tokens), math.nan, dtype=torch.float64)
    valid = torch.zeros(len(a), tokens, dtype=torch.bool)
    for k, (one, other) in enumerate(zip(a, b, strict=True)):
        rays = tile_rays(shape, edge_tangents(one, plan.pixel_centres, size))
        relative = torch.from_numpy(other.rotation.T @ one.rotation)
        u[k], v[k], valid[k] = _place(rays, relative, edge_tangents(other, plan.pixel_centres, size), shape)
    numbers = [torch.tensor([view.index for view in views], dtype=torch.int64) for views in (a, b)]
    return Correspondence(numbers[0], numbers[1], u, v, valid, shape)


def pairs(plan: TilePlan, grid: Grid, *, size: Grid | None = None) -> Correspondence:
    """Exact correspondence of the tokens of neighbouring tiles, for every directed pair of `plan.neighbours`.

    grid: tokens of a view.  size: rendered pixels of a view, needed where pixel centres lie on the border (`corner`).
    A token is valid where its centre lies between the centres of the other view's outer tokens; at overlap 0 none is.
    """
    chosen = plan.neighbours
    return _matched([plan.views[a] for a, _ in chosen], [plan.views[b] for _, b in chosen], plan, grid, size)


def global_partners(plan: TilePlan, grid: Grid, *, size: Grid | None = None) -> Correspondence:
    """Where the tokens of every tile lie on the global view's grid; every one is valid.

    grid: tokens of a view, the global one included.  Columns wrap around the seam (`wraps`); tokens beyond the
    centre of the first or last row are sampled at its edge.
    Raises ConfigError for a plan without a global view of that grid (`none`, `naflex`).
    """
    if plan.global_mode not in ("stretch", "letterbox"):
        raise ConfigError(
            f"plan {plan.name} has the global view {plan.global_mode!r}, which shares no grid with the tiles",
            remedy="pair with the global view under global_mode stretch or letterbox only",
        )
    shape = grid_of(grid)
    shares = global_span(plan, shape)
    tiles = plan.tiles
    numbers = torch.tensor([view.index for view in tiles], dtype=torch.int64)
    dirs = directions(plan, grid, size=size).dirs[numbers]
    u = torch.atan2(dirs[..., 0], dirs[..., 2]) / math.pi * shares[0]
    v = -torch.asin(dirs[..., 1].clamp(-1, 1)) / (math.pi / 2) * shares[1]
    everywhere = torch.ones_like(u, dtype=torch.bool)
    return Correspondence(numbers, torch.zeros_like(numbers), u, v, everywhere, shape, wraps=shares[0] == 1)


def jitter_pairs(plan: TilePlan, grid: Grid, offset_deg: Tensor | float, *, size: Grid | None = None) -> Correspondence:
    """Where the tokens of every tile lie on the grid of the same tile rendered again with its yaw turned by an offset.

    offset_deg: degrees to the right, a number or (B,) one per sample; u, v, valid are (P, S) or (B, P, S).
    The tokens of the second render have the first one's order, so `b` equals `a`.
    """
    shape = grid_of(grid)
    offsets = torch.as_tensor(offset_deg, dtype=torch.float64)
    found = []
    for tile in plan.tiles:
        tangents = edge_tangents(tile, plan.pixel_centres, size)
        others = [
            torch.from_numpy(rotation(tile.yaw_deg + float(o), tile.pitch_deg, tile.roll_deg))
            for o in offsets.reshape(-1)
        ]
        relative = torch.stack(others).transpose(-1, -2) @ torch.from_numpy(tile.rotation)
        found.append(_place(tile_rays(shape, tangents), relative, tangents, shape))
    u, v, valid = (torch.stack(part, -2).reshape(*offsets.shape, len(found), -1) for part in zip(*found, strict=True))
    numbers = torch.tensor([view.index for view in plan.tiles], dtype=torch.int64)
    return Correspondence(numbers, numbers, u, v, valid, shape)
