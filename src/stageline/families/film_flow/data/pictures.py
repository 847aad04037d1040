"""Picture files and pixel arrays: read strictly, brought to [-1, 1] for the model and to 8 bits for the encoder.

One path for training, evaluation and prediction. Pixels are (H, W, C) uint8 or uint16, C = 1 or 3. A file that could
be read in two ways (turned by EXIF, with transparency, of several pages, with 32-bit numbers) is refused in words
instead of guessed. No torch.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stageline.errors import DataError

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
PERCENTILES = (0.5, 99.5)
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


def read_label(path: Path) -> NDArray[np.uint8]:
    """One label file as (H, W) uint8 {0, 1}.

    Accepted values: {0, 1}, {0, 255} or, in 16 bits, {0, 65535}; also as equal red, green and blue. Anything else is
    refused with the values that were found.
    """
    raw = decode(path)
    if raw.dtype == np.bool_:
        return raw.astype(np.uint8)
    if raw.ndim == 3:
        if not (np.array_equal(raw[..., 0], raw[..., 1]) and np.array_equal(raw[..., 0], raw[..., 2])):
            raise fault_of(path, "a coloured label; expected one value per pixel, 0 and 255 (or 0 and 1)")
        raw = raw[..., 0]
    values = np.unique(raw)
    top = int(values[-1])
    if top not in (0, 1, 255, 65535) or any(int(value) not in (0, top) for value in values):
        shown = ", ".join(str(value) for value in values[:6]) + (", ..." if len(values) > 6 else "")
        raise fault_of(path, f"label not binary: {len(values)} values ({shown}), expected 0 and 255 (or 0 and 1)")
    return np.asarray(raw != 0, dtype=np.uint8)


def find_levels(pixels: Pixels, image_norm: str) -> tuple[float, float]:
    """The two pixel values that become -1 and 1: 0.5 and 99.5 percentiles, or (`minmax`) least and largest."""
    if image_norm == "minmax":
        return float(pixels.min()), float(pixels.max())
    low, high = np.percentile(pixels, PERCENTILES)
    # A thin bright structure on a flat ground can leave both percentiles on the ground.
    if low == high:
        return float(pixels.min()), float(pixels.max())
    return float(low), float(high)


def normalise(pixels: Pixels, low: float, high: float) -> NDArray[np.float32]:
    """(H, W, C) pixels -> (C, H, W) float32 in [-1, 1]: low -> -1, high -> 1, clipped; a flat picture is 0."""
    if high <= low:
        return np.zeros((pixels.shape[2], *pixels.shape[:2]), dtype=np.float32)
    level = (pixels.astype(np.float32) - np.float32(low)) * np.float32(2 / (high - low)) - np.float32(1)
    return np.ascontiguousarray(np.clip(level, -1, 1).transpose(2, 0, 1))


def encoder_picture(pixels: Pixels, low: float, high: float) -> NDArray[np.uint8]:
    """What a condition encoder sees of a picture: (H, W, 3) uint8; 16-bit pixels are scaled between the levels."""
    if pixels.dtype == np.uint8:
        eight = np.asarray(pixels, dtype=np.uint8)
    else:
        eight = np.rint((normalise(pixels, low, high).transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(eight, 3, axis=2) if eight.shape[2] == 1 else eight)
