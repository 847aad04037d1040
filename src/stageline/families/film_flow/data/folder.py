"""Folders of pictures with masks: `image/` and `label/` with equal file names, checked as a whole before use.

Every fault of every file is reported at once, with its path, before anything is written. File names are compared
without their suffix (`image/a.jpg` goes with `label/a.png`). No torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stageline.data.pictures import SUFFIXES, Pixels, pictures_by_stem, read_picture
from stageline.errors import DataError, Faults
from stageline.families.film_flow.data.pictures import read_label

REMEDY = "the layout is image/<name> and label/<name>, equal names; labels hold 0 and 255 (or 0 and 1)"


@dataclass(frozen=True)
class Pair:
    """One picture and its label."""

    split: str
    name: str
    image: Path
    label: Path


def pair_files(splits: Mapping[str, Path], faults: Faults) -> list[Pair]:
    """The pairs of all splits in order; unmatched names and splits without files are noted in `faults`."""
    pairs: list[Pair] = []
    for split, root in splits.items():
        if not root.is_dir():
            faults.add(f"{str(root)!r}: no such folder (data.{split}_dir)")
            continue
        images, labels = pictures_by_stem(root / "image", faults), pictures_by_stem(root / "label", faults)
        faults.extend(f"{str(images[name])!r}: no label of that name" for name in sorted(images.keys() - labels.keys()))
        faults.extend(f"{str(labels[name])!r}: no image of that name" for name in sorted(labels.keys() - images.keys()))
        both = sorted(images.keys() & labels.keys())
        if not images and not labels and (root / "image").is_dir():
            faults.add(f"{str(root)!r}: no picture files in image/ and label/")
        pairs += [Pair(split, name, images[name], labels[name]) for name in both]
    return pairs


def read_pair(pair: Pair, channels: int, min_size: int) -> tuple[Pixels, NDArray[np.uint8]]:
    """One pair: (H, W, channels) pixels and (H, W) uint8 {0, 1}. Raises DataError with all faults of the two files.

    min_size: least height and width in pixels (a training crop must fit).
    """
    faults = Faults(DataError, pair.name, REMEDY)
    pixels, label = None, None
    try:
        pixels = read_picture(pair.image, channels)
    except DataError as error:
        faults.add(error.message)
    try:
        label = read_label(pair.label)
    except DataError as error:
        faults.add(error.message)
    if pixels is not None and min(pixels.shape[:2]) < min_size:
        faults.add(f"{str(pair.image)!r}: {_size(pixels)}, smaller than a crop of {min_size} x {min_size}")
    if pixels is not None and label is not None and pixels.shape[:2] != label.shape:
        faults.add(f"{str(pair.label)!r}: {_size(label)}, but its image {pair.image.name!r} is {_size(pixels)}")
    faults.raise_if_any()
    assert pixels is not None
    assert label is not None
    return pixels, label


def _size(pixels: NDArray[np.generic]) -> str:
    return f"{pixels.shape[0]} x {pixels.shape[1]} pixels (height x width)"


def list_pairs(splits: Mapping[str, Path]) -> list[Pair]:
    """The pairs of all splits in order, by their names alone; what has no partner is left out."""
    return pair_files(splits, Faults(DataError, "image folders", REMEDY))


def check_folders(
    splits: Mapping[str, Path],
    channels: int,
    crop_size: int,
    progress: Callable[[int, int, str], None],
    only: Collection[str] | None = None,
) -> list[Pair]:
    """The pairs of all splits, their files read once; raises one DataError that lists every fault of every file.

    crop_size: side of a training crop; training images must be at least so large, others may have any size.
    only: the splits whose files are read; of the others the names count. None is all.
    """
    faults = Faults(DataError, "image folders", REMEDY)
    wanted = {split: root for split, root in splits.items() if only is None or split in only}
    others = {split: root for split, root in splits.items() if split not in wanted}
    pairs, named = pair_files(wanted, faults), list_pairs(others)
    owners = {path.resolve(): pair.split for pair in named for path in (pair.image, pair.label)}
    for number, pair in enumerate(pairs):
        progress(number, len(pairs), f"checking {pair.split}/{pair.name}")
        for path in (pair.image.resolve(), pair.label.resolve()):
            if owners.setdefault(path, pair.split) != pair.split:
                faults.add(f"{str(path)!r}: the same file in {owners[path]} and {pair.split}")
        try:
            read_pair(pair, channels, crop_size if pair.split == "train" else 1)
        except DataError as error:
            faults.extend(line.removeprefix("  - ") for line in error.message.splitlines()[1:])
    faults.raise_if_any()
    return [*pairs, *named]


def read_prompts(path: Path, names: set[str]) -> dict[str, str]:
    """Prompts from a JSON file {image file name: prompt}, by name without suffix; every fault at once.

    names: names of all images; one without a prompt and a prompt without an image are faults.
    """
    faults = Faults(DataError, f"prompts file {str(path)!r}", "write {image file name: prompt} for every image")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"prompts file {str(path)!r} cannot be read: {error}", remedy="give a JSON mapping") from error
    if not isinstance(raw, dict):
        raise DataError(f"prompts file {str(path)!r} holds a {type(raw).__name__}, expected a mapping")
    prompts: dict[str, str] = {}
    seen: set[str] = set()
    for key, value in raw.items():
        name = Path(key).stem if Path(key).suffix.lower() in SUFFIXES else key
        seen.add(name)
        if not isinstance(value, str) or not value.strip():
            faults.add(f"{key!r}: {value!r} is no prompt")
        elif name in prompts:
            faults.add(f"{key!r}: the name {name!r} stands twice")
        elif name not in names:
            faults.add(f"{key!r}: no image of that name")
        else:
            prompts[name] = value
    faults.extend(f"{name!r}: no prompt for this image" for name in sorted(names - seen))
    faults.raise_if_any()
    return prompts
