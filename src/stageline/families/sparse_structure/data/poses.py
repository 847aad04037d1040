"""Poses of objects as the network sees them: rotation in six numbers, translation, log scale, and their statistics.

A point p of the canonical cube [-0.5, 0.5]^3 lies in the scene at R (s * p) + t, with s one factor per axis (metres)
and t in metres. The network's modalities, one token each (public ss_generator):

    6drotation_normalized  first two columns of R, one after the other          (6,)
    translation            t / exp(translation_scale)                           (3,)
    scale                  natural logarithm of s                               (3,)
    translation_scale      natural logarithm of the scene's extent in metres    (1,)

each standardised per component by mean and deviation over the objects of the training split. Six numbers for a
rotation: Zhou et al. (2019), arXiv:1812.07035. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stageline.errors import DataError

ROTATION, TRANSLATION, SCALE, TRANSLATION_SCALE = MODALITIES = (
    "6drotation_normalized",
    "translation",
    "scale",
    "translation_scale",
)
SHAPE = "shape"
WIDTHS: Mapping[str, int] = dict(zip(MODALITIES, (6, 3, 3, 1), strict=True))
"""Components of each pose modality."""
LEAST_DEVIATION = 1e-4
"""Components that deviate less are constant (upright objects have no third part of a rotation): they are shifted and
not stretched."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Poses:
    """Where the objects of a scene are.

    rotation: (N, 3, 3) proper.  translation: (N, 3) metres.  scale: (N, 3) metres, positive.
    """

    rotation: Array
    translation: Array
    scale: Array

    def __len__(self) -> int:
        return len(self.rotation)

    def place(self, points: Array) -> Array:
        """Canonical points in the scene. points: (N, P, 3) -> (N, P, 3) metres."""
        scaled = points * self.scale[:, None]
        placed: Array = np.einsum("nij,npj->npi", self.rotation, scaled) + self.translation[:, None]
        return placed


def rotation_to_6d(rotation: Array) -> Array:
    """First two columns of rotation matrices. rotation: (..., 3, 3) -> (..., 6)."""
    columns: Array = np.swapaxes(rotation[..., :, :2], -1, -2)
    return columns.reshape(*rotation.shape[:-2], 6)


def rotation_from_6d(numbers: Array) -> Array:
    """The rotation nearest in the sense of Gram-Schmidt. numbers: (..., 6), two columns -> (..., 3, 3)."""
    first, second = numbers[..., :3], numbers[..., 3:]
    x = first / np.linalg.norm(first, axis=-1, keepdims=True)
    rest = second - (x * second).sum(-1, keepdims=True) * x
    y = rest / np.linalg.norm(rest, axis=-1, keepdims=True)
    return np.stack([x, y, np.cross(x, y)], axis=-1)


def yaw_rotation(angle_rad: float | Array) -> Array:
    """Turns about the vertical axis z, anticlockwise from above. angle_rad: (...) -> (..., 3, 3)."""
    angle = np.asarray(angle_rad, dtype=np.float64)
    cos, sin, zero = np.cos(angle), np.sin(angle), np.zeros_like(angle)
    rows = [[cos, -sin, zero], [sin, cos, zero], [zero, zero, zero + 1]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def encode_poses(poses: Poses) -> dict[str, Array]:
    """Modality -> (N, width) float32, not yet standardised."""
    extent = max(float(np.abs(poses.translation).max()), float(poses.scale.max()))
    numbers = {
        ROTATION: rotation_to_6d(poses.rotation),
        TRANSLATION: poses.translation / extent,
        SCALE: np.log(poses.scale),
        TRANSLATION_SCALE: np.full((len(poses), 1), np.log(extent)),
    }
    return {name: np.asarray(value, dtype=np.float32) for name, value in numbers.items()}


def decode_poses(numbers: Mapping[str, Array]) -> Poses:
    """Back from modalities that are not standardised any more. numbers: modality -> (N, width)."""
    wide = {name: np.asarray(numbers[name], dtype=np.float64) for name in MODALITIES}
    return Poses(
        rotation_from_6d(wide[ROTATION]), wide[TRANSLATION] * np.exp(wide[TRANSLATION_SCALE]), np.exp(wide[SCALE])
    )


@dataclass(frozen=True)
class PoseStatistics:
    """Mean and deviation of each component over the objects of a training split.

    mean, deviation: modality -> one number per component; deviation is positive.
    """

    mean: Mapping[str, tuple[float, ...]]
    deviation: Mapping[str, tuple[float, ...]]

    @classmethod
    def of(cls, scenes: Iterable[Mapping[str, Array]]) -> PoseStatistics:
        """Over all objects of scenes, each modality -> (N, width); one scene in memory at a time.

        DataError without any object.
        """
        count, sums = 0, np.zeros((2, sum(WIDTHS.values())))
        shift: Array | None = None
        for scene in scenes:
            rows = np.concatenate([np.asarray(scene[name], dtype=np.float64) for name in MODALITIES], axis=1)
            shift = rows[0] if shift is None else shift  # sums of squares about it keep their digits
            count += len(rows)
            sums += [(rows - shift).sum(0), ((rows - shift) ** 2).sum(0)]
        if shift is None or count == 0:
            raise DataError("no objects to take the statistics of poses over", remedy="give scenes with objects")
        mean = sums[0] / count
        deviation = np.sqrt(np.maximum(sums[1] / count - mean**2, 0))
        return cls.from_array(np.stack([mean + shift, np.where(deviation < LEAST_DEVIATION, 1.0, deviation)]))

    @classmethod
    def from_array(cls, numbers: Array) -> PoseStatistics:
        """Back from `to_array`."""
        ends = np.cumsum(list(WIDTHS.values()))
        parts = [
            {name: tuple(map(float, row[end - WIDTHS[name] : end])) for name, end in zip(WIDTHS, ends, strict=True)}
            for row in numbers
        ]
        return cls(*parts)

    def to_array(self) -> Array:
        """(2, 13) float64: means and deviations, modalities in the order of `MODALITIES`."""
        parts = (self.mean, self.deviation)
        return np.array([[number for name in MODALITIES for number in part[name]] for part in parts])

    def to_json(self) -> dict[str, dict[str, list[float]]]:
        """As it stands in a split's facts."""
        return {name: {"mean": list(self.mean[name]), "deviation": list(self.deviation[name])} for name in MODALITIES}

    @classmethod
    def from_json(cls, plain: Any) -> PoseStatistics:
        """Back from `to_json`; DataError for anything else."""
        try:
            numbers = np.array(
                [[n for name in MODALITIES for n in plain[name][part]] for part in ("mean", "deviation")]
            )
            wide = numbers.shape == (2, sum(WIDTHS.values())) and bool(np.isfinite(numbers).all())
            fits = wide and bool(numbers[1].min() > 0)
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise DataError(
                f"statistics of poses are no means and positive deviations of 13 components: {plain!r:.200}",
                remedy="prepare the training split again",
            )
        return cls.from_array(numbers)

    def standardise(self, numbers: Mapping[str, Array]) -> dict[str, Array]:
        """As the network sees poses. numbers: modality -> (N, width) -> (N, width) float32."""
        return {
            name: np.asarray((numbers[name] - np.array(self.mean[name])) / np.array(self.deviation[name]), np.float32)
            for name in MODALITIES
        }

    def restore(self, numbers: Mapping[str, Array]) -> dict[str, Array]:
        """The inverse of `standardise`. numbers: modality -> (N, width) -> (N, width) float64."""
        return {
            name: np.asarray(numbers[name], np.float64) * np.array(self.deviation[name]) + np.array(self.mean[name])
            for name in MODALITIES
        }
