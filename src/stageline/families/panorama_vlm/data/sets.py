"""Prepared rows as samples: panoramas for stage `vision`, questions about panoramas for the others.

A sample names its picture by number; its pixels or its features are read when the sample is asked for, in whichever
process that is. Views are cut from pixels on the device, after batching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stageline.contract import SampleKey
from stageline.data.features import FeatureStore
from stageline.data.prepared import PreparedData
from stageline.data.reading import SplitReader
from stageline.families.panorama_vlm.data.origin import PICTURES
from stageline.families.panorama_vlm.data.text import (
    PromptBuilder,
    TextBatch,
    TrainingText,
    collate_prompts,
    collate_training,
)
from stageline.objectives.step import seeded


@dataclass(frozen=True)
class Picture:
    """One reduced panorama.

    pixels: (3, H, W) uint8 or uint16, or None where `features` are there.  features: (V, S, D_v) of the frozen tower.
    seen: (H, W) bool, where a partial panorama has pixels; None where everywhere.  id: that its features are kept by.
    """

    number: int
    pixels: Tensor | None = None
    features: Tensor | None = None
    seen: Tensor | None = None
    id: str = ""


def picture_of(pixels: NDArray[Any], seen: NDArray[Any] | None = None, number: int = 0, name: str = "") -> Picture:
    """A panorama (H, W, 3) of uint8 or uint16 as a picture of its own memory. seen: (H, W) bool.  name: its id."""
    own = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    return Picture(number, own, seen=None if seen is None else torch.from_numpy(np.array(seen)), id=name)


@dataclass(frozen=True)
class Sample:
    """One question about a picture. text: its ids; of an evaluation the prompt alone."""

    picture: Picture
    text: TrainingText


@dataclass
class Batch:
    """A batch on its way to the device.

    pictures: each distinct panorama once.  rows: (B,) int64, which picture each text is about.  text: None in stage
    `vision`.
    """

    pictures: list[Picture]
    rows: Tensor
    text: TextBatch | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        pictures = [
            replace(p, pixels=move(p.pixels), features=move(p.features), seen=move(p.seen)) for p in self.pictures
        ]
        text = None if self.text is None else _moved(self.text, device)
        return Batch(pictures, self.rows.to(device), text)


def _moved(text: TextBatch, device: torch.device | str) -> TextBatch:
    parts = {name: getattr(text, name).to(device) for name in ("ids", "attention_mask", "position_ids", "labels")}
    return TextBatch(**parts, num_queries_cut=text.num_queries_cut, num_responses_cut=text.num_responses_cut)


@dataclass
class PictureSet:
    """The distinct panoramas of a split, by number.

    features: where those of the frozen tower are kept, and may be missing.
    """

    split: SplitReader
    features: FeatureStore | None = None
    ids: dict[int, str] = field(default_factory=dict)
    epoch: int | None = None

    def __len__(self) -> int:
        return len(self.split)

    def id(self, number: int) -> str:
        """SHA-256 (hex) of a picture's file, which its features are kept by."""
        if number not in self.ids:
            self.ids[number] = str(self.split.fields(number)["sha256"])
        return self.ids[number]

    def pixels(self, number: int) -> Picture:
        """A panorama's pixels."""
        arrays = self.split.arrays(number)
        return picture_of(arrays["erp"], arrays.get("seen"), number, self.id(number))

    def begin_epoch(self, epoch: int) -> None:
        """Learn, once per epoch and process, of features that others computed."""
        if self.features is not None and epoch != self.epoch:
            self.features.refresh()
            self.epoch = epoch

    def picture(self, number: int) -> Picture:
        """A panorama's features where they are kept, else its pixels."""
        if self.features is None or not self.features.has(self.id(number)):
            return self.pixels(number)
        seen = None
        if self.has_parts:
            arrays = self.split.arrays(number)
            seen = torch.from_numpy(np.array(arrays["seen"])) if "seen" in arrays else None
        return Picture(number, features=self.features.tensor(self.id(number)), seen=seen)

    @property
    def has_parts(self) -> bool:
        """Whether any panorama of the split shows less than the whole sphere."""
        return bool(self.split.facts.get("partial"))


