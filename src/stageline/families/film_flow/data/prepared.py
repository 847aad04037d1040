"""Rows of a split as film_flow writes and reads them: a picture with its masks, heat and nodes; a case's features.

A case is one thing to segment: a picture, one of its masks, its prompt, and a box where only a part is meant. A split
of pictures has a row per picture, a split of features one per case, in the order of the pictures and their cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from stageline.data.pictures import Pixels
from stageline.data.reading import SplitReader
from stageline.data.shards import SplitWriter
from stageline.families.film_flow.data.augmentation import Box

Array = NDArray[Any]


@dataclass(frozen=True)
class PreparedImage:
    """One picture with all that belongs to it.

    pixels: (H, W, C) uint8 or uint16.  low, high: pixel values that become -1 and 1.  heat: (H, W) in [0, 1].
    nodes: (N, 3) row, column, local radius.  masks: (H, W) uint8 {0, 1}, one per prompt.  targets: flow targets (H, W)
    in [-1, 1] per mask, or none where the target is 2 m - 1.  boxes: parts that are cases of their own; none: whole.
    names: case names beside the picture's id, one per prompt; "" adds nothing.
    """

    id: str
    pixels: Pixels
    low: float
    high: float
    heat: NDArray[np.float32]
    nodes: NDArray[np.float64]
    masks: tuple[NDArray[np.uint8], ...]
    prompts: tuple[str, ...]
    names: tuple[str, ...]
    targets: tuple[NDArray[np.float32], ...] = ()
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Case:
    """One thing to segment: mask number `mask` of picture number `image`, inside `box` or whole."""

    id: str
    image: int
    mask: int
    prompt: str
    box: Box | None = None


def cases_of(image: PreparedImage, number: int) -> list[Case]:
    """The cases of a picture: every prompt, every box. number: the picture's."""
    return list_cases({"id": image.id, "prompts": image.prompts, "names": image.names, "boxes": image.boxes}, number)


def list_cases(fields: dict[str, Any], number: int) -> list[Case]:
    """The same from the fields of the picture's row."""
    cases = []
    for mask, (prompt, name) in enumerate(zip(fields["prompts"], fields["names"], strict=True)):
        base = f"{fields['id']}/{name}" if name else str(fields["id"])
        if not fields["boxes"]:
            cases.append(Case(base, number, mask, prompt))
        for top, left, height, width in fields["boxes"]:
            cases.append(Case(f"{base}/{top:04d}-{left:04d}", number, mask, prompt, (top, left, height, width)))
    return cases


def write_picture(writer: SplitWriter, image: PreparedImage) -> list[Case]:
    """Add a picture to a split of pictures; returns its cases."""
    arrays: dict[str, Array] = {
        "pixels": image.pixels,
        "heat": image.heat.astype(np.float16),
        "mask": np.stack(image.masks),
        "nodes": np.asarray(image.nodes, dtype=np.float64).round(4),
    }
    if image.targets:
        arrays["target"] = np.stack([target.astype(np.float16) for target in image.targets])
    cases = cases_of(image, writer.num_rows)
    height, width = image.pixels.shape[:2]
    fields = {"id": image.id, "prompts": image.prompts, "names": image.names, "boxes": image.boxes}
    levels = {"low": float(image.low), "high": float(image.high)}
    writer.add(arrays, fields, {"height": height, "width": width, "cases": len(cases), **levels})
    return cases


def write_feature(writer: SplitWriter, case: Case, vector: NDArray[np.float32], *, present: bool, dtype: str) -> None:
    """Add the feature (F,) of a case to a split of features. dtype: number format it is kept in."""
    writer.add({"vec": vector.astype(dtype)}, {"id": case.id}, {"present": int(present)})


