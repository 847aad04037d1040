"""Which folders of somebody's pictures hold images and labels, by their names alone. No arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from stageline.data.names import is_left_by_system
from stageline.data.pictures import list_pictures
from stageline.errors import Faults
from stageline.families.film_flow.data.layout import SPLITS, Layout

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
IMAGE_NAMES = ("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "input", "inputs")
LABEL_NAMES = (
    *("label", "labels", "1st_manual", "2nd_manual", "manual1", "manual2", "manual", "gt", "groundtruth"),
    *("ground_truth", "annotation", "annotations", "segmentation", "segmentations", "target", "targets"),
)
MASK_NAMES = ("mask", "masks")
"""Names of folders, compared without regard to case; the first that is there is taken, else the first by name that has
one of these words (`stare-images`, `labelsTr`). Masks may be those of a camera's field of view: they come last."""
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def find_layout(folder: Path, faults: Faults) -> tuple[Layout, list[str]]:
    """Where images and labels lie, by the names of folders, and what to tell of it; what is wrong goes to `faults`.

    A split other than train that has images and no labels is left out.
    """
    if not folder.is_dir():
        faults.add(f"{str(folder)!r}: no such folder")
        return Layout({}), []
    roots = {}
    for split in SPLITS:
        named = _child(folder, SPLIT_NAMES[split])
        if named is not None:
            roots[split] = named
    if not roots:
        roots = {"train": folder}
    elif "train" not in roots:
        faults.add(f"{str(folder)!r}: {', '.join(roots)} without train")
    parts: dict[str, list[str]] = {"image": [], "label": []}
    of_train, told = _label_folders(roots["train"]) if "train" in roots else [], []
    for split, root in list(roots.items()):
        image, labels = _image_folder(root), _label_folders(root)
        if image is None:
            faults.add(_tell_missing(root, "image", IMAGE_NAMES))
        elif split != "train" and of_train and {path.name for path in labels} <= {path.name for path in of_train[1:]}:
            told.append(f"warning: {str(root)!r} has no labels ({of_train[0].name}): it is left out")
            del roots[split]
            continue
        else:
            parts["image"].append(image.name)
        if labels:
            same = [path.name for path in labels if of_train and path.name == of_train[0].name]
            parts["label"].append((same or [labels[0].name])[0])
        else:
            faults.add(_tell_missing(root, "label", LABEL_NAMES))
    for part, names_found in parts.items():
        if len(set(names_found)) > 1:
            faults.add(f"{str(folder)!r}: folders of {part}s have several names: {', '.join(sorted(set(names_found)))}")
    if faults.found:
        return Layout(roots), []
    layout = Layout(roots, parts["image"][0], parts["label"][0])
    told.insert(0, f"images in {layout.image}/, labels in {layout.label}/ of {', '.join(map(str, roots.values()))}")
    others = sorted(path.name for path in of_train)
    if len(others) > 1:
        told.append(f"warning: several folders may hold labels: {', '.join(others)}; {layout.label} is taken")
    return layout, told


def _child(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder in `folder` that has the first of these names."""
    there = {path.name.lower(): path for path in _folders(folder)}
    return next((there[name] for name in names if name in there), None)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_left_by_system(path))


def _has_word(path: Path, names: Sequence[str]) -> bool:
    """Whether a folder's name has one of these words."""
    return any(word.lower() in names for word in WORD.findall(path.name))


def _image_folder(root: Path) -> Path | None:
    """The folder of images, by its name."""
    likely = [path for path in _folders(root) if not _has_word(path, (*LABEL_NAMES, *MASK_NAMES))]
    return _child(root, IMAGE_NAMES) or next((path for path in likely if _has_word(path, IMAGE_NAMES)), None)


def _label_folders(root: Path) -> list[Path]:
    """All folders that may hold labels, by their names; the most likely first."""
    found: list[Path] = []
    for names in (LABEL_NAMES, MASK_NAMES):
        exact = [path for name in names for path in _folders(root) if path.name.lower() == name]
        found += [*exact, *(path for path in _folders(root) if _has_word(path, names))]
    return list(dict.fromkeys(found))


def _tell_missing(root: Path, part: str, names: Sequence[str]) -> str:
    """That a folder of images or labels is missing, and where else they seem to be."""
    there = _folders(root)
    told = f"{str(root)!r}: no folder `{part}` (or {', '.join(names[1:4])}); folders there: "
    told += ", ".join(path.name for path in there) or "none"
    inner = [path for path in there if _child(path, SPLIT_NAMES["train"]) or _image_folder(path)]
    if pictures := len(list_pictures(root)):
        return f"{told}; {pictures} picture files lie in it: move the images to image/, their labels to label/"
    return f"{told}; say --data {str(inner[0])!r}" if inner else told
