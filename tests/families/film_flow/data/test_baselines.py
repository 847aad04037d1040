"""The threshold and the ridge filter that a model is compared with: what they find, and what they are fitted to."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stageline.families.film_flow.config import FilmFlowConfig
from stageline.families.film_flow.measures.baselines import (
    BASELINES,
    BINS,
    HIGHEST,
    POLARITIES,
    SCALES,
    otsu_threshold,
    ridge_responses,
)
from stageline.families.film_flow.words import WORDS

from .conftest import make_data


def between_variance(values: np.ndarray[Any, Any], threshold: float) -> float:
    """Otsu's criterion, from its definition."""
    below, above = values[values <= threshold], values[values > threshold]
    if not len(below) or not len(above):
        return 0.0
    return float(len(below) * len(above) * (below.mean() - above.mean()) ** 2) / len(values) ** 2


@pytest.mark.parametrize("seed", range(6))
def test_otsu_is_the_best_of_all_thresholds(seed: int) -> None:
    """Against a search over every value, for 8 and 16 bits."""
    rng = np.random.default_rng(seed)
    dtype, top = (np.uint8, 255) if seed % 2 else (np.uint16, 65535)
    values = (np.concatenate([rng.beta(2, 9, 300), rng.beta(9, 3, 40 + 60 * seed)]) * top).astype(dtype)
    best = max(between_variance(values.astype(np.float64), level) for level in np.unique(values))
    found = otsu_threshold(values.reshape(-1, 4))
    assert between_variance(values.astype(np.float64), found) == pytest.approx(best, rel=1e-9)


def test_otsu_of_a_flat_picture_leaves_nothing_above() -> None:
    assert otsu_threshold(np.full((3, 4), 7, np.uint8)) == 7.0


@pytest.mark.parametrize("angle", [0.0, 30.0])
def test_the_ridge_filter_answers_as_a_gaussian_line_demands(angle: float) -> None:
    """A line with profile exp(-x^2 / 2 w^2) and scale s answer with s^2 w / (w^2 + s^2)^1.5 on the line, whatever its
    direction, and a dark line as a bright one."""
    width, (y, x) = 2.5, np.mgrid[-40:41, -40:41]
    across = x * math.cos(math.radians(angle)) + y * math.sin(math.radians(angle))
    line = np.exp(-(across**2) / (2 * width**2))
    expected = [scale**2 * width / (width**2 + scale**2) ** 1.5 for scale in SCALES]
    for place, (bright, dark) in enumerate(zip(ridge_responses(line), ridge_responses(-line), strict=True)):
        assert float(bright["bright"][40, 40]) == pytest.approx(max(expected[: place + 1]), rel=0.02)
        np.testing.assert_allclose(bright["bright"], dark["dark"], atol=1e-6)
        assert bright["bright"].max() < HIGHEST


def write_split(folder: Path, labels: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], *, dark: bool) -> None:
    """Two pictures of lines, and labels made from where the lines are."""
    y, x = np.mgrid[:40, :48]
    for number, slope in enumerate((0.3, -0.2)):
        near = np.exp(-((y - 20 - slope * (x - 24)) ** 2) / 8.0)
        noise = np.random.default_rng(number).normal(0, 6, near.shape)
        grey = 120 + (-70 if dark else 70) * near + noise
        for part, pixels in (("image", grey.clip(0, 255)), ("label", labels(near > 0.5) * 255)):
            path = folder / part / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def of_folders(make_config: Callable[..., FilmFlowConfig], tmp_path: Path) -> Callable[..., FilmFlowConfig]:
    """A config of folders below the test's own: training labels are right, `val` has those that are asked for."""

    def make(name: str, labels: Callable[..., Any] = lambda line: line, *, dark: bool = False) -> FilmFlowConfig:
        folder = tmp_path / name
        write_split(folder / "train", lambda line: line, dark=dark)
        write_split(folder / "val", labels, dark=dark)
        return make_config(
            *("model.use_vlm_film=false", "stages=[backbone]", "data.name=folder"),
            *(f"data.train_dir={folder}/train", f"data.val_dir={folder}/val"),
        )

    return make


def test_labels_of_the_evaluated_split_change_no_threshold(of_folders: Callable[..., FilmFlowConfig]) -> None:
    """Only the scores; of dark vessels as of bright ones both methods find most."""
    scores = {}
    for name, labels in (("right", lambda line: line), ("wrong", lambda line: ~line)):
        config = of_folders(name, labels)
        scores[name] = BASELINES.score(config, make_data(config))
    right, wrong = scores["right"], scores["wrong"]
    assert set(right) == set(WORDS.baselines) == {"otsu", "ridge"}
    for method in right:
        assert right[method].told == wrong[method].told
        assert right[method].metrics["dice"] > 0.75 > 0.2 > wrong[method].metrics["dice"]
        assert right[method].metrics.keys() <= set(WORDS.main_metrics)
        assert set(right[method].rows) == {"val/0", "val/1"}
    dark = BASELINES.score(config := of_folders("dark", dark=True), make_data(config))
    assert {scores.told["polarity"] for scores in dark.values()} == {"dark"} < set(POLARITIES)
    assert all(scores.metrics["dice"] > 0.75 for scores in dark.values())
    threshold = dark["ridge"].told["threshold"]
    assert threshold * BINS / HIGHEST == pytest.approx(round(threshold * BINS / HIGHEST))


def test_they_are_off_above_a_number_of_pixels(of_folders: Callable[..., FilmFlowConfig]) -> None:
    """Counted are pictures that are evaluated and fitted to, 4 of 40 x 48."""
    config = of_folders("some")
    data = make_data(config)
    for limit, said in ((7680, ""), (7679, "7,680 pixels are more than evaluate.baseline_pixels, 7,679")):
        evaluate = config.evaluate.model_copy(update={"baseline_pixels": limit})
        assert BASELINES.off(config.model_copy(update={"evaluate": evaluate}), data) == said
