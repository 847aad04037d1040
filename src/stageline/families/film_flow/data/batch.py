"""Samples and batches of film_flow: what the model, the losses and the metrics are given.

Legend: B samples, C channels; images in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stageline.errors import DataError
from stageline.families.film_flow.conditions.bundle import ConditionBundle
from stageline.families.film_flow.conditions.features import FeatureSource


@dataclass(frozen=True)
class Sample:
    """One sample.

    image: (C, h, w) in [-1, 1].  mask: (1, h, w) {0, 1}.  target: (1, h, w) flow target in [-1, 1].
    heat: (1, h, w) junction heat in [0, 1].  feature: (F,).  nodes: (N, 2) junctions of the picture inside the sample,
    row and column (evaluation only).  picture: (h, w, 3) uint8, what an encoder sees (scope `crop`, evaluation only).
    valid: (1, h, w) 1 where the picture is and 0 where it is padded (training only); None where it is everywhere.
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
    valid: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Batch:
    """Samples of one size.

    image: (B, C, H, W) in [-1, 1].  mask: (B, 1, H, W) {0, 1}.  target: (B, 1, H, W) in [-1, 1].
    heat: (B, 1, H, W) in [0, 1].  condition: features of the samples, None where the data hold none.
    nodes: per sample (N, 2), row and column; empty in training.  pictures: per sample, for encoders under scope `crop`.
    valid: (B, 1, H, W) {0, 1}, the pixels that count in the loss; None for all.
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
    valid: Tensor | None = None

    def to(self, device: Any, **kwargs: Any) -> Batch:
        """The batch with its tensors on another device."""
        condition = self.condition
        if condition is not None:
            vec, present = condition.vec.to(device, **kwargs), condition.present.to(device, **kwargs)
            condition = replace(condition, vec=vec, present=present)
        maps = {name: getattr(self, name).to(device, **kwargs) for name in ("image", "mask", "target", "heat")}
        valid = None if self.valid is None else self.valid.to(device, **kwargs)
        return replace(self, condition=condition, valid=valid, **maps)

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


def collate(samples: Sequence[Sample], source: str = "") -> Batch:
    """Samples of one size -> a batch. Raises DataError for pictures of different sizes."""
    sizes = sorted({sample.image.shape[1:] for sample in samples})
    if len(sizes) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sizes)
        raise DataError(
            f"a batch holds pictures of {len(sizes)} sizes: {shown}",
            remedy="make batches of equal sizes, as `stageline.data.batches` does for validation and evaluation",
        )

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))

    condition = None
    if samples[0].feature.size:
        present = torch.tensor([sample.present for sample in samples], dtype=torch.bool)
        condition = ConditionBundle(vec=stack("feature"), present=present, source=source)
    valid = None
    if any(sample.valid is not None for sample in samples):
        maps = [np.ones_like(sample.mask) if sample.valid is None else sample.valid for sample in samples]
        valid = torch.from_numpy(np.stack(maps))
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
        valid=valid,
    )


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
