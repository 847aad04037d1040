"""Pixels of the views: a panorama is reduced once with a filter, then all tiles are sampled from it in one call.

The panorama closes around the seam and over the poles, so it is padded by what lies there: columns from the other side,
rows mirrored and turned by half a circle. Places are computed in float64 and kept in float32; sampling is float32.
Agrees with py360convert in `corner` mode and with a pinhole camera in `half` mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stageline.errors import ConfigError, DataError
from stageline.families.panorama_vlm.geometry.resolution import (
    SUPPORT,
    Antialias,
    Filter,
    is_whole_sphere,
    quality_of,
    reduced_size,
)
from stageline.families.panorama_vlm.geometry.tiles import GlobalMode, TilePlan
from stageline.families.panorama_vlm.geometry.tokens import cell_centres
from stageline.families.panorama_vlm.geometry.views import PixelCentres, View, edge_tangents, is_number, view

PAD = 1
"""Pixels around the panorama for bilinear sampling."""
LEVELS = {torch.uint8: 255.0, torch.uint16: 65535.0}
CACHED_GRIDS = 16

VIEW_NAMES = ("fov_h", "fov_v", "yaw", "pitch", "roll")

OneView = View | Mapping[str, Any] | Sequence[float]
Views = TilePlan | OneView | Sequence[OneView]


def project(
    erp: Tensor | NDArray[Any],
    views: Views,
    size: int | tuple[int, int],
    *,
    pixel_centres: PixelCentres | None = None,
    antialias: Antialias = "auto",
    global_mode: GlobalMode | None = None,
) -> Tensor:
    """Views of panoramas: (V, 3, height, width) float32, or (B, V, 3, height, width) for a batch, on the same device.

    erp: numpy or torch, (H, W, 3), (3, H, W), (B, H, W, 3) or (B, 3, H, W), over the whole sphere: W even, twice H to
    2 %. uint8 and uint16 come out in [0, 1]; floats keep their range.  views: a plan, a view, or several, in that
    order; a view may be told by its fov_h, fov_v, yaw, pitch, roll in degrees, by name or in this order.  size: pixels
    of a view, one number or (height, width).  pixel_centres: the plan's, or `half`; see `views.edge_tangents`.
    antialias: `auto` reduces a large panorama with a bicubic filter, `fast` to fewer pixels and bilinearly, `best` to
    more and with 2 x 2 samples per pixel, `off` samples it as it is.  global_mode: the plan's, or `stretch`.
    Raises DataError for arrays of another shape or type, ConfigError for settings.
    """
    chosen, centres, mode = _asked(views, pixel_centres, global_mode)
    shape = (int(size[0]), int(size[1])) if isinstance(size, (tuple, list)) else (int(size),) * 2
    if min(shape) < 1:
        raise ConfigError(f"size of a view is {size!r}, expected at least 1 pixel")
    picture, batched = _as_batch(erp)
    quality = quality_of(antialias)
    height, width = picture.shape[-2:]
    tiles = tuple(v for v in chosen if v.kind != "global")
    if quality is not None:
        picture = resize_sphere(picture, reduced_size(height, width, tiles, shape, antialias), quality.filter)
    found: list[Tensor] = [picture.new_empty(0)] * len(chosen)
    if tiles:
        sampled = _sample_tiles(picture, tiles, shape, centres, quality.supersampling if quality else 1)
        for place, tile in zip([k for k, v in enumerate(chosen) if v.kind != "global"], sampled.unbind(1), strict=True):
            found[place] = tile
    for place in (k for k, v in enumerate(chosen) if v.kind == "global"):
        found[place] = _global_picture(picture, shape, mode)
    stacked = torch.stack(found, 1)
    return stacked if batched else stacked[0]


def _asked(
    views: Views, pixel_centres: PixelCentres | None, global_mode: GlobalMode | None
) -> tuple[tuple[View, ...], PixelCentres, GlobalMode]:
    """The views one by one, where pixel centres lie, and how a global view is made."""
    centres, mode = pixel_centres or "half", global_mode or "stretch"
    if isinstance(views, TilePlan):
        chosen, centres, mode = views.views, pixel_centres or views.pixel_centres, global_mode or views.global_mode
    else:
        several: Sequence[Any] = [views] if isinstance(views, (View, Mapping)) else views
        several = [several] if several and is_number(several[0]) else several
        chosen = tuple(v if isinstance(v, View) else _view_of(v) for v in several)
    if centres not in ("half", "corner"):
        raise ConfigError(f"pixel_centres is {centres!r}, expected half or corner")
    if not chosen:
        raise ConfigError("no view was asked for", remedy="give a plan or at least one view")
    if mode == "naflex" and any(v.kind == "global" for v in chosen):
        raise ConfigError(
            "the NaFlex global view has another size than the tiles, so they make no one stack",
            remedy="project plan.tiles, and the global view with global_picture(erp, (height, width))",
        )
    return chosen, centres, mode


def _view_of(told: Any) -> View:
    """A view told by names, or by its numbers in the order of VIEW_NAMES."""
    named = dict(told) if isinstance(told, Mapping) else dict(enumerate(told))
    if not isinstance(told, Mapping) and len(named) in (4, 5):
        named = dict(zip(VIEW_NAMES[: len(named)], told, strict=True))
    # Sizes stand beside the angles in tables of views; here `size` says them.
    unknown = set(named) - {*VIEW_NAMES, "out_h", "out_w"}
    if unknown or not {"fov_h", "yaw", "pitch"} <= set(named):
        raise ConfigError(f"view {told!r}: expected fov_h, fov_v, yaw, pitch and, if wanted, roll")
    return view(named["fov_h"], named["yaw"], named["pitch"], named.get("roll", 0.0), named.get("fov_v"))


def global_picture(erp: Tensor | NDArray[Any], size: tuple[int, int]) -> Tensor:
    """The whole panorama as (3, height, width) float32, or (B, 3, ...): each side filtered to its size.

    erp: as for `project`.  size: (height, width), of any aspect.
    """
    picture, batched = _as_batch(erp)
    made = _global_picture(picture, size, "stretch")
    return made if batched else made[0]


def _as_batch(erp: Tensor | NDArray[Any]) -> tuple[Tensor, bool]:
    """(B, 3, H, W) uint8, or float32 where that is what it was or would lose depth; and whether it was a batch."""
    if isinstance(erp, np.ndarray):
        plain = erp if erp.flags.writeable and min(erp.strides) >= 0 else erp.copy()
        erp = torch.from_numpy(plain)
    batched = erp.ndim == 4
    x = erp if batched else erp[None]
    if x.ndim == 4 and x.shape[-1] == 3:
        x = x.permute(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] != 3 or x.shape[0] < 1 or x.shape[2] < 2 or x.shape[3] < 2:
        raise DataError(
            f"panorama of shape {tuple(erp.shape)}, expected (H, W, 3) or (3, H, W), or a batch of them",
            remedy="give red, green and blue",
        )
    if x.shape[3] % 2:
        raise DataError(
            f"panorama is {x.shape[3]} pixels wide, expected an even number: the pole is crossed half a width away",
            remedy="resize it to an even width",
        )
    if not is_whole_sphere(x.shape[2], x.shape[3]):
        raise DataError(
            f"panorama is {x.shape[3]} x {x.shape[2]} pixels, expected twice as wide as high: the whole sphere",
            remedy="lay a part of a sphere into the whole one first",
        )
    if x.dtype == torch.uint8:
        return x, batched
    if x.dtype in LEVELS:
        return x.float() / LEVELS[x.dtype], batched
    if not x.is_floating_point():
        raise DataError(f"panorama of type {x.dtype}, expected uint8, uint16 or a floating point type")
    return x.float(), batched


def pad_sphere(x: Tensor, columns: int, rows: int) -> Tensor:
    """x (B, C, H, W) with what lies beyond its borders on the sphere: (B, C, H + 2 rows, W + 2 columns).

    Columns come from the other side of the seam; rows are the nearest ones mirrored, turned by half a circle.
    """
    if rows:
        half = x.shape[3] // 2
        top = x[:, :, :rows].flip(2).roll(half, 3)
        bottom = x[:, :, -rows:].flip(2).roll(half, 3)
        x = torch.cat((top, x, bottom), 2)
    return torch.cat((x[..., -columns:], x, x[..., :columns]), 3) if columns else x


def _aligned(source: int, target: int) -> int:
    """Least padding in source pixels that covers the filter and is a whole number of target pixels."""
    whole = source // math.gcd(source, target)
    return whole * math.ceil(SUPPORT * max(1.0, source / target) / whole)


def resize_sphere(x: Tensor, size: tuple[int, int], kind: Filter = "bicubic") -> Tensor:
    """x (B, 3, H, W) filtered to another size, antialiased, closed at the seam and, where rows align, over the poles.

    uint8 stays uint8 on the CPU. The result keeps the range of x: what a bicubic filter would overshoot is clipped.
    """
    height, width = x.shape[-2:]
    if size == (height, width):
        return x
    columns, rows = _aligned(width, size[1]), _aligned(height, size[0])
    rows = rows if rows <= height // 4 else 0
    # Odd widths that share no divisor with the target are padded by their whole width; never by more.
    columns = min(columns, width)
    beyond = (rows * size[0] // height, columns * size[1] // width)
    wide = pad_sphere(x, columns, rows)
    if x.dtype == torch.uint8 and x.device.type != "cpu":
        wide = wide.float()
    grown = functional.interpolate(
        wide, (size[0] + 2 * beyond[0], size[1] + 2 * beyond[1]), mode=kind, align_corners=False, antialias=True
    )
    cut = grown[:, :, beyond[0] : beyond[0] + size[0], beyond[1] : beyond[1] + size[1]]
    if x.dtype == torch.uint8:
        return cut if cut.dtype == torch.uint8 else cut.round().clamp(0, 255).to(torch.uint8)
    least, most = x.aminmax()
    return cut.clamp(least, most)


def _as_float(x: Tensor) -> Tensor:
    return x.float() / LEVELS[torch.uint8] if x.dtype == torch.uint8 else x


@lru_cache(maxsize=CACHED_GRIDS)
def sampling_grid(
    tiles: tuple[View, ...], size: tuple[int, int], erp_size: tuple[int, int], pixel_centres: PixelCentres
) -> Tensor:
    """Places of all pixels of tiles laid side by side, (1, height, N * width, 2) float32 for `grid_sample`.

    size: of a tile.  erp_size: of the panorama before it is padded by PAD. Both are (height, width) in pixels.
    """
    height, width = erp_size
    parts = []
    for tile in tiles:
        t_h, t_v = edge_tangents(tile, pixel_centres, size)
        y, x = torch.meshgrid(-cell_centres(size[0]) * t_v, cell_centres(size[1]) * t_h, indexing="ij")
        rays = torch.stack((x, y, torch.ones_like(x)), -1)
        world_x, world_y, world_z = (rays @ torch.from_numpy(tile.rotation).T).unbind(-1)
        column = (torch.atan2(world_x, world_z) / (2 * math.pi) + 0.5) * width - 0.5
        row = (0.5 - torch.atan2(world_y, torch.hypot(world_x, world_z)) / math.pi) * height - 0.5
        places = (2 * (column + PAD) + 1) / (width + 2 * PAD) - 1, (2 * (row + PAD) + 1) / (height + 2 * PAD) - 1
        parts.append(torch.stack(places, -1))
    return torch.cat(parts, 1)[None].float()


def _sample_tiles(
    picture: Tensor, tiles: tuple[View, ...], size: tuple[int, int], centres: PixelCentres, supersampling: int
) -> Tensor:
    """(B, N, 3, height, width) float32 of a panorama (B, 3, H, W)."""
    if centres == "corner" and min(size) < 2:
        raise ConfigError(f"pixel_centres is 'corner' and a view is {size} pixels, expected at least 2 on a side")
    if supersampling > 1:
        # The edges of the pixels stay where they are, whatever the number of samples inside.
        tiles = tuple(_with_edges(tile, edge_tangents(tile, centres, size)) for tile in tiles)
        centres = "half"
    fine = (size[0] * supersampling, size[1] * supersampling)
    grid = sampling_grid(tiles, fine, (picture.shape[2], picture.shape[3]), centres).to(picture.device)
    padded = _as_float(pad_sphere(picture, PAD, PAD)).contiguous()
    sampled = functional.grid_sample(
        padded, grid.expand(len(padded), -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False
    )
    apart = sampled.reshape(len(padded), 3, fine[0], len(tiles), fine[1]).movedim(3, 1)
    if supersampling > 1:
        apart = functional.avg_pool2d(apart.flatten(0, 1), supersampling).reshape(len(padded), len(tiles), 3, *size)
    return apart


def _with_edges(tile: View, tangents: tuple[float, float]) -> View:
    """The same view with its borders at these tangents."""
    fov_h, fov_v = (2 * math.degrees(math.atan(t)) for t in tangents)
    return view(fov_h, tile.yaw_deg, tile.pitch_deg, tile.roll_deg, fov_v)


def _global_picture(picture: Tensor, size: tuple[int, int], mode: GlobalMode) -> Tensor:
    """(B, 3, height, width) float32: the whole panorama, stretched or between black bars."""
    height, width = size
    if mode != "letterbox":
        return _as_float(resize_sphere(picture, size))
    inner = (min(height, width // 2), min(width, 2 * height))
    free = (height - inner[0], width - inner[1])
    if width % 2 or free[0] % 2 or free[1] % 2:
        raise ConfigError(
            f"a letterboxed global view of {height} x {width} pixels has no middle",
            remedy="choose a tile size that is a multiple of 4, or global_mode stretch",
        )
    shown = _as_float(resize_sphere(picture, inner))
    bars = (free[1] // 2, free[1] // 2, free[0] // 2, free[0] // 2)
    return functional.pad(shown, bars)
