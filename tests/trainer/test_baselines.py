"""Scores of trivial methods beside an evaluation: kept by data, never a reason for an evaluation to fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stageline.config import parse_yaml
from stageline.contract import Baselines
from stageline.errors import DataError, InterruptedRunError
from stageline.families import parse_config
from stageline.store import open_store
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.work.evaluations import EvaluationRecord, find_baselines


@pytest.fixture
def evaluated(
    train: Callable[..., Any], data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., EvaluationRecord]:
    """evaluated(run, baselines, overrides): the evaluation of a stage that was trained for a step.

    baselines: what the toy family has in their place.
    """
    from toy_family import family

    own = family.FAMILY.baselines

    def call(run: str, change: Callable[[Baselines], Baselines] = lambda own: own, *keys: str) -> EvaluationRecord:
        monkeypatch.setattr(family, "FAMILY", replace(family.FAMILY, baselines=change(own)))
        made = train("base", run=run, **{"trainer.max_steps": 1})
        raw = parse_yaml((Path(made.reference.uri) / "config.yaml").read_text(), "config")
        return evaluate_checkpoint(parse_config({**raw, "root": str(tmp_path)}, keys), str(made.reference), data)

    return call


def beside(record: EvaluationRecord) -> dict[str, Any]:
    return find_baselines(open_store(record.reference.uri))


def test_they_are_made_once_for_the_same_data(evaluated: Callable[..., EvaluationRecord], tmp_path: Path) -> None:
    """Another run, another checkpoint: read, not made; other settings of theirs, another version: made anew."""
    calls = []

    def counted(own: Baselines, **changes: Any) -> Baselines:
        def score(config: Any, data: Any) -> Any:
            calls.append(config.run)
            return own.score(config, data)

        return replace(own, score=score, **changes)

    first, again = evaluated("a", counted), evaluated("b", counted, "trainer.learning_rate=0.5")
    assert calls == ["a"]
    found = beside(first)
    assert found == beside(again)
    (mean,) = found["baselines"].values()
    assert set(mean["rows"]) == {"0", "1", "2", "3", "4"}
    assert mean["metrics"]["error"] == pytest.approx(sum(row["error"] for row in mean["rows"].values()) / 5)
    assert first.name not in (path.stem for path in (tmp_path / "cache/baselines").iterdir())
    evaluated("c", counted, "data.num_test=4")
    newer = evaluated("a", lambda own: counted(own, version=2))
    assert (newer.reused, beside(newer)["version"]) == (True, 2)
    assert calls == ["a", "c", "a"]


def test_one_that_fails_is_told_and_the_evaluation_stands(
    evaluated: Callable[..., EvaluationRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(own: Baselines) -> Baselines:
        def score(config: Any, data: Any) -> Any:
            raise ZeroDivisionError("nothing to count")

        return replace(own, score=score)

    record = evaluated("a", fails)
    assert record.metrics["error"] is not None
    assert beside(record)["failed"] == "ZeroDivisionError: nothing to count"
    assert "evaluate: no baselines: ZeroDivisionError" in capsys.readouterr().err
    mended = evaluated("a")
    assert mended.reused
    assert "baselines" in beside(mended), "asked again, they are made"


def test_one_that_is_off_says_why(evaluated: Callable[..., EvaluationRecord]) -> None:
    record = evaluated("a", lambda own: replace(own, off=lambda _config, _data: "there are too many"))
    assert beside(record)["off"] == "there are too many"


def test_a_stop_is_no_failure_of_theirs(evaluated: Callable[..., EvaluationRecord]) -> None:
    def stopped(own: Baselines) -> Baselines:
        def score(config: Any, data: Any) -> Any:
            raise InterruptedRunError("stopped by SIGTERM", remedy="run again")

        return replace(own, score=score)

    with pytest.raises(InterruptedRunError):
        evaluated("a", stopped)
    assert evaluated("a").reused


def test_a_record_that_was_changed_is_refused(evaluated: Callable[..., EvaluationRecord]) -> None:
    record = evaluated("a")
    store = open_store(record.reference.uri)
    store.put("baselines.json", json.dumps({**beside(record), "version": 7}).encode())
    with pytest.raises(DataError, match="changed after it was written"):
        find_baselines(store)
