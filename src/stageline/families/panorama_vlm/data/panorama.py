"""Panorama files: looked at without trust, decoded no larger than needed, reduced to what the views are sampled from.

A file is judged by its header before a pixel is decoded. What it shows is a whole sphere (2:1) or, where its field of
view is declared, a part of one, which is laid into the middle of a sphere with `seen` saying where it is. No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from stageline.data.arrays import ArrayInput
from stageline.data.pictures import Pixels
from stageline.families.panorama_vlm.data.decoding import (
    MAX_PIXELS,
    Opened,
    PanoramaError,
    PanoramaFault,
    decode,
    open_panorama,
    refuse,
    with_colours,
)
from stageline.families.panorama_vlm.geometry.resolution import (
    SUPPORT,
    Antialias,
    critical_width,
    is_whole_sphere,
    quality_of,
    reduced_width,
)
from stageline.families.panorama_vlm.geometry.tiles import TilePlan

LEAST = (32, 64)
"""Smallest height and width, in pixels."""
DCT_SCALES = (8, 4, 2)
"""By what a JPEG decoder can divide both sides while it decodes."""


@dataclass(frozen=True)
class Reduced:
    """A panorama as views are sampled from it.

    pixels: (H, W, 3) uint8, or uint16 where the file has that depth; the whole sphere, W even.
    seen: (H, W) bool, where a partial panorama has pixels; None where everywhere.
    source_size: (height, width) of the upright file in pixels.  is_enlarged: it has fewer pixels than the views.
    """

    pixels: Pixels
    seen: NDArray[np.bool_] | None
    source_size: tuple[int, int]
    is_enlarged: bool


@dataclass(frozen=True)
class Extent:
    """Upright size of a file and the field of view it shows, in pixels and degrees."""

    height: int
    width: int
    hfov: float
    vfov: float

    @property
    def is_whole(self) -> bool:
        return (self.hfov, self.vfov) == (360, 180)

    @property
    def sphere_width(self) -> int:
        """Columns that the whole sphere would have."""
        return round(self.width * 360 / self.hfov)


def check_panorama(
    source: Path | ArrayInput,
    *,
    erp_hfov_deg: float | None = None,
    erp_vfov_deg: float | None = None,
    max_pixels: int = MAX_PIXELS,
    verify: Literal["header", "decode"] = "decode",
) -> PanoramaFault | None:
    """What is wrong with a file or an array, or None.

    erp_hfov_deg, erp_vfov_deg: declared field of view of a partial panorama, centred on the front; both or none.
    max_pixels: largest picture that is decoded.  verify: `header` reads no pixel, so it does not see that a file is
    truncated.
    """
    try:
        if isinstance(source, ArrayInput):
            _extent(Path(source.name), source.file.pixels.shape[:2], erp_hfov_deg, erp_vfov_deg)
            return None
        with open_panorama(source, max_pixels) as opened:
            _extent(opened.path, opened.size, erp_hfov_deg, erp_vfov_deg)
            if verify == "decode":
                _scale_down(opened, (0, 0))
                decode(opened)
    except PanoramaError as error:
        return error.fault
    return None


def read_reduced(
    source: Path | ArrayInput,
    *,
    plan: TilePlan,
    size: int | tuple[int, int],
    antialias: Antialias = "auto",
    erp_hfov_deg: float | None = None,
    erp_vfov_deg: float | None = None,
    max_pixels: int = MAX_PIXELS,
    fill: tuple[float, float, float] | None = None,
) -> Reduced:
    """The panorama of a file or an array, reduced for the tiles of a plan; one reduction serves all views.

    size: pixels of a tile, (height, width) or one number.  antialias: as for `geometry.project`.
    erp_hfov_deg, erp_vfov_deg, max_pixels: as for `check_panorama`.  fill: red, green, blue in [0, 1] of the directions
    that a partial panorama does not show; its own mean colour where absent.
    Raises PanoramaError.
    """
    shape = (size, size) if isinstance(size, int) else size

    def wanted(path: Path, found: tuple[int, int]) -> tuple[Extent, int]:
        """What is shown, and the columns of the whole sphere after reduction."""
        extent = _extent(path, found, erp_hfov_deg, erp_vfov_deg)
        target = reduced_width(extent.sphere_width, plan.tiles, shape, antialias)
        even = target - target % 2
        if even * (even // 2) > max_pixels:
            limit = f"at most {max_pixels} (data.max_pixels)"
            refuse(path, "too_large", f"its whole sphere has {even} x {even // 2} pixels, {limit}")
        return extent, target

    if isinstance(source, ArrayInput):
        extent, target = wanted(Path(source.name), source.file.pixels.shape[:2])
        pixels = cast(Pixels, with_colours(source.file.pixels))
    else:
        with open_panorama(source, max_pixels) as opened:
            extent, target = wanted(opened.path, opened.size)
            if target < extent.sphere_width:
                even = target - target % 2
                _scale_down(opened, (math.ceil(even / 2 * extent.vfov / 180), math.ceil(even * extent.hfov / 360)))
            pixels = decode(opened)
    is_reduced = target < extent.sphere_width
    target -= target % 2
    quality = quality_of(antialias)
    kind = Image.Resampling.BILINEAR if quality and quality.filter == "bilinear" else Image.Resampling.BICUBIC
    enlarged = extent.sphere_width < critical_width(plan.tiles, shape)
    source_size = (extent.height, extent.width)
    if extent.is_whole:
        if is_reduced or target != extent.width:
            pixels = _resize_whole(pixels, (target // 2, target), kind)
        return Reduced(cast(Pixels, np.ascontiguousarray(pixels)), None, source_size, enlarged)
    laid, seen = _laid_into_sphere(pixels, extent, target, kind, fill)
    return Reduced(laid, seen, source_size, enlarged)


def _extent(path: Path, size: tuple[int, ...], hfov: float | None, vfov: float | None) -> Extent:
    """What (height, width) and the declared field of view say. path: for messages."""
    height, width = size
    if height < LEAST[0] or width < LEAST[1]:
        refuse(path, "too_small", f"{width} x {height} pixels, expected at least {LEAST[1]} x {LEAST[0]}")
    if hfov is None and vfov is None:
        if not is_whole_sphere(height, width):
            refuse(
                path,
                "not_equirectangular",
                f"{width} x {height} pixels, expected 2:1 or a declared erp_hfov_deg and erp_vfov_deg",
            )
        return Extent(height, width, 360.0, 180.0)
    if hfov is None or vfov is None or not 0 < hfov <= 360 or not 0 < vfov <= 180:
        refuse(
            path,
            "not_equirectangular",
            f"erp_hfov_deg is {hfov!r} and erp_vfov_deg {vfov!r}, expected both, at most 360 and 180",
        )
    return Extent(height, width, float(hfov), float(vfov))


def _scale_down(opened: Opened, wanted: tuple[int, int]) -> None:
    """Let a JPEG decoder divide both sides while (height, width) stay at least as wanted; others do not."""
    picture, (height, width) = opened.picture, opened.size
    if not isinstance(picture, JpegImageFile):
        return
    for scale in DCT_SCALES:
        # A side that is not a multiple would end inside of a pixel.
        if height % scale == width % scale == 0 and height // scale >= wanted[0] and width // scale >= wanted[1]:
            picture.draft(picture.mode, (picture.size[0] // scale, picture.size[1] // scale))
            return


def _resize(
    pixels: Pixels, size: tuple[int, int], kind: Image.Resampling, box: tuple[float, float, float, float]
) -> Pixels:
    """A part (left, upper, right, lower) of pixels (H, W, 3), antialiased; the filter sees what lies around it."""
    wide = (size[1], size[0])
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(wide, kind, box))
    channels = [
        np.asarray(Image.fromarray(pixels[..., c].astype(np.float32)).resize(wide, kind, box)) for c in range(3)
    ]
    return cast(Pixels, np.rint(np.stack(channels, -1)).clip(0, 65535).astype(np.uint16))


def _resize_whole(pixels: Pixels, size: tuple[int, int], kind: Image.Resampling) -> Pixels:
    """A whole sphere at another size: the filter reaches over the seam and the poles."""
    height, width = pixels.shape[:2]
    rows, columns = (
        min(side, math.ceil(SUPPORT * max(1.0, side / wanted)))
        for side, wanted in zip((height, width), size, strict=True)
    )
    above, below = (np.roll(rim[::-1], width // 2, 1) for rim in (pixels[:rows], pixels[-rows:]))
    beyond_poles = np.concatenate((above, pixels, below))
    closed = np.concatenate((beyond_poles[:, -columns:], beyond_poles, beyond_poles[:, :columns]), 1)
    return _resize(closed, size, kind, (columns, rows, columns + width, rows + height))


def _laid_into_sphere(
    pixels: Pixels, extent: Extent, width: int, kind: Image.Resampling, fill: tuple[float, float, float] | None
) -> tuple[Pixels, NDArray[np.bool_]]:
    """A partial panorama in the middle of a sphere (width / 2, width), and where its pixels are.

    Pixels of the sphere that the panorama shows in part only do not count as shown.
    """
    height = width // 2
    sides = []
    for whole, share, source in (
        (height, extent.vfov / 180, pixels.shape[0]),
        (width, extent.hfov / 360, pixels.shape[1]),
    ):
        first = math.ceil(whole * (1 - share) / 2 - 1e-9)
        last = max(first + 1, whole - first)
        # Pixels of the source per pixel of the sphere, and where the first whole one begins.
        scale = source / (whole * share)
        sides.append((first, last, max(0.0, (first - whole * (1 - share) / 2) * scale), scale))
    (top, bottom, upper, down), (left, right, lefter, along) = sides
    box = (
        lefter,
        upper,
        min(float(pixels.shape[1]), lefter + (right - left) * along),
        min(float(pixels.shape[0]), upper + (bottom - top) * down),
    )
    if extent.hfov == 360:
        beyond = min(pixels.shape[1], math.ceil(SUPPORT * max(1.0, along)))
        pixels = cast(Pixels, np.concatenate((pixels[:, -beyond:], pixels, pixels[:, :beyond]), 1))
        box = (box[0] + beyond, box[1], box[2] + beyond, box[3])
    shown = _resize(pixels, (bottom - top, right - left), kind, box)
    top_level = np.iinfo(shown.dtype).max
    colour = shown.reshape(-1, 3).mean(0) if fill is None else np.array(fill) * top_level
    laid = np.empty((height, width, 3), dtype=shown.dtype)
    laid[:] = np.rint(colour).clip(0, top_level).astype(shown.dtype)
    laid[top:bottom, left:right] = shown
    seen = np.zeros((height, width), dtype=np.bool_)
    seen[top:bottom, left:right] = True
    return laid, seen
