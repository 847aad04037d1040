"""Picture files: found in folders, and read strictly into pixel arrays.

Pixels are (H, W, C) uint8 or uint16, C = 1 or 3. A file that could be read in two ways (turned by EXIF, with
transparency, of several pages, with 32-bit numbers) is refused in words instead of guessed. No torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stageline.config.bounds import MAX_PIXELS
from stageline.data.decoding import OpenedPicture, PictureError, deep_pixels, load_pixels, open_picture
from stageline.data.names import is_left_by_system, same_name
from stageline.errors import DataError, Faults

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".jpg", ".jpeg", ".webp", ".ppm", ".pgm", ".pbm")
LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Weights of red, green, blue in grey (ITU-R BT.601)."""
MODES = frozenset({"1", "L", "RGB", "I", "P", "PA", "LA", "La", "RGBA", "RGBa"})
"""What Pillow calls the numbers of a picture that is read, beside 16-bit grey."""
UNREAD = {"F": "floating point numbers", "CMYK": "inks, not light", "LAB": "CIE Lab", "YCbCr": "luma and chroma"}

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class PictureFile:
    """What one file holds.

    pixels: (H, W) or (H, W, 3) of uint8, uint16 or bool; palettes are resolved to colours.
    notes: what was passed over or resolved while reading, in words that go with a count ("a palette").
    indices: (H, W) numbers into `palette` (N, 3) of a picture with a palette; None without one.
    """

    pixels: NDArray[np.generic]
    notes: tuple[str, ...] = ()
    indices: NDArray[np.uint8] | None = None
    palette: NDArray[np.uint8] | None = None

    @property
    def bits(self) -> int:
        """Bits per channel: 1, 8 or 16."""
        return 1 if self.pixels.dtype == np.bool_ else 8 * self.pixels.dtype.itemsize

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return 1 if self.pixels.ndim == 2 else 3


def fault_of(path: Path, text: str) -> DataError:
    """A DataError about one picture file."""
    return DataError(f"{str(path)!r}: {text}", remedy="mend or replace the file")


def decode(path: Path, max_pixels: int = MAX_PIXELS) -> NDArray[np.generic]:
    """The pixels of `read_file`."""
    return read_file(path, max_pixels).pixels


def read_file(path: Path, max_pixels: int = MAX_PIXELS) -> PictureFile:
    """One file as it is. max_pixels: the largest picture that is decoded (`data.max_pixels`).

    Raises DataError for a file that is missing, empty, no picture, damaged, too large, or readable in two ways.
    """
    try:
        with open_picture(path, max_pixels, key="data.max_pixels") as opened:
            return _read_opened(opened)
    except PictureError as error:
        told = error.told
        if error.trouble in ("not_an_image", "truncated"):
            told = f"no readable picture ({told})"
        raise fault_of(path, f"empty file ({told})" if error.trouble == "empty" else told) from error


def check_header(opened: OpenedPicture) -> None:
    """DataError where the header alone says that a picture is refused: turned by EXIF, or of numbers not read."""
    turned, mode = opened.orientation, opened.picture.mode
    if turned != 1:
        told = f"EXIF orientation {turned}: shown turned or mirrored against its pixels; save it upright"
        raise fault_of(opened.path, told)
    if mode not in MODES and not mode.startswith("I;16"):
        told = f" ({UNREAD[mode]})" if mode in UNREAD else ""
        raise fault_of(opened.path, f"mode {mode!r}{told}; save grey or RGB with 8 or 16 bits per channel")


