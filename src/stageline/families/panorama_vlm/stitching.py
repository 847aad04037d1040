"""Which vision tokens reach the resampler: a rectangle of each view, or a canvas; numpy, no torch.

A view is a grid of tokens. Stitching keeps a rectangle of each (`concat`: all, `dedupe`: the columns nearest in azimuth
to the tile's centre) or lays a regular canvas over the ring (`resample`). What it keeps are blocks, each a rectangle
with one number per token, and everything after works on blocks (see `orders`). Angles are in degrees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.geometry.tiles import TilePlan
from stageline.families.panorama_vlm.geometry.views import ViewKind

Stitching = Literal["concat", "dedupe", "resample"]
ScanOrder = Literal["sweep", "raster", "view", "serpentine"]
KINDS: tuple[ViewKind, ...] = ("global", "tile", "cap")
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ViewTokens:
    """The token grid of one view.

    kind: what the view is.  rows, cols: of its grid, row-major in the tower's output.  ring: number of the tile's
    ring, -1 for the global view and caps.  yaw_deg, pitch_deg, fov_h_deg, fov_v_deg: of a tile.  first_row, last_row:
    the rows that hold picture, from 0, the last one excluded; null is all (a letterboxed global view has fewer).
    """

    kind: ViewKind
    rows: int
    cols: int
    ring: int = -1
    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    fov_h_deg: float = 90.0
    fov_v_deg: float = 90.0
    first_row: int = 0
    last_row: int | None = None


@dataclass(frozen=True)
class TokenLayout:
    """The token grids of all views, in the order of the plan: global, rings, caps."""

    views: tuple[ViewTokens, ...]

    @property
    def tokens_per_view(self) -> int:
        """S, the tokens that the tower gives per view; a smaller grid leaves the last ones unused."""
        return max(view.rows * view.cols for view in self.views)

    @classmethod
    def ring(cls, yaws_deg: Sequence[float], grid: int, fov_deg: float, *, has_global: bool = True) -> TokenLayout:
        """One ring of square tiles at pitch 0.

        yaws_deg: per tile.  grid: G, tokens along an edge.  fov_deg: of a tile.  has_global: whether view 0 is global.
        """
        tiles = [
            ViewTokens(kind="tile", rows=grid, cols=grid, ring=0, yaw_deg=yaw, fov_h_deg=fov_deg, fov_v_deg=fov_deg)
            for yaw in yaws_deg
        ]
        whole = [ViewTokens(kind="global", rows=grid, cols=grid)] if has_global else []
        return cls(tuple(whole + tiles))

    @classmethod
    def of_plan(cls, plan: TilePlan, grid: int, global_grid: tuple[int, int] | None = None) -> TokenLayout:
        """The layout of a tile plan: letterboxed rows without picture are left out.

        plan: of the views.  grid: G, tokens along an edge of a view.  global_grid: rows and columns of a NaFlex
        tower's global view, which alone has a grid of its own.
        """
        if (plan.global_mode == "naflex") != (global_grid is not None):
            raise ConfigError(
                f"global_mode is {plan.global_mode!r} and the grid of the global view {global_grid!r}",
                remedy="give rows and columns of the global view with naflex, and only then",
            )
        views: list[ViewTokens] = []
        for view in plan.views:
            if view.kind != "global":
                views.append(
                    ViewTokens(
                        kind=view.kind,
                        rows=grid,
                        cols=grid,
                        ring=view.ring,
                        yaw_deg=view.yaw_deg,
                        pitch_deg=view.pitch_deg,
                        fov_h_deg=view.fov_h_deg,
                        fov_v_deg=view.fov_v_deg,
                    )
                )
                continue
            rows, cols = global_grid or (grid, grid)
            # The panorama is twice as wide as high: letterboxed in a square, it fills the middle half of the rows.
            outside = rows / 4 if plan.global_mode == "letterbox" else 0.0
            first = math.floor(outside)
            views.append(ViewTokens(kind="global", rows=rows, cols=cols, first_row=first, last_row=rows - first))
        return cls(tuple(views))


@dataclass(frozen=True)
class Block:
    """A rectangle of stitched tokens.

    kind, ring, yaw_deg: of its view; a canvas is a tile of ring 0.  numbers: (rows, cols), positions in the sequence
    of stitched tokens.
    """

    kind: ViewKind
    ring: int
    yaw_deg: float
    numbers: Integers


@dataclass(frozen=True)
class Stitched:
    """What stitching keeps: T tokens, each a weighted mean of K vision tokens.

    mode: how it was made.  blocks: in the order of the views.  sources: (T, K), view * S + token.  weights: (T, K),
    each row sums to 1.  kinds: (T,), index into KINDS.  cell_dirs: (cells, 3) unit directions of a canvas, the last
    tokens of the sequence; no row without a canvas.  cell_logsolid: (cells,), ln of steradians.
    """

    mode: Stitching
    blocks: tuple[Block, ...]
    sources: Integers
    weights: Floats
    kinds: Integers
    cell_dirs: Floats
    cell_logsolid: Floats

    @property
    def num_tokens(self) -> int:
        return len(self.sources)


def ring_step(layout: TokenLayout, ring: int) -> float:
    """Degrees between neighbouring tiles of a ring, which is closed."""
    return 360.0 / sum(view.ring == ring for view in layout.views)


def kept_columns(view: ViewTokens, step_deg: float) -> range:
    """The columns of a tile that `dedupe` keeps: those whose centre is not farther than half a step in azimuth.

    view: a tile.  step_deg: of its ring.
    """
    x = ((np.arange(view.cols) + 0.5) / view.cols * 2 - 1) * math.tan(math.radians(view.fov_h_deg) / 2)
    kept = np.flatnonzero(np.abs(np.degrees(np.arctan(x))) <= step_deg / 2 + 1e-9)
    if len(kept) == 0:
        raise ConfigError(
            f"stitching dedupe keeps no column of a {view.fov_h_deg:g} degree tile with {view.cols} columns every "
            f"{step_deg:g} degrees",
            remedy="use stitching_mode: concat, or fewer tiles",
        )
    return range(int(kept[0]), int(kept[-1]) + 1)


def stitch(layout: TokenLayout, mode: Stitching, canvas: tuple[int, int] | None = None) -> Stitched:
    """The tokens that are kept, in plan order and row-major inside a view.

    layout: of the views.  mode: `concat`, `dedupe` or `resample`.  canvas: rows and columns of `resample`'s canvas.
    Raises ConfigError where `resample` meets more than one ring at pitch 0, or caps.
    """
    blocks: list[Block] = []
    sources: list[Integers] = []
    start, per_view = 0, layout.tokens_per_view
    for number, view in enumerate(layout.views):
        if mode == "resample" and view.kind != "global":
            continue
        last = view.rows if view.last_row is None else view.last_row
        cols = range(view.cols)
        if mode == "dedupe" and view.kind == "tile":
            cols = kept_columns(view, ring_step(layout, view.ring))
        grid = np.arange(view.rows * view.cols).reshape(view.rows, view.cols)
        kept = number * per_view + grid[view.first_row : last, cols.start : cols.stop]
        numbers = start + np.arange(kept.size).reshape(kept.shape)
        blocks.append(Block(view.kind, view.ring, view.yaw_deg, numbers))
        sources.append(kept.ravel())
        start += kept.size
    if mode == "resample":
        return _with_canvas(layout, blocks, sources, canvas)
    flat = np.concatenate(sources)
    none = np.zeros((0, 3))
    return Stitched(mode, tuple(blocks), flat[:, None], np.ones((len(flat), 1)), _kinds(blocks), none, none[:, 0])


def _kinds(blocks: Sequence[Block]) -> Integers:
    return np.concatenate([np.full(block.numbers.size, KINDS.index(block.kind)) for block in blocks])


def _with_canvas(
    layout: TokenLayout, blocks: list[Block], sources: list[Integers], canvas: tuple[int, int] | None
) -> Stitched:
    """The global view's tokens and then a regular grid of directions, each seen by one tile or more."""
    tiles = [(number, view) for number, view in enumerate(layout.views) if view.kind == "tile"]
    strange = [view for view in layout.views if view.kind == "cap" or (view.kind == "tile" and view.pitch_deg != 0)]
    if strange or len({view.ring for _, view in tiles}) != 1:
        raise ConfigError(
            "stitching resample needs one ring of tiles at pitch 0 and no caps",
            remedy="use stitching_mode: concat or dedupe, or pitch_rows: 1 and caps: false",
        )
    first = tiles[0][1]
    rows, cols = canvas or (first.rows, 4 * first.cols)
    # The highest latitude that some tile sees at every azimuth.
    edge = math.cos(math.radians(ring_step(layout, first.ring)) / 2)
    span = 2 * math.atan(math.tan(math.radians(first.fov_v_deg) / 2) * edge)
    phi = (0.5 - (np.arange(rows) + 0.5) / rows) * span
    lam = ((np.arange(cols) + 0.5) / cols - 0.5) * 2 * math.pi
    phi, lam = (axis.ravel() for axis in np.meshgrid(phi, lam, indexing="ij"))
    parts = [_seen_by(view, number * layout.tokens_per_view, phi, lam) for number, view in tiles]
    corners = np.concatenate([part[0] for part in parts], axis=1)
    weights = np.concatenate([part[1] for part in parts], axis=1)
    # Few tiles see a cell: keep the columns that are needed, largest weights first.
    order = np.argsort(-weights, axis=1, kind="stable")[:, : int((weights > 0).sum(1).max())]
    corners, weights = np.take_along_axis(corners, order, 1), np.take_along_axis(weights, order, 1)
    weights /= weights.sum(1, keepdims=True)

    seen = sum(part.size for part in sources)
    whole = np.concatenate([*sources, np.zeros(0, np.int64)])[:, None].repeat(corners.shape[1], axis=1)
    alone = np.zeros(whole.shape)
    alone[:, 0] = 1.0
    blocks.append(Block("tile", first.ring, 0.0, seen + np.arange(rows * cols).reshape(rows, cols)))
    dirs = np.stack([np.cos(phi) * np.sin(lam), np.sin(phi), np.cos(phi) * np.cos(lam)], axis=1)
    logsolid = np.log(span / rows * 2 * math.pi / cols * np.cos(phi))
    return Stitched(
        "resample",
        tuple(blocks),
        np.concatenate([whole, corners]),
        np.concatenate([alone, weights]),
        _kinds(blocks),
        dirs,
        logsolid,
    )


