"""Where pictures and labels of a folder data set lie, and which split each belongs to, by names alone. No arrays.

A split has a folder of its own (`train/image`, `train/label`), or several splits share one and names tell them apart
(`data.val_names`, `data.test_names`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from stageline.data.names import NamePattern, same_name

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

    def splits_of(self, name: str) -> list[str]:
        """The splits whose patterns a picture's name fits, `train` where it fits none."""
        name = same_name(name)
        return [s for s, patterns in self.names.items() if any(fnmatchcase(name, p) for p in patterns)] or ["train"]

    def holds(self, split: str, name: str) -> bool:
        """Whether a picture of a split's folder belongs to that split."""
        return not self.names or self.splits_of(name) == [split]

    def picture_name(self, part: str, name: str) -> str:
        """The name of the picture that a file belongs to; its own where it fits no pattern. part: image or label."""
        key = self.pattern.key(part, name)
        return name if key is None else self.pattern.image.replace("*", key)

    def files(self, split: str) -> list[Path]:
        """The files of a split that are there."""
        found = []
        for part, folder in zip(("image", "label"), self.folders(split), strict=False):
            if folder.is_dir():
                found += [
                    file
                    for file in folder.iterdir()
                    if file.is_file() and self.holds(split, self.picture_name(part, file.stem))
                ]
        return found
