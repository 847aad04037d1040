"""The demo of scenes: its config is one, and its closing table says what rows and metrics say."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from stageline.families import family_config, parse_config, raw_preset
from stageline.stage import stage_config

ROOT = Path(__file__).parents[4]


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    return script(ROOT / "scripts" / "demo_scenes.py")


def test_the_table_of_longer_trainings_is_that_of_their_figures() -> None:
    bench = script(ROOT / "benchmarks" / "bench_scenes.py")
    results = json.loads(bench.RESULT.read_text())
    assert list(results["seeds"]) == [str(seed) for seed in bench.SEEDS]
    assert all(list(found) == list(bench.VARIANTS) for found in results["seeds"].values())
    assert bench.table(results) in (ROOT / "docs" / "sparse_structure.md").read_text()


def test_every_stage_of_the_demo_has_a_config(demo: ModuleType) -> None:
    settings = demo.SETTINGS[2:]
    config, family = parse_config(raw_preset("sparse_structure", "demo"), settings), family_config("sparse_structure")
    stages = {stage.name: stage_config(config, stage) for stage in family.selected(config)}
    assert list(stages) == ["shape_vae", "sparse_flow", "global_flow"]
    for stage in family.selected(config):
        family.check(stages[stage.name], stage)
    assert set(demo.MODES) <= set(family.words.modes)
    assert config.evaluate.steps[-1] == demo.MOST


def test_its_table_has_every_mode_with_an_interval_over_rooms(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "evaluations" / "one"
    folder.mkdir(parents=True)
    modes = {mode: place / 10 for place, mode in enumerate(demo.MODES)}
    rows = [
        {"id": name, "mode": mode, "agreement": value, "interpenetration": 0.5, "facing_error": "", "iou_vae": 0.9}
        for mode, value in modes.items()
        for name in ("a", "b", "c")
    ]
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    names = ("distance", "distance_floor", *(f"distance_{mode}" for mode in demo.MODES))
    across = {"agreement_across": 0.375, **{f"agreement_across_{mode}": 0.375 for mode in demo.MODES}}
    record = {"metrics": dict.fromkeys(names, 0.125) | across, "provenance": {"scenes": 3, "objects": 9, "styles": 3}}
    (folder / "metrics.json").write_text(json.dumps(record))
    demo.print_scores(tmp_path)
    shown = capsys.readouterr().out
    for value in modes.values():
        assert f"{value:.3f} ({value:.3f} to {value:.3f})" in shown
    assert "3 rooms, 9 objects; pairs of one style by chance: 0.33" in shown
    assert shown.count("0.1250") == shown.count(" 0.375 ") == len(modes)
    assert "overlap 0.900 (0.900 to 0.900)" in shown
