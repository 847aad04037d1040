"""Labels and levels of film_flow: binary masks, pixels brought to [-1, 1] for the model and to 8 bits for the encoder.

One path for training, evaluation and prediction. No torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stageline.data.pictures import Pixels, decode, fault_of

PERCENTILES = (0.5, 99.5)


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
