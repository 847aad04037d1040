"""Labels and levels of film_flow: binary masks, pixels brought to [-1, 1] for the model and to 8 bits for the encoder.

One path for training, evaluation and prediction. No torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stageline.data.pictures import PictureFile, Pixels, fault_of

PERCENTILES = (0.5, 99.5)
MANY_VALUES = 8
"""Of a label with more values than these, the ones between are edges, no classes."""


def label_of(file: PictureFile, path: Path) -> NDArray[np.uint8]:
    """The label (H, W) uint8 {0, 1} that a file holds. path: for messages.

    Accepted values: {0, 1}, {0, 255} or, in 16 bits, {0, 65535}; also as equal red, green and blue. Of a palette two
    colours, whichever: black is the ground, or else number 0 of the palette. Anything else is refused with the values
    that were found.
    """
    raw = file.pixels
    if raw.dtype == np.bool_:
        return raw.astype(np.uint8)
    is_grey = raw.ndim == 2 or (np.array_equal(raw[..., 0], raw[..., 1]) and np.array_equal(raw[..., 0], raw[..., 2]))
    values = np.unique(raw[..., 0] if raw.ndim == 3 else raw)
    top = int(values[-1])
    is_binary = top in (0, 1, 255, 65535) and all(int(value) in (0, top) for value in values)
    if is_grey and is_binary:
        return np.asarray((raw[..., 0] if raw.ndim == 3 else raw) != 0, dtype=np.uint8)
    if file.indices is not None and file.palette is not None:
        return _of_palette(file.indices, file.palette, path)
    if not is_grey:
        raise fault_of(path, "a coloured label; expected one value per pixel, 0 and 255 (or 0 and 1)")
    shown = ", ".join(str(value) for value in values[:6]) + (", ..." if len(values) > 6 else "")
    how = "; soft edges, or those of a JPEG: cut them at half and save as PNG" if len(values) > MANY_VALUES else ""
    raise fault_of(path, f"label not binary: {len(values)} values ({shown}), expected 0 and 255 (or 0 and 1){how}")


def _of_palette(indices: NDArray[np.uint8], palette: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    numbers = np.unique(indices)
    colours = {int(number): tuple(int(c) for c in palette[number]) for number in numbers}
    if len(set(colours.values())) > 2:
        shown = ", ".join(f"{number} {colour}" for number, colour in [*colours.items()][:6])
        more = ", ..." if len(colours) > 6 else ""
        raise fault_of(
            path,
            f"label not binary: {len(colours)} colours of its palette ({shown}{more}), expected two: the ground, black "
            "or number 0, and another",
        )
    ground = next((colour for colour in colours.values() if not any(colour)), tuple(int(c) for c in palette[0]))
    if len(colours) > 1 and ground not in colours.values():
        raise fault_of(path, f"a label of two colours of its palette ({colours}), neither black nor number 0")
    return np.isin(indices, [number for number, colour in colours.items() if colour != ground]).astype(np.uint8)


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
