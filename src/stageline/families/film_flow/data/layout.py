"""Where pictures and labels of a folder data set lie, and which split each belongs to, by names alone. No arrays.

A split has a folder of its own (`train/image`, `train/label`), or several splits share one and names tell them apart
(`data.val_names`, `data.test_names`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from stageline.data.names import NamePattern, is_left_by_system, same_name

if TYPE_CHECKING:
    from stageline.families.film_flow.config import DataConfig

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Layout:
    """The folders of a data set.

    roots: split -> folder.  image, label: names of the folders below.  pattern: how names go together.
    names: split -> patterns of the picture names that belong to it; of a shared folder the rest belongs to `train`.
    """

    roots: Mapping[str, Path]
    image: str = "image"
    label: str = "label"
    pattern: NamePattern = field(default_factory=NamePattern)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, data: DataConfig) -> Layout:
        """The layout that a config's section `data` states."""
        folders = {"train": data.train_dir, "val": data.val_dir, "test": data.test_dir}
        roots = {split: Path(folder) for split, folder in folders.items() if folder}
        stated = {"val": data.val_names, "test": data.test_names}
        names = {split: tuple(map(same_name, found)) for split, found in stated.items() if found}
        return cls(roots, data.image_folder, data.label_folder, NamePattern.parse(data.label_pattern), names)

    def folders(self, split: str) -> tuple[Path, ...]:
        """Image and label folder of a split; none where it has none."""
        return (self.roots[split] / self.image, self.roots[split] / self.label) if split in self.roots else ()

    def splits_of(self, split: str, name: str) -> list[str]:
        """The splits that a picture in a split's folder belongs to by its name: `train` where it fits no pattern."""
        root, name = self.roots[split], same_name(name)
        sharing = [other for other in self.names if self.roots.get(other) == root]
        if not sharing or list(self.roots.values()).count(root) == 1:
            return [split]
        return [s for s in sharing if any(fnmatchcase(name, pattern) for pattern in self.names[s])] or ["train"]

    def image_names(self, split: str) -> set[str]:
        """Names of what lies in the image folder of a split."""
        folder = self.folders(split)[0]
        return {same_name(path.stem) for path in folder.iterdir()} if folder.is_dir() else set()

    def holds(self, split: str, part: str, name: str, images: Collection[str]) -> bool:
        """Whether a file of a split's folder belongs to that split; a label that has no image belongs to all.

        part: image or label.  name: without suffix.  images: `image_names` of the split.
        """
        names = [name] if part == "image" else [n for n in self.pattern.images_of(name) if n in images]
        return not names or any(self.splits_of(split, found) == [split] for found in names)

    def files(self, split: str) -> list[Path]:
        """The files of a split that are there."""
        if split not in self.roots:
            return []
        found: list[Path] = []
        images = self.image_names(split)
        for part, folder in zip(("image", "label"), self.folders(split), strict=True):
            if folder.is_dir():
                found += [
                    file
                    for file in folder.iterdir()
                    if file.is_file() and not is_left_by_system(file) and self.holds(split, part, file.stem, images)
                ]
        return found
