"""Pictures that are given as numbers: read as a file of the same pixels is, or refused in words. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stageline.data.pictures import PictureFile
from stageline.errors import DataError

ACCEPTED = (
    "give (H, W), (H, W, 1) or (H, W, 3) of uint8, uint16, bool, or floats in [0, 1], which become 16 bits; several "
    "pictures as a list"
)


@dataclass(frozen=True)
class ArrayInput:
    """A picture among the inputs of a prediction that lies in no file.

    name: what results call it.  file: what a file of the same pixels holds.  text: given with it, "" for none.
    """

    name: str
    file: PictureFile
    text: str = ""


def read_array(values: NDArray[Any]) -> PictureFile:
    """The picture that an array holds, (H, W), (H, W, 1) or (H, W, 3).

    uint8, uint16 and bool are as in a file of 8, 16 and 1 bits. Floats in [0, 1] become 16 bits: round(65535 x).
    DataError for any other shape or type, for numbers that are not finite and for floats outside of [0, 1].
    """
    shape = values.shape
    if values.ndim not in (2, 3) or (values.ndim == 3 and shape[2] not in (1, 3)) or 0 in shape:
        raise _fault(f"has shape {shape}{_shape_hint(shape)}")
    pixels = values[..., 0] if values.ndim == 3 and shape[2] == 1 else values
    if values.dtype == np.bool_:
        return PictureFile(np.array(pixels))
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return PictureFile(np.array(pixels, np.uint8 if values.dtype.itemsize == 1 else np.uint16))
    if values.dtype.kind != "f":
        raise _fault(f"has type {values.dtype}")
    numbers = pixels.astype(np.float64)
    odd = int(numbers.size - np.isfinite(numbers).sum())
    if odd:
        raise _fault(f"holds {odd} numbers that are not finite")
    low, high = float(numbers.min()), float(numbers.max())
    if low < 0 or high > 1:
        raise _fault(f"holds floats from {low:g} to {high:g}, outside of [0, 1]")
    return PictureFile(np.rint(numbers * 65535).astype(np.uint16), ("floats made 16 bits",))


def _shape_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[0] in (1, 3):
        return ", with channels in front: they stand last"
    return ""


def _fault(text: str) -> DataError:
    return DataError(f"an array {text}", remedy=ACCEPTED)