@dataclass
class Panoramas:
    """Samples of stage `vision`: pictures alone. Indexed by a `SampleKey` in training, by an int in validation."""

    pictures: PictureSet
    yaw_roll: bool = False
    seed: int = 0

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, item: Any, /) -> Picture:
        epoch, number = item if isinstance(item, tuple) else (None, item)
        picture = self.pictures.pixels(number)
        if self.yaw_roll and epoch is not None and picture.pixels is not None:
            rng = seeded("yaw_roll", self.seed, epoch, number)
            columns = int(torch.randint(picture.pixels.shape[-1], (), generator=rng))
            seen = None if picture.seen is None else picture.seen.roll(columns, -1)
            picture = replace(picture, pixels=picture.pixels.roll(columns, -1), seen=seen)
        return picture


@dataclass
class Questions:
    """Samples of the other stages: rows of text with their pictures."""

    rows: SplitReader
    pictures: PictureSet
    builder: PromptBuilder

    def __len__(self) -> int:
        return len(self.rows)

    def number(self, row: int) -> int:
        """The picture of a row."""
        return int(self.rows.numbers("picture")[row])

    def text(self, row: int) -> TrainingText:
        """The ids of a row, to train on."""
        fields = self.rows.fields(row)
        return self.builder.training_text(fields["query"], fields["response"])

    def __getitem__(self, item: Any, /) -> Sample:
        epoch, row = item if isinstance(item, tuple) else (None, item)
        if epoch is not None:
            self.pictures.begin_epoch(epoch)
        return Sample(self.pictures.picture(self.number(row)), self.text(row))


def collate_pictures(pictures: Sequence[Picture]) -> Batch:
    """A batch of stage `vision`."""
    return Batch(list(pictures), torch.arange(len(pictures)))


def collate_samples(samples: Sequence[Sample], pad: int) -> Batch:
    """A batch of questions, each distinct picture once."""
    places: dict[int, int] = {}
    pictures: list[Picture] = []
    for sample in samples:
        if sample.picture.number not in places:
            places[sample.picture.number] = len(pictures)
            pictures.append(sample.picture)
    rows = torch.tensor([places[sample.picture.number] for sample in samples])
    return Batch(pictures, rows, collate_training([sample.text for sample in samples], pad))


def collate_questions(rows: Questions, numbers: Sequence[int], pad: int) -> tuple[Batch, list[dict[str, Any]]]:
    """A batch of prompts to be answered, and the fields of its rows. numbers: of the rows."""
    fields = [rows.rows.fields(number) for number in numbers]
    places: dict[int, int] = {}
    for number in numbers:
        places.setdefault(rows.number(number), len(places))
    pictures = [rows.pictures.picture(number) for number in places]
    text = collate_prompts([rows.builder.prompt(row["query"]) for row in fields], pad)
    return Batch(pictures, torch.tensor([places[rows.number(number)] for number in numbers]), text), fields


def grouped_by_picture(pictures: np.ndarray[Any, Any], seed: int, epoch: int) -> list[SampleKey]:
    """The order of one epoch: pictures at random, all rows of one next to each other, at random among themselves.

    pictures: (N,) the picture of each row.  What questions about one picture have in common and where they differ is
    what teaches a direction; spread over an epoch they teach what most pictures have.
    """
    rng = np.random.default_rng([seed & (2**63 - 1), epoch])
    of_picture = rng.permutation(int(pictures.max()) + 1 if len(pictures) else 0)
    order = np.lexsort((rng.random(len(pictures)), of_picture[pictures]))
    return [(epoch, int(row)) for row in order]


def open_pictures(data: PreparedData, name: str) -> PictureSet:
    """The panoramas of a split."""
    return PictureSet(data.split(f"{name}{PICTURES}"))


def open_questions(data: PreparedData, name: str, builder: PromptBuilder) -> Questions:
    """The rows of a split with their panoramas."""
    return Questions(data.split(name), open_pictures(data, name), builder)
