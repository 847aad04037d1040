"""The offline condition encoder: hand-made descriptions of picture and prompt through a fixed random projection.

No weights, no network, the same numbers in any process. Used by small runs and by everything that is tested.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stageline.data.rng import numpy_rng
from stageline.errors import ConfigError
from stageline.families.film_flow.conditions.encoder import (
    EncoderSettings,
    Features,
    Picture,
    check_lengths,
    make_features,
    round_feature,
)

HISTOGRAM_BINS = 32
ORIENTATION_BINS = 8
ORIENTATION_SIGMAS = (1.0, 2.0, 4.0)
TEXT_BINS = 512
NGRAMS = (1, 2, 3, 4)


class StubEncoder:
    """A deterministic encoder without weights or network, for tests and small runs.

    Image: 32-bin histogram, 8 gradient orientations at 3 scales, mean, deviation and skewness. Text: hashed character
    n-grams. Both through a fixed seeded random projection to `feature_dim` numbers of about unit size.
    """

    resize = "none"

    def __init__(self, settings: EncoderSettings) -> None:
        if settings.source == "probe":
            raise ConfigError("the encoder 'stub' answers no questions (cond_source 'probe')", remedy="use qwen-vl")
        self.settings = settings
        self._projections: dict[str, NDArray[np.float64]] = {}

    def encode(self, pictures: Sequence[Picture], prompts: Sequence[str], ids: Sequence[str]) -> Features:
        check_lengths(pictures, prompts, ids)
        vectors = []
        for picture, prompt, name in zip(pictures, prompts, ids, strict=True):
            parts = []
            if "image" in self.settings.source:
                parts.append(self._project("image", describe_picture(picture)))
            if "text" in self.settings.source:
                parts.append(self._project("text", describe_text(prompt)))
            vectors.append(round_feature(np.concatenate(parts), self.settings, name))
        return make_features(vectors, [True] * len(ids), self.settings)

    def _project(self, part: str, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        if part not in self._projections:
            shape = (len(numbers), self.settings.feature_dim)
            self._projections[part] = numpy_rng("stub projection", part, *shape).standard_normal(shape)
        return np.asarray(numbers @ self._projections[part])


def describe_picture(picture: Picture) -> NDArray[np.float64]:
    """Hand-made description of a picture (H, W, 3) uint8: (59,) numbers, each group of length 1 or less."""
    from scipy import ndimage

    grey = picture.astype(np.float64).mean(axis=2) / 255
    histogram, _ = np.histogram(grey, bins=HISTOGRAM_BINS, range=(0, 1))
    groups = [np.sqrt(histogram / histogram.sum())]
    for sigma in ORIENTATION_SIGMAS:
        down = ndimage.gaussian_filter1d(ndimage.gaussian_filter1d(grey, sigma, axis=0, order=1), sigma, axis=1)
        across = ndimage.gaussian_filter1d(ndimage.gaussian_filter1d(grey, sigma, axis=1, order=1), sigma, axis=0)
        angle, size = np.arctan2(down, across), np.hypot(down, across)
        bins, _ = np.histogram(angle, bins=ORIENTATION_BINS, range=(-np.pi, np.pi), weights=size)
        groups.append(np.sqrt(bins / bins.sum()) if bins.sum() > 0 else np.zeros(ORIENTATION_BINS))
    deviation = grey.std()
    skewness = ((grey - grey.mean()) ** 3).mean() / deviation**3 if deviation > 1e-9 else 0.0
    groups.append(np.array([grey.mean(), deviation, np.tanh(skewness)]))
    return np.asarray(np.concatenate(groups) / np.sqrt(len(groups)))


def describe_text(prompt: str) -> NDArray[np.float64]:
    """Hashed character n-grams of a prompt, (512,) of length 1; the empty prompt is zero. Case counts for nothing."""
    text = f"\x02{prompt.strip().lower()}\x03"
    counts = np.zeros(TEXT_BINS)
    if len(text) > 2:
        for size in NGRAMS:
            for start in range(len(text) - size + 1):
                counts[zlib.crc32(text[start : start + size].encode()) % TEXT_BINS] += 1
    length = np.linalg.norm(counts)
    return np.asarray(counts / length if length else counts)
