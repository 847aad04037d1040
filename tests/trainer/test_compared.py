"""What a comparison tells of both checkpoints beside their metrics: the family's words, what training took."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stageline.cli import main
from stageline.config import parse_yaml
from stageline.families import parse_config
from stageline.verbs.compare import compare_evaluations
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.report import build_report


@pytest.fixture
def evaluated(train: Callable[..., Any], data: str, tmp_path: Path) -> Path:
    """Two runs of `tune`, whose data differ in how many rows are trained on; the second one's parent is the first's."""
    base = train("base", run="a", **{"trainer.max_steps": 1, "data.num_train": 20})
    for run, rows in (("a", 20), ("b", 10)):
        keys = {"trainer.max_steps": 2, "data.num_train": rows}
        tune = train("tune", run=run, parents={"default": str(base.reference)}, **keys)
        raw = parse_yaml((Path(tune.reference.uri) / "config.yaml").read_text(), "config")
        evaluate_checkpoint(parse_config({**raw, "root": str(tmp_path)}), str(tune.reference), data)
    return tmp_path


def test_both_are_told_with_ratios_and_what_their_stages_took(
    evaluated: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = compare_evaluations("a", "b", root=str(evaluated)).plain
    a, b = plain["a"], plain["b"]
    assert [side["about"] for side in (a, b)] == [{"stage": "tune", "rows": n, "speed": 8.0} for n in (20, 10)]
    assert (plain["ratios"]["rows"], plain["ratios"]["speed"]) == (0.5, 1.0)
    assert {stage: told["run"] for stage, told in b["training"].items()} == {"tune": "b", "base": "a"}
    assert {stage: told["steps"] for stage, told in a["training"].items()} == {"tune": 2, "base": 1}
    for told in [*a["training"].values(), *b["training"].values()]:
        assert told["step_seconds"] == pytest.approx(told["seconds"] / told["steps"])
        assert told["peak_memory_bytes"] > 10e6
    assert plain["ratios"]["base.seconds"] == 1.0
    assert a["unknown"] == b["unknown"] == []
    assert main(["compare", "a", "b", "--root", str(evaluated)]) == 0
    shown = capsys.readouterr().out
    page = Path(build_report(str(evaluated / "runs/a"))).read_text()
    for text in (shown, page):
        assert "rows to train on" in text
        assert "stage base: seconds per step" in text
    # A copied root is looked into first, and what is gone is said.
    copy = tmp_path_factory.mktemp("copied") / "root"
    shutil.copytree(evaluated, copy)
    shutil.rmtree(evaluated / "runs")
    whole = compare_evaluations("a", "b", root=str(copy)).plain
    assert whole["a"]["unknown"] == []
    shutil.rmtree(copy / "runs/a/base")
    less = compare_evaluations("a", "b", root=str(copy)).plain
    assert set(less["a"]["training"]) == {"tune"}
    assert less["a"]["about"] == whole["a"]["about"]
    (sentence,) = less["a"]["unknown"]
    assert sentence.startswith("training of stage base: ")
    assert sentence.endswith("is missing")
    assert less["metrics"] == whole["metrics"]
