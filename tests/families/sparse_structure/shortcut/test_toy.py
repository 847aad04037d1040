"""One step is nearly as good as many, on eight Gaussians: the benchmark's recipe at one seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.bench_shortcut_toy import RECIPE, RESULT, VARIANTS, measure_model, table, train

Found = dict[str, dict[str, float]]


def learned(name: str) -> Found:
    return measure_model(train(VARIANTS[name], seed=0), seed=0)


def test_the_page_has_the_figures_of_the_benchmark() -> None:
    results = json.loads(RESULT.read_text(encoding="utf-8"))
    page = Path(__file__).parents[4] / "docs" / "sparse_structure.md"
    assert table(results) in page.read_text(encoding="utf-8")
    assert set(results["variants"]) == set(VARIANTS)


@pytest.mark.slow
def test_one_step_of_objects_is_near_the_data_and_many_are_as_good_as_flow_matching() -> None:
    """Check 20: the recommended recipe, one seed; two stand in the benchmark."""
    plain, shortcut = learned("flow matching"), learned("ShortCut, objects")
    assert shortcut["1"]["distance"] <= 0.15
    assert shortcut["1"]["distance"] * 6 <= plain["1"]["distance"]
    assert shortcut["1"]["hit"] >= 0.65
    assert shortcut["4"]["hit"] >= 0.80
    assert shortcut["4"]["hit"] > plain["4"]["hit"]
    assert shortcut["128"]["distance"] <= 1.3 * plain["128"]["distance"]


@pytest.mark.slow
def test_one_step_of_scenes_is_near_the_data() -> None:
    """Check 21: all objects of an update share time and step."""
    assert VARIANTS["ShortCut, scenes"] == {**RECIPE, "batch_mode": True}
    found = learned("ShortCut, scenes")
    assert found["1"]["distance"] <= 0.20
    assert found["4"]["hit"] >= 0.70