def _read_opened(opened: OpenedPicture) -> PictureFile:
    path, picture = opened.path, cast(Image.Image, opened.picture)
    check_header(opened)
    notes = [opened.odd] if opened.odd else []
    if "mp" in picture.info:
        notes.append("the first of a camera's several pictures")
    load_pixels(opened)
    if opened.is_deep:
        if opened.layout.startswith(("LA", "RGBA", "RGBa")):
            notes.append("an opaque alpha channel")
        return PictureFile(deep_pixels(opened), tuple(notes))
    indices, palette = None, None
    if picture.mode == "P":
        colours = np.asarray(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        indices, palette = np.asarray(picture, dtype=np.uint8), colours
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
        notes.append("a palette")
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        alpha = np.asarray(picture.getchannel("A" if "A" in picture.getbands() else "a"))
        if alpha.min() < 255:
            raise fault_of(path, "has transparent pixels; flatten it")
        notes.append("an opaque alpha channel")
        picture = picture.convert("RGB" if picture.mode.startswith("RGB") or picture.mode == "PA" else "L")
    return PictureFile(_plain_pixels(path, picture), tuple(notes), indices, palette)


def _plain_pixels(path: Path, picture: Image.Image) -> NDArray[np.generic]:
    if picture.mode in ("1", "L", "RGB"):
        return np.asarray(picture)
    if picture.mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)
    if picture.mode == "I":
        numbers = np.asarray(picture)
        if numbers.min() < 0 or numbers.max() > 65535:
            raise fault_of(path, f"32-bit numbers from {numbers.min()} to {numbers.max()}; save 8 or 16 bits per pixel")
        return numbers.astype(np.uint16)
    raise fault_of(path, f"mode {picture.mode!r}; save grey or RGB with 8 or 16 bits per channel")


def read_picture(path: Path, channels: int, max_pixels: int = MAX_PIXELS) -> Pixels:
    """One picture file as (H, W, channels) uint8 or uint16; colour becomes grey or grey is repeated as needed."""
    return as_pixels(read_file(path, max_pixels), channels)


def as_pixels(file: PictureFile, channels: int) -> Pixels:
    """The same of a file that was read."""
    raw = file.pixels
    return to_channels(raw.astype(np.uint8) * 255 if raw.dtype == np.bool_ else raw, channels)


def conversions(file: PictureFile, channels: int) -> list[str]:
    """What reading a file for a model of so many channels passes over, resolves or makes of it, in words."""
    found = list(file.notes)
    if file.channels != channels:
        found.append("colour made grey" if channels == 1 else "grey repeated as colour")
    if file.bits == 1:
        found.append("1 bit made 8")
    return found


def to_channels(pixels: NDArray[np.generic], channels: int) -> Pixels:
    """(H, W), (H, W, 1) or (H, W, 3) -> (H, W, channels), channels 1 or 3, same number type (uint8 or uint16)."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f"pixels of type {pixels.dtype}, expected uint8 or uint16", remedy="convert the array")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise DataError(f"pixels of shape {pixels.shape}, expected (H, W), (H, W, 1) or (H, W, 3)")
    if pixels.shape[2] == channels:
        return np.ascontiguousarray(pixels)
    if channels == 3:
        return np.ascontiguousarray(np.repeat(pixels, 3, axis=2))
    grey = np.rint(pixels.astype(np.float64) @ LUMINANCE)
    return np.ascontiguousarray(grey[..., None].astype(pixels.dtype))


def pixel_hash(pixels: Pixels) -> str:
    """SHA-256 (hex) of decoded pixels: shape, number type and values, wherever they came from."""
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype.name}\n".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def list_pictures(folder: Path) -> list[Path]:
    """Picture files of a folder, sorted; hidden files are left out."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in found if p.is_file() and not is_left_by_system(p) and p.suffix.lower() in SUFFIXES)


def pictures_by_stem(folder: Path, faults: Faults) -> dict[str, Path]:
    """The pictures of a folder by name without suffix (as `same_name`); foreign and doubled names are faults."""
    found: dict[str, Path] = {}
    if not folder.is_dir():
        faults.add(f"{str(folder)!r}: no such folder")
        return found
    for path in sorted(folder.iterdir()):
        if is_left_by_system(path):
            continue
        if path.is_symlink() and not path.exists():
            faults.add(f"{str(path)!r}: a link to {str(path.readlink())!r}, which is not there")
        elif not path.is_file() or path.suffix.lower() not in SUFFIXES:
            faults.add(f"{str(path)!r}: no picture file; expected one of {', '.join(SUFFIXES)}")
        elif (name := same_name(path.stem)) in found:
            faults.add(f"{str(path)!r}: the name {path.stem!r} stands twice (also {found[name].name!r})")
        else:
            found[name] = path
    return found
