"""Two trivial segmentations to compare a model with: a threshold and a ridge filter, both fitted to training pictures.

Otsu's threshold (IEEE Trans. SMC 9, 1979) splits the grey levels of each picture in two; which half is vessel is what
fits the training labels better. The ridge filter takes the largest eigenvalue of the Hessian over several scales (Sato
et al., Medical Image Analysis 2, 1998); sign, scales and threshold are those with the best Dice over the training
pixels. Neither knows of prompts. Colour pictures are seen by their green channel, which shows vessels best. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stageline.data.baselines import Baselines, BaselineScores
from stageline.families.film_flow.data.pictures import normalise
from stageline.families.film_flow.data.prepared import PreparedSplit
from stageline.families.film_flow.measures.metrics import case_metrics, pool_metrics
from stageline.families.film_flow.words import WORDS

if TYPE_CHECKING:
    from stageline.data.prepared import PreparedData
    from stageline.families.film_flow.config import FilmFlowConfig

TRAIN = "train"
TRAIN_PICTURES = 32
"""At most so many training pictures are fitted to, evenly spread: two numbers and a sign need no more."""
SCALES = (1.0, 1.5, 2.0, 3.0, 4.5)
"""Standard deviations in pixels; the filter takes the largest response of the first n of them."""
BINS, HIGHEST = 400, 1.0
"""Thresholds that are tried lie evenly in [0, HIGHEST); a step of the picture's whole range answers with less."""
POLARITIES = ("bright", "dark")

Plane = NDArray[Any]
Truth = tuple[slice, slice, NDArray[np.uint8]]
"""Rows and columns of a case in its picture, and its mask there."""


def otsu_threshold(values: NDArray[Any]) -> float:
    """The value t that separates `values <= t` from the others with the largest variance between both.

    values: any shape, at least one. All equal: that value. Of several t as good the least.
    """
    levels, counts = np.unique(values, return_counts=True)
    if len(levels) == 1:
        return float(levels[0])
    share = np.cumsum(counts)[:-1] / counts.sum()
    total = np.cumsum(counts * levels.astype(np.float64))
    below = total[:-1] / np.cumsum(counts)[:-1]
    above = (total[-1] - total[:-1]) / np.cumsum(counts[::-1])[::-1][1:]
    return float(levels[np.argmax(share * (1 - share) * (below - above) ** 2)])


