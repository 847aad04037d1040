"""Prepared data as the loop reads them: training crops by (epoch, index), whole cases by index, and batches of both.

A sample is a function of (seed, epoch, index) and the prepared files: equal alone or in order, in any process. Where
the condition belongs to the picture (`vlm_scope: image`) every crop, window and flip of it has the same feature.
Legend: B samples, C channels; images in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from stageline.data.prepared import PreparedData
from stageline.data.rng import numpy_rng
from stageline.errors import ConfigError
from stageline.families.film_flow.conditions.encoder import encoder_settings
from stageline.families.film_flow.conditions.features import FeatureSource
from stageline.families.film_flow.data.augmentation import Box, Transform, draw_transform
from stageline.families.film_flow.data.batch import Batch, Sample, collate, window_condition
from stageline.families.film_flow.data.pictures import encoder_picture, normalise
from stageline.families.film_flow.data.preparation import is_per_crop, open_features, open_split
from stageline.families.film_flow.data.prepared import Case, PreparedSplit
from stageline.families.film_flow.data.windows import Padding

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
    "window_condition",
]

SampleKey = tuple[int, int]


class TrainSet(Dataset[Sample]):
    """Random crops of the training pictures; an epoch has `num_samples_per_image` of each.

    A picture with several prompts gets them in turn: two epochs in a row show it under two prompts. One smaller than a
    crop is padded as everywhere (`windows.Padding`), with label 0, and counts in the loss where it is.
    features: asks the encoder for every crop (scope `crop`), None where features are prepared.
    """

    def __init__(self, split: PreparedSplit, config: FilmFlowConfig, features: FeatureSource | None) -> None:
        self.split = split
        self.seed = config.seed
        self.crop_size = config.data.image_size
        self.flips = config.data.flips
        self.num_samples_per_image = config.data.num_samples_per_image
        self.features = features

    def __len__(self) -> int:
        return self.split.num_images * self.num_samples_per_image

    def __getitem__(self, item: SampleKey) -> Sample:
        """The sample of (epoch, index)."""
        epoch, index = item
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        image = index % self.split.num_images
        numbers = self.split.cases.of(image)
        turn = int(numpy_rng("prompt", self.seed, index).integers(len(numbers)))
        number = numbers[(turn + epoch) % len(numbers)]
        case = self.split.cases[number]
        height, width = self.split.shape(image)
        shape = (max(height, self.crop_size), max(width, self.crop_size))
        transform = draw_transform(self.seed, epoch, index, shape, self.crop_size, flips=self.flips)
        top, left, rows, columns = transform.box
        box, levels = (top, left, min(rows, height - top), min(columns, width - left)), self.split.levels(image)
        padding = Padding(*box[2:], divisor=1, least=self.crop_size)
        pixels = self.split.pixels(image, box)
        if self.features is None:
            feature, present = self.split.feature(number)
        else:
            # The crop as it lies in the picture: flips change the sample, not what is known of it.
            picture = encoder_picture(pixels, *levels)
            vectors, there = self.features.features([picture], [case.prompt], [case.id], [box])
            feature, present = vectors[0], bool(there[0])
        return Sample(
            id=case.id,
            prompt=case.prompt,
            image=transform.orient(padding.grow(torch.from_numpy(normalise(pixels, *levels))).numpy()),
            mask=transform.orient(self._padded(self.split.mask(case, box).astype(np.float32), 0))[None],
            target=transform.orient(self._padded(self.split.target(case, box), -1))[None],
            heat=transform.orient(self._padded(self.split.heat(image, box), 0))[None],
            feature=feature,
            present=present,
            valid=self._valid(transform, box),
        )

    def _padded(self, array: NDArray[np.float32], value: float) -> NDArray[np.float32]:
        """A map (h, w) grown to a crop by a value."""
        missing = [(0, self.crop_size - side) for side in array.shape]
        return np.pad(array, missing, constant_values=value) if any(after for _, after in missing) else array

    def _valid(self, transform: Transform, box: Box) -> NDArray[np.float32] | None:
        """Where a crop (1, h, w) shows the picture; None where that is everywhere. box: of the picture's own part."""
        if box == transform.box:
            return None
        return transform.orient(self._padded(np.ones(box[2:], np.float32), 0))[None]


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

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of a case in pixels: of its box, or else of its whole picture."""
        case = self.split.cases[index]
        return case.box[2:] if case.box else self.split.shape(case.image)

    def __getitem__(self, index: int) -> Sample:
        """The sample of a case."""
        case = self.split.cases[index]
        levels = self.split.levels(case.image)
        pixels = self.split.pixels(case.image, case.box)
        feature, present = self.split.feature(index)
        return Sample(
            id=case.id,
            prompt=case.prompt,
            image=normalise(pixels, *levels),
            mask=self.split.mask(case, case.box).astype(np.float32)[None],
            target=self.split.target(case, case.box)[None],
            heat=self.split.heat(case.image, case.box)[None],
            feature=feature,
            present=present,
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


class FilmFlowData:
    """The sets of prepared data for a config; each is opened when it is first asked for.

    features: for conditions that are not prepared (crops, windows, new pictures); loads its encoder only when asked.
    source: what a condition is made from.
    """

    def __init__(self, config: FilmFlowConfig, data: PreparedData) -> None:
        settings = encoder_settings(config)
        self.config, self.data = config, data
        self.per_crop = is_per_crop(settings)
        self.features = open_features(config)
        self.source = settings.source
        if self.per_crop and settings.cache_only:
            raise ConfigError(
                "vlm_scope 'crop' asks the encoder for every random crop of training, which cache_only forbids",
                remedy="set model.vlm_scope: image, or model.vlm_film_config.cache_only: false",
            )

    @cached_property
    def train_set(self) -> TrainSet:
        """Random crops. Hardly any of them comes twice, so features of their own are not kept."""
        features = FeatureSource(self.features.settings) if self.per_crop else None
        return TrainSet(open_split(self.config, self.data, "train"), self.config, features)

    @cached_property
    def val_set(self) -> CaseSet:
        """The cases of `val`."""
        return CaseSet(open_split(self.config, self.data, "val"), with_pictures=self.per_crop)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples -> batch."""
        return collate(samples, self.source)

    def case_set(self, split: str) -> CaseSet:
        """The cases of `val`, `test` or (for a look) `train`. Raises DataError for a split that was not prepared."""
        if split == "val":
            return self.val_set
        return CaseSet(open_split(self.config, self.data, split), with_pictures=self.per_crop)


def open_data(config: FilmFlowConfig, data: PreparedData) -> FilmFlowData:
    """Prepared data for a stage's config. DataError, when a set is asked for, where it was made for another config."""
    return FilmFlowData(config, data)