class Cases(Sequence[Case]):
    """The cases of a split, each made when it is asked for."""

    def __init__(self, pictures: SplitReader) -> None:
        self.pictures = pictures

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Number of cases of the pictures up to each, itself included, (N,)."""
        return np.cumsum(self.pictures.numbers("cases"), dtype=np.int64)

    def of(self, image: int) -> range:
        """Numbers of a picture's cases."""
        return range(int(self.ends[image - 1]) if image else 0, int(self.ends[image]))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @overload
    def __getitem__(self, number: int) -> Case: ...
    @overload
    def __getitem__(self, number: slice) -> list[Case]: ...
    def __getitem__(self, number: int | slice) -> Case | list[Case]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(f"case {number} of {len(self)}")
        image = int(np.searchsorted(self.ends, number, side="right"))
        fields = self.pictures.fields(image)
        return list_cases(fields, image)[number - self.of(image).start]


class PreparedSplit:
    """One split, read by index. Nothing is read before it is asked for.

    pictures: the rows of pictures.  feature_rows: the rows of features of their cases; None has none.
    """

    def __init__(self, pictures: SplitReader, feature_rows: SplitReader | None = None) -> None:
        self.split = pictures.name
        self.pictures = pictures
        self.feature_rows = feature_rows
        self.cases = Cases(pictures)

    @property
    def num_images(self) -> int:
        return len(self.pictures)

    def feature(self, case: int) -> tuple[NDArray[np.float32], bool]:
        """(F,) float32 feature of a case and whether it is present; of no size where none were made."""
        if self.feature_rows is None:
            return np.zeros(0, dtype=np.float32), False
        vector = self.feature_rows.array(case, "vec").astype(np.float32)
        return vector, bool(self.feature_rows.numbers("present")[case])

    @cached_property
    def features(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(N, F) float32 features of all cases and whether each is present, (N,)."""
        found = [self.feature(case) for case in range(len(self.cases))]
        vectors = np.stack([vector for vector, _ in found]) if found else np.zeros((0, 0), dtype=np.float32)
        return vectors, np.array([present for _, present in found], dtype=bool)

    def id(self, image: int) -> str:
        """A picture's name."""
        return str(self.pictures.fields(image)["id"])

    def shape(self, image: int) -> tuple[int, int]:
        """(H, W) of a picture."""
        return int(self.pictures.numbers("height")[image]), int(self.pictures.numbers("width")[image])

    def levels(self, image: int) -> tuple[float, float]:
        """Pixel values that become -1 and 1."""
        return float(self.pictures.numbers("low")[image]), float(self.pictures.numbers("high")[image])

    def nodes(self, image: int) -> NDArray[np.float64]:
        """Junctions of a picture, (N, 3): row, column, local radius."""
        return np.array(self.pictures.array(image, "nodes"), dtype=np.float64).reshape(-1, 3)

    def pixels(self, image: int, box: Box | None = None) -> Pixels:
        """(h, w, C) pixels inside the box."""
        part: Pixels = _inside(self.pictures.array(image, "pixels"), box)
        return part

    def mask(self, case: Case, box: Box | None = None) -> NDArray[np.uint8]:
        """(h, w) uint8 {0, 1} inside the box."""
        return _inside(self.pictures.array(case.image, "mask")[case.mask], box)

    def heat(self, image: int, box: Box | None = None) -> NDArray[np.float32]:
        """(h, w) junction heat in [0, 1] inside the box."""
        return _inside(self.pictures.array(image, "heat"), box).astype(np.float32)

    def target(self, case: Case, box: Box | None = None) -> NDArray[np.float32]:
        """(h, w) flow target in [-1, 1] inside the box; 2 m - 1 where no other was prepared."""
        if self.pictures.facts["target_kind"] == "hard":
            return self.mask(case, box).astype(np.float32) * 2 - 1
        return _inside(self.pictures.array(case.image, "target")[case.mask], box).astype(np.float32)


def _inside(array: Array, box: Box | None) -> Array:
    """A copy of (H, W, ...) inside the box: what a file holds is not to be written to."""
    if box is None:
        return np.array(array)
    top, left, height, width = box
    return np.array(array[top : top + height, left : left + width])
