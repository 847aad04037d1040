"""Folders of pictures with masks: `image/` and `label/` with equal file names, checked as a whole before use.

Every fault of every file is reported at once, with its path, before anything is written. File names are compared
without their suffix (`image/a.jpg` goes with `label/a.png`), or by `data.label_pattern`. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stageline.config.bounds import MAX_PIXELS, read_json, read_whole
from stageline.data.names import NamePattern, find_pattern, joined, same_name
from stageline.data.pictures import (
    SUFFIXES,
    PictureFile,
    Pixels,
    as_pixels,
    list_pictures,
    pictures_by_stem,
    read_file,
)
from stageline.errors import DataError, Faults
from stageline.families.film_flow.data.layout import Layout
from stageline.families.film_flow.data.pictures import label_of

REMEDY = "the layout is image/<name> and label/<name>, equal names; labels hold 0 and 255 (or 0 and 1)"


@dataclass(frozen=True)
class Pair:
    """One picture and its label. name: of the picture, without suffix, as its file has it."""

    split: str
    name: str
    image: Path
    label: Path


@dataclass(frozen=True)
class ReadPair:
    """A pair that was read.

    pixels: (H, W, channels).  mask: (H, W) uint8 {0, 1}.  image, label: the files as they are.
    """

    pixels: Pixels
    mask: NDArray[np.uint8]
    image: PictureFile
    label: PictureFile


def pair_files(layout: Layout, faults: Faults, splits: Collection[str] | None = None) -> list[Pair]:
    """The pairs of all splits in order; unmatched names and splits without files are noted in `faults`.

    splits: which; None is all.
    """
    pairs: list[Pair] = []
    patterns: dict[str, NamePattern] = {}
    for split, root in layout.roots.items():
        if splits is not None and split not in splits:
            continue
        if not root.is_dir():
            faults.add(f"{str(root)!r}: no such folder (data.{split}_dir)")
            continue
        images, labels = (_by_key(layout, split, part, faults) for part in ("image", "label"))
        lone, orphans = images.keys() - labels.keys(), labels.keys() - images.keys()
        pattern = find_pattern({images[key].stem for key in lone}, {labels[key].stem for key in orphans})
        if pattern is None:
            faults.extend(f"{str(images[key])!r}: no label of that name" for key in sorted(lone))
            faults.extend(f"{str(labels[key])!r}: no image of that name" for key in sorted(orphans))
        else:
            patterns[split] = pattern
        if not images and not labels and (root / layout.image).is_dir():
            held = f" that belong to {split}: data.{split}_names" if layout.names else ""
            faults.add(f"{str(root)!r}: no picture files in {layout.image}/ and {layout.label}/{held}")
        both = sorted(images.keys() & labels.keys())
        pairs += [Pair(split, images[key].stem, images[key], labels[key]) for key in both]
    if patterns:
        _add_pattern(layout, patterns, faults)
    return pairs


def _by_key(layout: Layout, split: str, part: str, faults: Faults) -> dict[str, Path]:
    """The files of one part of a split by what pairs them."""
    found: dict[str, Path] = {}
    folder = layout.roots[split] / (layout.image if part == "image" else layout.label)
    pictures = layout.image_names(split)
    for name, path in pictures_by_stem(folder, faults).items():
        key = layout.pattern.key(part, name)
        owners = layout.splits_of(split, name) if part == "image" else []
        if len(owners) > 1:
            faults.add(f"{str(path)!r}: fits the names of {' and '.join(owners)}")
        elif key is None:
            faults.add(f"{str(path)!r}: does not fit data.label_pattern {layout.pattern.text!r}")
        elif not layout.holds(split, part, name, pictures):
            continue
        elif key in found:
            faults.add(f"{str(path)!r}: {key!r} stands twice by data.label_pattern (also {found[key].name!r})")
        else:
            found[key] = path
    return found


def _add_pattern(layout: Layout, patterns: Mapping[str, NamePattern], faults: Faults) -> None:
    """One fault instead of many where names without a partner would go together by a pattern. patterns: by split."""
    found, renamed = [], ""
    for split, pattern in patterns.items():
        images, labels = (
            {key: path for path in list_pictures(folder) if (key := pattern.key(part, path.stem)) is not None}
            for part, folder in zip(("image", "label"), layout.folders(split), strict=True)
        )
        key = min(images.keys() & labels.keys())
        renamed = renamed or f"{labels[key].name!r} to {images[key].stem + labels[key].suffix!r}"
        ((image, label),) = pattern.rules
        found.append(f"{str(layout.roots[split])!r}: images are named {image!r} and labels {label!r}")
    text = " | ".join(f"{image} -> {label}" for image, label in joined(patterns.values()).rules)
    faults.add(f"{'; '.join(found)}: say data.label_pattern='{text}', or rename the labels: {renamed} and so on")


def read_pair(pair: Pair, channels: int, max_pixels: int = MAX_PIXELS) -> ReadPair:
    """One pair. Raises DataError with all faults of the two files. max_pixels: the largest picture that is decoded."""
    faults = Faults(DataError, pair.name, REMEDY)
    image, label, mask = None, None, None
    try:
        image = read_file(pair.image, max_pixels)
    except DataError as error:
        faults.add(error.message)
    try:
        label = read_file(pair.label, max_pixels)
        mask = label_of(label, pair.label)
    except DataError as error:
        faults.add(error.message)
    if image is not None and mask is not None and image.pixels.shape[:2] != mask.shape:
        faults.add(f"{str(pair.label)!r}: {_size(mask)}, but its image {pair.image.name!r} is {_size(image.pixels)}")
    faults.raise_if_any()
    assert image is not None
    assert label is not None
    assert mask is not None
    return ReadPair(as_pixels(image, channels), mask, image, label)


def _size(pixels: NDArray[np.generic]) -> str:
    return f"{pixels.shape[0]} x {pixels.shape[1]} pixels (height x width)"


def list_pairs(layout: Layout, splits: Collection[str] | None = None) -> list[Pair]:
    """The pairs of all splits in order, by their names alone; what has no partner is left out. splits: None is all."""
    return pair_files(layout, Faults(DataError, "image folders", REMEDY), splits)


def check_folders(
    layout: Layout,
    progress: Callable[[int, int, str], None],
    only: Collection[str] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> list[Pair]:
    """The pairs of all splits, their files read once; raises one DataError that lists every fault of every file.

    only: the splits whose files are read; of the others the names count. None is all.
    """
    faults = Faults(DataError, "image folders", REMEDY)
    wanted = {split for split in layout.roots if only is None or split in only}
    pairs, named = pair_files(layout, faults, wanted), list_pairs(layout, layout.roots.keys() - wanted)
    faults.found = list(dict.fromkeys(faults.found))  # of splits that share a folder
    owners = {path.resolve(): pair.split for pair in named for path in (pair.image, pair.label)}
    for number, pair in enumerate(pairs):
        progress(number, len(pairs), f"checking {pair.split}/{pair.name}")
        for path in (pair.image.resolve(), pair.label.resolve()):
            if owners.setdefault(path, pair.split) != pair.split:
                faults.add(f"{str(path)!r}: the same file in {owners[path]} and {pair.split}")
        try:
            read_pair(pair, 1, max_pixels)
        except DataError as error:
            faults.extend(line.removeprefix("  - ") for line in error.message.splitlines()[1:])
    faults.raise_if_any()
    return [*pairs, *named]


def read_prompts(path: Path, names: set[str]) -> dict[str, str]:
    """Prompts from a JSON file {image file name: prompt}, by name without suffix (`same_name`); every fault at once.

    names: names of all images; one without a prompt and a prompt without an image are faults.
    """
    names = set(map(same_name, names))
    faults = Faults(DataError, f"prompts file {str(path)!r}", "write {image file name: prompt} for every image")
    try:
        raw = read_json(read_whole(path))
    except (OSError, ValueError) as error:
        raise DataError(f"prompts file {str(path)!r} cannot be read: {error}", remedy="give a JSON mapping") from error
    if not isinstance(raw, dict):
        raise DataError(f"prompts file {str(path)!r} holds a {type(raw).__name__}, expected a mapping")
    prompts: dict[str, str] = {}
    seen: set[str] = set()
    for key, value in raw.items():
        name = same_name(Path(key).stem if Path(key).suffix.lower() in SUFFIXES else key)
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
