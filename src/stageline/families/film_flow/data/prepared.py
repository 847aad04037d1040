"""Prepared data on disk: pictures, masks, heat maps and condition features of one split, written once, read by index.

A split is `<split>.json` (ids, sizes, levels, nodes, cases) beside sharded safetensors files with the arrays; a case is
one thing to segment: a picture, one of its masks, its prompt, and a box where only a part is meant. No pickle. Readers
open shards lazily and per process, so a split can be handed to loader workers.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from stageline.errors import DataError
from stageline.families.film_flow.data.augmentation import Box
from stageline.families.film_flow.data.pictures import Pixels

FORMAT = 1
SHARD_BYTES = 128 * 1024**2
"""A shard is closed once it holds this much; a picture is never split."""
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
    """The cases of a picture: every prompt, every box."""
    cases = []
    for mask, (prompt, name) in enumerate(zip(image.prompts, image.names, strict=True)):
        base = f"{image.id}/{name}" if name else image.id
        if not image.boxes:
            cases.append(Case(base, number, mask, prompt))
        for box in image.boxes:
            cases.append(Case(f"{base}/{box[0]:04d}-{box[1]:04d}", number, mask, prompt, box))
    return cases


@dataclass
class SplitWriter:
    """Writes one split into a folder; `finish` writes its index, without which the split does not exist."""

    folder: Path
    split: str
    cases: list[Case] = field(default_factory=list)
    _images: list[dict[str, Any]] = field(default_factory=list)
    _arrays: dict[str, Array] = field(default_factory=dict)
    _shards: int = 0
    _bytes: int = 0

    def add(self, image: PreparedImage) -> list[Case]:
        """Add a picture; returns its cases."""
        number = len(self._images)
        arrays: dict[str, Array] = {f"pixels.{number}": image.pixels, f"heat.{number}": image.heat.astype(np.float16)}
        arrays |= {f"mask.{number}.{k}": mask for k, mask in enumerate(image.masks)}
        arrays |= {f"target.{number}.{k}": target.astype(np.float16) for k, target in enumerate(image.targets)}
        self._arrays |= {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        self._bytes += sum(array.nbytes for array in arrays.values())
        height, width, channels = image.pixels.shape
        self._images.append(
            {
                "id": image.id,
                "shard": self._shards,
                "height": height,
                "width": width,
                "channels": channels,
                "low": image.low,
                "high": image.high,
                "nodes": np.asarray(image.nodes, dtype=np.float64).round(4).tolist(),
                "targets": len(image.targets),
            }
        )
        cases = cases_of(image, number)
        self.cases += cases
        if self._bytes >= SHARD_BYTES:
            self._flush()
        return cases

    def finish(self, features: tuple[NDArray[np.float32], NDArray[np.bool_]] | None, dtype: str) -> None:
        """Write what is left, the features of all cases in their order (or None), and the index."""
        self._flush()
        if features is not None:
            vectors, present = features
            if len(vectors) != len(self.cases):
                raise DataError(f"{len(vectors)} features for {len(self.cases)} cases of {self.split!r}")
            arrays = {"vec": np.ascontiguousarray(vectors.astype(dtype)), "present": present.astype(np.uint8)}
            save_file(arrays, self.folder / f"{self.split}-features.safetensors")
        index = {
            "format": FORMAT,
            "split": self.split,
            "features": features is not None,
            "images": self._images,
            "cases": [asdict(case) for case in self.cases],
        }
        (self.folder / f"{self.split}.json").write_text(json.dumps(index, sort_keys=True) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        if self._arrays:
            save_file(self._arrays, self.folder / shard_name(self.split, self._shards))
            self._arrays, self._bytes = {}, 0
            self._shards += 1


def shard_name(split: str, number: int) -> str:
    """File name of one shard of a split."""
    return f"{split}-{number:05d}.safetensors"


class PreparedSplit:
    """One split, read by index. Opens nothing but the JSON index until an array is asked for."""

    def __init__(self, folder: Path, split: str) -> None:
        path = folder / f"{split}.json"
        if not path.is_file():
            have = sorted(p.stem for p in folder.glob("*.json") if p.stem in ("train", "val", "test"))
            raise DataError(
                f"the prepared data at {str(folder)!r} have no split {split!r}; they have {have}",
                remedy="set data.num_test or data.test_dir for a test split, or prepare the data again",
            )
        index = json.loads(path.read_text(encoding="utf-8"))
        if index.get("format") != FORMAT:
            raise DataError(f"{str(path)!r} has the format {index.get('format')!r}, this program reads {FORMAT}")
        self.folder = folder
        self.split = split
        self.images: list[dict[str, Any]] = index["images"]
        self.cases = [
            Case(c["id"], c["image"], c["mask"], c["prompt"], tuple(c["box"]) if c["box"] else None)
            for c in index["cases"]
        ]
        self.has_features: bool = index["features"]
        self._opened: tuple[int, dict[int, Any]] = (0, {})

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: no open files."""
        return {**self.__dict__, "_opened": (0, {})}

    @cached_property
    def features(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(N, F) float32 features and whether each is present, (N,); of no size where none were made."""
        if not self.has_features:
            return np.zeros((len(self.cases), 0), dtype=np.float32), np.zeros(len(self.cases), dtype=bool)
        arrays = load_file(self.folder / f"{self.split}-features.safetensors")
        return arrays["vec"].astype(np.float32), arrays["present"].astype(bool)

    @cached_property
    def cases_by_image(self) -> list[list[int]]:
        """Numbers of each picture's cases."""
        found: list[list[int]] = [[] for _ in self.images]
        for number, case in enumerate(self.cases):
            found[case.image].append(number)
        return found

    def shape(self, image: int) -> tuple[int, int]:
        """(H, W) of a picture."""
        return int(self.images[image]["height"]), int(self.images[image]["width"])

    def levels(self, image: int) -> tuple[float, float]:
        """Pixel values that become -1 and 1."""
        return float(self.images[image]["low"]), float(self.images[image]["high"])

    def nodes(self, image: int) -> NDArray[np.float64]:
        """Junctions of a picture, (N, 3): row, column, local radius."""
        return np.asarray(self.images[image]["nodes"], dtype=np.float64).reshape(-1, 3)

    def pixels(self, image: int, box: Box | None = None) -> Pixels:
        """(h, w, C) pixels inside the box."""
        part: Pixels = self._read(image, f"pixels.{image}", box)
        return part

    def mask(self, case: Case, box: Box | None = None) -> NDArray[np.uint8]:
        """(h, w) uint8 {0, 1} inside the box."""
        return self._read(case.image, f"mask.{case.image}.{case.mask}", box)

    def heat(self, image: int, box: Box | None = None) -> NDArray[np.float32]:
        """(h, w) junction heat in [0, 1] inside the box."""
        return self._read(image, f"heat.{image}", box).astype(np.float32)

    def target(self, case: Case, box: Box | None = None) -> NDArray[np.float32]:
        """(h, w) flow target in [-1, 1] inside the box; 2 m - 1 where no other was prepared."""
        if not self.images[case.image]["targets"]:
            return self.mask(case, box).astype(np.float32) * 2 - 1
        return self._read(case.image, f"target.{case.image}.{case.mask}", box).astype(np.float32)

    def _read(self, image: int, name: str, box: Box | None) -> Array:
        process, opened = self._opened
        if process != os.getpid():
            opened = {}
            self._opened = (os.getpid(), opened)
        shard = int(self.images[image]["shard"])
        if shard not in opened:
            opened[shard] = safe_open(self.folder / shard_name(self.split, shard), framework="numpy")
        if box is None:
            return np.asarray(opened[shard].get_tensor(name))
        top, left, height, width = box
        return np.asarray(opened[shard].get_slice(name)[top : top + height, left : left + width])
