"""Prepared data as the loop reads them: training crops by (epoch, index), whole cases by index, and batches of both.

A sample is a function of (seed, epoch, index) and the prepared files: equal alone or in order, in any process. Where
the condition belongs to the picture (`vlm_scope: image`) every crop, window and flip of it has the same feature.
Legend: B samples, C channels; images in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from stageline.errors import DataError
from stageline.families.film_flow.augmentation import draw_transform
from stageline.families.film_flow.condition_bundle import ConditionBundle
from stageline.families.film_flow.conditions import encoder_settings
from stageline.families.film_flow.feature_source import FeatureSource
from stageline.families.film_flow.pictures import encoder_picture, normalise
from stageline.families.film_flow.preparation import (
    check_record,
    is_per_crop,
    open_features,
    prepare,
    read_record,
)
from stageline.families.film_flow.prepared import Case, PreparedSplit
from stageline.families.film_flow.seeding import numpy_rng

if TYPE_CHECKING:
    from stageline.families.film_flow.config import FilmFlowConfig

__all__ = [
    "Batch",
    "CaseSet",
    "FilmFlowData",
    "Sample",
    "TrainSet",
    "collate",
    "open_data",
    "prepare",
    "window_condition",
]

Item = tuple[int, int]


@dataclass(frozen=True)
class Sample:
    """One sample.

    image: (C, h, w) in [-1, 1].  mask: (1, h, w) {0, 1}.  target: (1, h, w) flow target in [-1, 1].
    heat: (1, h, w) junction heat in [0, 1].  feature: (F,).  nodes: (N, 2) junctions of the picture inside the sample,
    row and column (evaluation only).  picture: (h, w, 3) uint8, what an encoder sees (scope `crop`, evaluation only).
    """

    id: str
    prompt: str
    image: NDArray[np.float32]
    mask: NDArray[np.float32]
    target: NDArray[np.float32]
    heat: NDArray[np.float32]
    feature: NDArray[np.float32]
    present: bool
    nodes: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)))
    picture: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Batch:
    """Samples of one size.

    image: (B, C, H, W) in [-1, 1].  mask: (B, 1, H, W) {0, 1}.  target: (B, 1, H, W) in [-1, 1].
    heat: (B, 1, H, W) in [0, 1].  condition: features of the samples, None where the data hold none.
    nodes: per sample (N, 2), row and column; empty in training.  pictures: per sample, for encoders under scope `crop`.
    """

    image: Tensor
    mask: Tensor
    target: Tensor
    heat: Tensor
    condition: ConditionBundle | None
    ids: list[str]
    prompts: list[str]
    nodes: list[NDArray[np.float64]]
    pictures: list[NDArray[np.uint8] | None]

    def to(self, device: Any, **kwargs: Any) -> Batch:
        """The batch with its tensors on another device."""
        condition = self.condition
        if condition is not None:
            vec, present = condition.vec.to(device, **kwargs), condition.present.to(device, **kwargs)
            condition = replace(condition, vec=vec, present=present)
        maps = {name: getattr(self, name).to(device, **kwargs) for name in ("image", "mask", "target", "heat")}
        return replace(self, condition=condition, **maps)

    def __len__(self) -> int:
        return len(self.ids)


class Rectangle(Protocol):
    """A window of a picture, in pixels."""

    @property
    def top(self) -> int: ...
    @property
    def left(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


class TrainSet(Dataset[Sample]):
    """Random crops of the training pictures; an epoch has `num_samples_per_image` of each.

    A picture with several prompts gets them in turn: two epochs in a row show it under two prompts.
    features: asks the encoder for every crop (scope `crop`), None where features are prepared.
    """

    def __init__(self, split: PreparedSplit, config: FilmFlowConfig, features: FeatureSource | None) -> None:
        self.split = split
        self.seed = config.seed
        self.crop_size = config.data.image_size
        self.flips = config.data.flips
        self.num_samples_per_image = config.data.num_samples_per_image
        self.features = features
        small = [
            f"{split.images[n]['id']}: {split.shape(n)[0]} x {split.shape(n)[1]}"
            for n in range(len(split.images))
            if min(split.shape(n)) < self.crop_size
        ]
        if small:
            raise DataError(
                f"training pictures smaller than a crop of {self.crop_size}: {', '.join(small)}",
                remedy="set data.image_size smaller",
            )

    def __len__(self) -> int:
        return len(self.split.images) * self.num_samples_per_image

    def __getitem__(self, item: Item) -> Sample:
        """The sample of (epoch, index)."""
        epoch, index = item
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        image = index % len(self.split.images)
        numbers = self.split.cases_by_image[image]
        turn = int(numpy_rng("prompt", self.seed, index).integers(len(numbers)))
        number = numbers[(turn + epoch) % len(numbers)]
        case = self.split.cases[number]
        transform = draw_transform(self.seed, epoch, index, self.split.shape(image), self.crop_size, flips=self.flips)
        box, levels = transform.box, self.split.levels(image)
        pixels = self.split.pixels(image, box)
        if self.features is None:
            feature, present = self._prepared(number)
        else:
            # The crop as it lies in the picture: flips change the sample, not what is known of it.
            picture = encoder_picture(pixels, *levels)
            vectors, there = self.features.features([picture], [case.prompt], [case.id], [box])
            feature, present = vectors[0], bool(there[0])
        return Sample(
            id=case.id,
            prompt=case.prompt,
            image=transform.orient(normalise(pixels, *levels)),
            mask=transform.orient(self.split.mask(case, box).astype(np.float32))[None],
            target=transform.orient(self.split.target(case, box))[None],
            heat=transform.orient(self.split.heat(image, box))[None],
            feature=feature,
            present=present,
        )

    def _prepared(self, number: int) -> tuple[NDArray[np.float32], bool]:
        vectors, present = self.split.features
        return vectors[number], bool(present[number])


class CaseSet(Dataset[Sample]):
    """Every case of a split, whole and as it is, by index; a picture with several prompts is there once per prompt."""

    def __init__(self, split: PreparedSplit, *, with_pictures: bool) -> None:
        self.split = split
        self.with_pictures = with_pictures

    def __len__(self) -> int:
        return len(self.split.cases)

    def case(self, index: int) -> Case:
        """Id, prompt and box of a case."""
        return self.split.cases[index]

    def __getitem__(self, index: int) -> Sample:
        """The sample of a case."""
        case = self.split.cases[index]
        levels = self.split.levels(case.image)
        pixels = self.split.pixels(case.image, case.box)
        vectors, present = self.split.features
        return Sample(
            id=case.id,
            prompt=case.prompt,
            image=normalise(pixels, *levels),
            mask=self.split.mask(case, case.box).astype(np.float32)[None],
            target=self.split.target(case, case.box)[None],
            heat=self.split.heat(case.image, case.box)[None],
            feature=vectors[index],
            present=bool(present[index]),
            nodes=_nodes_inside(self.split.nodes(case.image)[:, :2], case.box),
            picture=encoder_picture(pixels, *levels) if self.with_pictures else None,
        )


def _nodes_inside(nodes: NDArray[np.float64], box: tuple[int, int, int, int] | None) -> NDArray[np.float64]:
    """Nodes (N, 2) in the coordinates of a box, those outside left out."""
    if box is None:
        return nodes
    top, left, height, width = box
    shifted = nodes - np.array([top, left])
    inside = (shifted > -0.5).all(axis=1) & (shifted < np.array([height, width]) - 0.5).all(axis=1)
    return np.asarray(shifted[inside])


def collate(samples: Sequence[Sample], source: str = "") -> Batch:
    """Samples of one size -> a batch. Raises DataError for pictures of different sizes."""
    sizes = sorted({sample.image.shape[1:] for sample in samples})
    if len(sizes) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sizes)
        raise DataError(
            f"a batch holds pictures of {len(sizes)} sizes: {shown}",
            remedy="set trainer.validation_batch_size and evaluate.batch_size to 1",
        )

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))

    condition = None
    if samples[0].feature.size:
        present = torch.tensor([sample.present for sample in samples], dtype=torch.bool)
        condition = ConditionBundle(vec=stack("feature"), present=present, source=source)
    return Batch(
        image=stack("image"),
        mask=stack("mask"),
        target=stack("target"),
        heat=stack("heat"),
        condition=condition,
        ids=[sample.id for sample in samples],
        prompts=[sample.prompt for sample in samples],
        nodes=[sample.nodes for sample in samples],
        pictures=[sample.picture for sample in samples],
    )


@dataclass(frozen=True)
class FilmFlowData:
    """The sets of one prepared folder.

    feature_dim: F of the prepared features, 0 without any.  features: for conditions that are not prepared (crops,
    windows, new pictures); loads its encoder only when asked.  record: the facts written when the data were prepared.
    """

    train_set: TrainSet
    val_set: CaseSet
    feature_dim: int
    features: FeatureSource
    record: dict[str, Any]
    folder: Path
    source: str

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples -> batch."""
        return collate(samples, self.source)

    def case_set(self, split: str) -> CaseSet:
        """The cases of `val`, `test` or (for a look) `train`. Raises DataError for a split that was not prepared."""
        if split == self.val_set.split.split:
            return self.val_set
        return CaseSet(PreparedSplit(self.folder, split), with_pictures=self.val_set.with_pictures)


