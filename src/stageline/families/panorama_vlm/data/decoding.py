"""Opening one panorama file without trust, and its pixels upright and at full depth. No torch.

The size in the header is judged before a pixel is decoded. A file that could be read in two ways is refused in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from stageline.config.bounds import MAX_PIXELS
from stageline.data.decoding import PHOTOGRAPHS, PictureError, deep_pixels, load_pixels, open_picture
from stageline.data.decoding import OpenedPicture as Opened
from stageline.data.pictures import Pixels
from stageline.errors import DataError

__all__ = ["MAX_PIXELS", "Opened", "PanoramaError", "PanoramaFault", "decode", "open_panorama", "refuse"]


@dataclass(frozen=True)
class PanoramaFault:
    """What is wrong with a file.

    kind: missing, empty, not_an_image, truncated (or damaged), too_small, too_large or not_equirectangular.
    message: what was found and what was expected.
    """

    kind: str
    message: str


class PanoramaError(DataError):
    """A panorama file that cannot be used; `fault` says why."""

    def __init__(self, path: Path, fault: PanoramaFault) -> None:
        super().__init__(f"{str(path)!r}: {fault.kind}: {fault.message}", remedy="mend or replace the file")
        self.fault = fault


def refuse(path: Path, kind: str, message: str) -> NoReturn:
    """Raise the error about a file."""
    raise PanoramaError(path, PanoramaFault(kind, message))


@contextmanager
def open_panorama(path: Path, max_pixels: int) -> Iterator[Opened]:
    """The file with its header read, no larger than allowed; what fails inside is a PanoramaError."""
    try:
        with open_picture(path, max_pixels, PHOTOGRAPHS, key="data.max_pixels") as opened:
            yield opened
    except PictureError as error:
        kind = "not_an_image" if error.trouble == "ambiguous" else error.trouble
        raise PanoramaError(path, PanoramaFault(kind, error.told)) from error


def decode(opened: Opened) -> Pixels:
    """Upright (H, W, 3) pixels, uint8 or uint16; grey is repeated, palettes are resolved."""
    picture = opened.picture
    load_pixels(opened)
    pixels: NDArray[np.generic]
    if opened.is_deep:
        pixels = deep_pixels(opened)
    elif picture.mode == "I;16":
        pixels = np.asarray(picture).astype(np.uint16)
        if "transparency" in picture.info:
            refuse(opened.path, "not_an_image", "16 bits with a transparent colour; flatten it")
    elif picture.mode in ("LA", "PA", "La", "RGBA", "RGBa", "RGBX") or "transparency" in picture.info:
        pixels = np.asarray(picture.convert("RGBA"))
        if (pixels[..., 3] != 255).any():
            refuse(opened.path, "not_an_image", "has transparent pixels, so their colour is open; flatten it")
        pixels = pixels[..., :3]
    else:
        pixels = np.asarray(picture.convert("RGB"))
    return cast(Pixels, _upright(with_colours(pixels), opened.orientation))


def with_colours(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """(H, W) or (H, W, 3) pixels as (H, W, 3), numbers of 1 bit as 0 and 255."""
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    return np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels


def _upright(pixels: NDArray[np.generic], orientation: int) -> NDArray[np.generic]:
    """What EXIF orientations 1 to 8 show."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
