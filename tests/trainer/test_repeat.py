"""Rows of an evaluation made again: which evaluation is meant, with its own settings, wherever its root lies now."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stageline.config import parse_yaml, seal
from stageline.data.tables import csv_rows
from stageline.errors import CheckpointError, DataError, PlanError
from stageline.families import parse_config
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.repeat import repeat_rows
from stageline.work.evaluations import EvaluationRecord


@dataclass
class Evaluated:
    """A checkpoint of the toy family below a root, and its evaluations."""

    root: Path
    uri: str
    data: str

    def evaluate(self, *overrides: str, named: dict[str, str] | None = None) -> EvaluationRecord:
        raw = parse_yaml((Path(self.uri) / "config.yaml").read_text(), "config")
        config = parse_config({**raw, "root": str(self.root)}, overrides)
        return evaluate_checkpoint(config, named or self.uri, self.data)

    def repeat(self, *overrides: str, row: str = "3", evaluation: str | None = None) -> dict[str, Any]:
        (found,) = repeat_rows(self.uri, [row], overrides, evaluation=evaluation, target=self.root / "out")
        return found


@pytest.fixture
def made(train: Callable[..., Any], data: str, tmp_path: Path) -> Evaluated:
    return Evaluated(tmp_path, train(**{"trainer.max_steps": 2}).reference.uri, data)


def error_of(record: EvaluationRecord, row: str = "3", checkpoint: str = "") -> float:
    rows = csv_rows((Path(record.reference.uri) / "rows.csv").read_text())
    return next(float(r["error"]) for r in rows if r["id"] == row and r.get("checkpoint", "") == checkpoint)


def test_a_row_comes_from_the_settings_of_its_own_evaluation(made: Evaluated) -> None:
    """Not from those of the checkpoint's config; where two evaluations have the row, one is named."""
    raw = made.evaluate("evaluate.weights=raw", "data.num_test=8")
    found = made.repeat()
    assert (found["error"], found["differs"]) == (error_of(raw), [])
    assert made.repeat(row="7")["error"] == error_of(raw, "7"), "more rows than the config of the checkpoint asks for"
    ema = made.evaluate("evaluate.weights=ema")
    assert error_of(raw) != error_of(ema)
    with pytest.raises(PlanError) as refused:
        made.repeat()
    assert f"{raw.reference.uri}: weights raw" in str(refused.value)
    assert f"{ema.reference.uri}: weights (default)" in str(refused.value)
    for record in (raw, ema):
        assert made.repeat(evaluation=record.reference.uri)["error"] == error_of(record)
    other = made.repeat("evaluate.weights=ema", evaluation=raw.name)
    assert (other["error"], other["differs"]) == (error_of(ema), ["error"])
    assert made.repeat(row="7")["evaluation"] == raw.reference.uri, "the only one that has it"


def test_unknown_rows_and_evaluations_are_refused(made: Evaluated, train: Callable[..., Any]) -> None:
    with pytest.raises(PlanError, match="is an evaluation of"):
        made.repeat()
    record = made.evaluate()
    with pytest.raises(DataError, match=r"(?s)its 5 ids.*") as refused:
        repeat_rows(made.uri, ["33", "0", "x"], target=made.root / "out")
    assert "no row '33'; near are '3'" in str(refused.value)
    assert "no row 'x'; near are '0', '1'" in str(refused.value)
    other = Evaluated(made.root, train(run="other", **{"trainer.max_steps": 3}).reference.uri, made.data)
    with pytest.raises(CheckpointError, match="is an evaluation of"):
        other.repeat(evaluation=record.reference.uri)


def test_one_of_several_checkpoints_is_repeated(made: Evaluated, train: Callable[..., Any]) -> None:
    other = train(run="other", **{"trainer.max_steps": 3}).reference.uri
    record = made.evaluate(named={"one": other, "two": made.uri})
    assert made.repeat()["error"] == error_of(record, checkpoint="two") != error_of(record, checkpoint="one")
    assert repeat_rows(other, ["3"], evaluation=f"{record.reference.uri}#one", target=made.root / "out")[0][
        "error"
    ] == error_of(record, checkpoint="one")


def test_an_evaluation_that_notes_no_config_is_repeated_below_a_root_that_moved(made: Evaluated) -> None:
    record = made.evaluate("evaluate.weights=raw")
    path = Path(record.reference.uri) / "metrics.json"
    plain = {key: value for key, value in record.plain.items() if key not in ("config", "seal")}
    path.write_text(json.dumps(seal(plain)))
    value = error_of(record)
    moved = made.root / "moved"
    shutil.move(made.root / "runs", moved / "runs")
    found = Evaluated(moved, str(moved / Path(made.uri).relative_to(made.root)), made.data).repeat()
    assert (found["error"], found["differs"]) == (value, [])