def open_data(config: FilmFlowConfig, folder: Path) -> FilmFlowData:
    """The data that `prepare` wrote into `folder`, for a stage config.

    Raises DataError where they were made for another config; a stage without FiLM accepts data with features.
    """
    record = read_record(folder)
    check_record(record, config, folder)
    settings = encoder_settings(config)
    per_crop = is_per_crop(settings)
    features = open_features(config)
    train = TrainSet(PreparedSplit(folder, "train"), config, features if per_crop else None)
    val = CaseSet(PreparedSplit(folder, "val"), with_pictures=per_crop)
    return FilmFlowData(train, val, int(record["feature_dim"]), features, record, folder, settings.source)


def window_condition(batch: Batch, features: FeatureSource) -> Callable[[Rectangle], ConditionBundle]:
    """Conditions of windows of a batch's pictures, under scope `crop`: a function of the window, for prediction.

    A window that reaches over a picture's edge (padding) is cut to the picture.
    """

    def condition(window: Rectangle) -> ConditionBundle:
        pictures, boxes = [], []
        for name, picture in zip(batch.ids, batch.pictures, strict=True):
            if picture is None:
                raise DataError(f"{name!r} has no picture for the encoder", remedy="read it from a CaseSet")
            part = picture[window.top : window.top + window.height, window.left : window.left + window.width]
            pictures.append(np.ascontiguousarray(part))
            boxes.append((window.top, window.left, part.shape[0], part.shape[1]))
        vectors, present = features.features(pictures, batch.prompts, batch.ids, boxes)
        return ConditionBundle(
            vec=torch.from_numpy(vectors), present=torch.from_numpy(present), source=features.settings.source
        )

    return condition