def ridge_responses(plane: Plane) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Strength of bright and of dark ridges at every pixel, over the first scale, the first two, and so on.

    plane: (H, W) in [-1, 1]. The eigenvalue is multiplied by the scale's square, so that scales compare.
    """
    grey = plane.astype(np.float32)
    best = dict.fromkeys(POLARITIES, np.zeros(grey.shape, np.float32))
    for scale in SCALES:
        rows, columns, both = (
            ndimage.gaussian_filter(grey, scale, order=order, mode="nearest") for order in ((2, 0), (0, 2), (1, 1))
        )
        middle, half = (rows + columns) / 2, np.hypot((rows - columns) / 2, both)
        signed = {"bright": half - middle, "dark": half + middle}
        best = {name: np.maximum(best[name], np.float32(scale**2) * signed[name]) for name in POLARITIES}
        yield best


@dataclass(frozen=True)
class Fit:
    """What training pictures decide, and the Dice over their pixels.

    polarity: of the vessels.  scales: how many of SCALES; 0 for the threshold of each picture's own.  threshold: of the
    filter's strength.
    """

    polarity: str
    dice: float
    scales: int = 0
    threshold: float = 0.0


class _Pictures:
    """The pictures of a split, one channel each, with the cases that belong to them. numbers: which."""

    def __init__(self, split: PreparedSplit, numbers: range | list[int]) -> None:
        self.split, self.numbers = split, numbers

    @property
    def num_pixels(self) -> int:
        """Of all of them."""
        return sum(height * width for height, width in map(self.split.shape, self.numbers))

    def channel(self, image: int) -> Plane:
        """(H, W) pixels as they are: the green channel of three, else the first."""
        pixels = self.split.pixels(image)
        plane: Plane = pixels[..., 1 if pixels.shape[2] == 3 else 0]
        return plane

    def plane(self, image: int) -> Plane:
        """(H, W) of the same in [-1, 1], as the network sees it."""
        plane: Plane = normalise(self.channel(image)[..., None], *self.split.levels(image))[0]
        return plane

    def truths(self, image: int) -> Iterator[tuple[str, Truth]]:
        """(id, truth) of the cases of a picture."""
        height, width = self.split.shape(image)
        for number in self.split.cases.of(image):
            case = self.split.cases[number]
            top, left, rows, columns = case.box or (0, 0, height, width)
            yield case.id, (slice(top, top + rows), slice(left, left + columns), self.split.mask(case, case.box))


def _training(data: PreparedData) -> _Pictures:
    split = PreparedSplit(data.split(TRAIN))
    count = split.num_images
    some = min(count, TRAIN_PICTURES)
    return _Pictures(split, [place * count // some for place in range(some)])


def _evaluated(config: FilmFlowConfig, data: PreparedData) -> _Pictures:
    split = PreparedSplit(data.split(config.evaluate.split))
    return _Pictures(split, range(split.num_images))


def fit_otsu(pictures: _Pictures) -> Fit:
    """Whether vessels are above or below the threshold of their picture; bright where both fit as well."""
    hits = dict.fromkeys(POLARITIES, 0)
    sizes = dict.fromkeys(POLARITIES, 0)
    for image in pictures.numbers:
        grey = pictures.channel(image)
        bright = grey > otsu_threshold(grey)
        for name, mask in zip(POLARITIES, (bright, ~bright), strict=True):
            for _, (rows, columns, truth) in pictures.truths(image):
                part = mask[rows, columns]
                hits[name] += int((part & (truth != 0)).sum())
                sizes[name] += int(part.sum()) + int(truth.sum())
    scores = {name: 2 * hits[name] / sizes[name] if sizes[name] else 1.0 for name in POLARITIES}
    best = max(POLARITIES, key=scores.__getitem__)
    return Fit(best, scores[best])


def fit_ridge(pictures: _Pictures) -> Fit:
    """Sign, number of scales and threshold with the best Dice over all pixels; the first of those as good."""
    edges = np.linspace(0.0, HIGHEST, BINS + 1)
    vessel = np.zeros((len(SCALES), len(POLARITIES), BINS), dtype=np.int64)
    ground = np.zeros_like(vessel)
    for image in pictures.numbers:
        truths = [truth for _, truth in pictures.truths(image)]
        for place, best in enumerate(ridge_responses(pictures.plane(image))):
            for sign, name in enumerate(POLARITIES):
                bins = np.minimum((best[name] / HIGHEST * BINS).astype(np.int64), BINS - 1)
                for rows, columns, truth in truths:
                    part, is_vessel = bins[rows, columns], truth != 0
                    vessel[place, sign] += np.bincount(part[is_vessel], minlength=BINS)
                    ground[place, sign] += np.bincount(part[~is_vessel], minlength=BINS)
    # From bin b on everything is vessel: counts at and above each bin.
    found, wrong = (np.cumsum(count[..., ::-1], axis=-1)[..., ::-1] for count in (vessel, ground))
    dice = 2 * found / np.maximum(1, found + wrong + vessel.sum(axis=-1, keepdims=True))
    at = np.unravel_index(int(np.argmax(dice)), dice.shape)
    return Fit(POLARITIES[at[1]], float(dice[at]), int(at[0]) + 1, float(edges[at[2]]))


def _scores(pictures: _Pictures, masks: Mapping[int, Plane], degree_threshold: int, told: Fit) -> BaselineScores:
    """Scores of masks (H, W), one for each picture."""
    found: dict[str, dict[str, float]] = {}
    for image in pictures.numbers:
        for name, (rows, columns, truth) in pictures.truths(image):
            found[name] = case_metrics(masks[image][rows, columns], truth, degree_threshold=degree_threshold)
    main = WORDS.main_metrics
    pooled = pool_metrics(list(found.values()))
    rows_told = {name: {key: scores[key] for key in main if key in scores} for name, scores in found.items()}
    fitted = {"polarity": told.polarity, "dice_of_training_pixels": told.dice}
    if told.scales:
        fitted |= {"scales_pixels": list(SCALES[: told.scales]), "threshold": told.threshold}
    return BaselineScores({key: pooled[key] for key in main if key in pooled}, rows_told, fitted)


def _ridge_mask(plane: Plane, fit: Fit) -> NDArray[np.bool_]:
    best = next(b for place, b in enumerate(ridge_responses(plane), 1) if place == fit.scales)
    return np.asarray(best[fit.polarity] >= np.float32(fit.threshold))


def score(config: FilmFlowConfig, data: PreparedData) -> dict[str, BaselineScores]:
    """Both methods on every case of the evaluated split."""
    training, pictures = _training(data), _evaluated(config, data)
    degree = config.model.junction_gating_config.degree_threshold
    otsu, ridge = fit_otsu(training), fit_ridge(training)
    by_level = {}
    for image in pictures.numbers:
        grey = pictures.channel(image)
        bright = grey > otsu_threshold(grey)
        by_level[image] = bright if otsu.polarity == "bright" else ~bright
    by_ridge = {image: _ridge_mask(pictures.plane(image), ridge) for image in pictures.numbers}
    return {
        "otsu": _scores(pictures, by_level, degree, otsu),
        "ridge": _scores(pictures, by_ridge, degree, ridge),
    }


def off(config: FilmFlowConfig, data: PreparedData) -> str:
    """Why there are no such scores: too many pixels, or nothing to fit to."""
    limit = config.evaluate.baseline_pixels
    if limit == 0:
        return "evaluate.baseline_pixels is 0"
    if TRAIN not in data:
        return "the prepared data have no training split, which they are fitted to"
    count = _training(data).num_pixels + _evaluated(config, data).num_pixels
    return f"{count:,} pixels are more than evaluate.baseline_pixels, {limit:,}" if count > limit else ""


BASELINES = Baselines(
    version=1,
    splits=lambda config: (TRAIN, config.evaluate.split),
    settings=lambda config: {
        "split": config.evaluate.split,
        "degree_threshold": config.model.junction_gating_config.degree_threshold,
    },
    score=score,
    off=off,
)