def _seen_by(view: ViewTokens, offset: int, phi: Floats, lam: Floats) -> tuple[Integers, Floats]:
    """Four tokens of a tile around each direction and their weights: bilinear times cos^3 of the off-axis angle."""
    turned = lam - math.radians(view.yaw_deg)
    x, y, z = np.cos(phi) * np.sin(turned), np.sin(phi), np.cos(phi) * np.cos(turned)
    ahead = np.where(z > 1e-9, z, 1.0)
    u = x / ahead / math.tan(math.radians(view.fov_h_deg) / 2)
    v = -y / ahead / math.tan(math.radians(view.fov_v_deg) / 2)
    seen = (z > 1e-9) & (np.abs(u) <= 1 + 1e-9) & (np.abs(v) <= 1 + 1e-9)
    col = np.clip((u + 1) / 2 * view.cols - 0.5, 0, view.cols - 1)
    row = np.clip((v + 1) / 2 * view.rows - 0.5, 0, view.rows - 1)
    left = np.minimum(np.floor(col).astype(np.int64), max(view.cols - 2, 0))
    top = np.minimum(np.floor(row).astype(np.int64), max(view.rows - 2, 0))
    right, bottom = np.minimum(left + 1, view.cols - 1), np.minimum(top + 1, view.rows - 1)
    a, b = col - left, row - top
    corners = np.stack([r * view.cols + c for r in (top, bottom) for c in (left, right)], axis=1)
    shares = np.stack([(1 - b) * (1 - a), (1 - b) * a, b * (1 - a), b * a], axis=1)
    return offset + corners, shares * np.where(seen, z**3, 0.0)[:, None]
