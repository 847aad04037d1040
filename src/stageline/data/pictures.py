"""Picture files: found in folders, and read strictly into pixel arrays.

Pixels are (H, W, C) uint8 or uint16, C = 1 or 3. A file that could be read in two ways (turned by EXIF, with
transparency, of several pages, with 32-bit numbers) is refused in words instead of guessed. No torch.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stageline.errors import DataError, Faults

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Weights of red, green, blue in grey (ITU-R BT.601)."""
EXIF_ORIENTATION = 0x0112

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


def fault_of(path: Path, text: str) -> DataError:
    """A DataError about one picture file."""
    return DataError(f"{str(path)!r}: {text}", remedy="mend or replace the file")


def decode(path: Path) -> NDArray[np.generic]:
    """The file's pixels as they are: (H, W) or (H, W, 3) of uint8, uint16 or bool; palettes are resolved to colours.

    Raises DataError for a file that is missing, empty, no picture, damaged, or readable in more than one way.
    """
    if not path.is_file():
        raise fault_of(path, "no such file")
    if path.stat().st_size == 0:
        raise fault_of(path, "empty file (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(path) as opened:
                return _pixels_of(path, opened)
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Warning, Image.DecompressionBombError) as error:
        raise fault_of(path, f"no readable picture ({error or type(error).__name__})") from error


def _pixels_of(path: Path, opened: Image.Image) -> NDArray[np.generic]:
    if getattr(opened, "n_frames", 1) != 1:
        raise fault_of(path, f"holds {getattr(opened, 'n_frames', 0)} pictures, expected one")
    turned = opened.getexif().get(EXIF_ORIENTATION, 1)
    if turned != 1:
        raise fault_of(path, f"EXIF orientation {turned}: shown turned or mirrored against its pixels; save it upright")
    opened.load()
    if opened.mode == "P":
        opened = opened.convert("RGBA" if "transparency" in opened.info else "RGB")
    if opened.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        alpha = np.asarray(opened.getchannel("A" if "A" in opened.getbands() else "a"))
        if alpha.min() < 255:
            raise fault_of(path, "has transparent pixels; flatten it")
        opened = opened.convert("RGB" if opened.mode.startswith("RGB") or opened.mode == "PA" else "L")
    if opened.mode in ("1", "L", "RGB"):
        return np.asarray(opened)
    if opened.mode.startswith("I;16"):
        return np.asarray(opened).astype(np.uint16)
    if opened.mode == "I":
        numbers = np.asarray(opened)
        if numbers.min() < 0 or numbers.max() > 65535:
            raise fault_of(path, f"32-bit numbers from {numbers.min()} to {numbers.max()}; save 8 or 16 bits per pixel")
        return numbers.astype(np.uint16)
    raise fault_of(path, f"mode {opened.mode!r}; save grey or RGB with 8 bits, or grey with 16 bits, per channel")


def read_picture(path: Path, channels: int) -> Pixels:
    """One picture file as (H, W, channels) uint8 or uint16; colour becomes grey or grey is repeated as needed."""
    raw = decode(path)
    pixels: NDArray[np.generic] = raw.astype(np.uint8) * 255 if raw.dtype == np.bool_ else raw
    return to_channels(pixels, channels)


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


def list_pictures(folder: Path) -> list[Path]:
    """Picture files of a folder, sorted; hidden files are left out."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in found if p.is_file() and not p.name.startswith(".") and p.suffix.lower() in SUFFIXES)


def pictures_by_stem(folder: Path, faults: Faults) -> dict[str, Path]:
    """The pictures of a folder by file name without suffix; foreign and doubled names are faults."""
    found: dict[str, Path] = {}
    if not folder.is_dir():
        faults.add(f"{str(folder)!r}: no such folder")
        return found
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:
            faults.add(f"{str(path)!r}: no picture file; expected one of {', '.join(SUFFIXES)}")
        elif path.stem in found:
            faults.add(f"{str(path)!r}: the name {path.stem!r} stands twice (also {found[path.stem].name!r})")
        else:
            found[path.stem] = path
    return found
