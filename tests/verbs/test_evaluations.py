"""What an evaluation says when it is read again: numbers, none with a reason, the older schema; tables, artifacts."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from stageline.cli.tables import show_evaluation
from stageline.config import seal
from stageline.contract import Words
from stageline.errors import ConfigError, DataError
from stageline.families import parse_config, raw_preset
from stageline.pipeline.artifacts import log_metrics
from stageline.store import Store, open_store
from stageline.work.evaluations import (
    METRICS,
    NOT_FINITE,
    SCHEMA,
    EvaluationRecord,
    asked_checkpoints,
    find_evaluation,
    find_evaluations,
    joint_fingerprint,
    media_type,
    refuse_damaged,
)

CHECKPOINT = {"stage": "film", "step": 3, "uri": "u", "digest": "d"}


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def committed(run: Store, name: str = "e", **fields: Any) -> EvaluationRecord:
    rows = b"id\n1\n"
    plain = {
        "schema": SCHEMA,
        "metrics": {"dice": 0.5, "odd": None, "dice_off": 0.25, "count": 12.0},
        "reasons": {"odd": "there is one sample"},
        "num_samples": {"dice": 7},
        "provenance": {"labels": "exact"},
        "checkpoint": CHECKPOINT,
        "files": {"rows.csv": {"sha256": hashlib.sha256(rows).hexdigest(), "bytes": 5, "type": "text/csv"}},
        **fields,
    }
    store = run.child("evaluations", name)
    store.put("rows.csv", rows)
    store.put(METRICS, json.dumps(seal(plain)).encode())
    found = find_evaluation(run, name)
    assert found is not None
    return found


def test_no_value_has_a_reason(run: Store) -> None:
    found = committed(run)
    assert found.metrics == {"dice": 0.5, "odd": None, "dice_off": 0.25, "count": 12.0}
    assert found.reasons == {"odd": "there is one sample"}
    assert found.checkpoints == {"": CHECKPOINT}
    refuse_damaged(run, found)


def test_the_older_schema_is_read(run: Store) -> None:
    """Its files are name -> hash, and what was not finite stands there as a word."""
    sha256 = hashlib.sha256(b"id\n1\n").hexdigest()
    found = committed(
        run, schema="stageline-evaluation/1", metrics={"dice": "nan"}, reasons={}, files={"rows.csv": sha256}
    )
    assert (found.metrics, found.reasons) == ({"dice": None}, {"dice": NOT_FINITE})
    refuse_damaged(run, found)
    run.put("evaluations/e/rows.csv", b"other")
    with pytest.raises(DataError, match=r"rows\.csv: its hash differs"):
        refuse_damaged(run, found)


def test_a_schema_nobody_knows_is_refused(run: Store) -> None:
    with pytest.raises(DataError, match="is no evaluation"):
        committed(run, schema="stageline-evaluation/9")


def test_an_evaluation_that_is_not_finished_is_none_yet(run: Store) -> None:
    run.put("evaluations/half/rows/00000001.jsonl", b"{}\n")
    committed(run, "whole")
    assert find_evaluation(run, "half") is None
    assert [found.name for found in find_evaluations(run)] == ["whole"]


def test_main_metrics_come_first_and_the_rest_is_counted(run: Store, capsys: pytest.CaptureFixture[str]) -> None:
    words = Words(modes={"on": "switched on", "off": "switched off"}, main_metrics=("odd", "dice"))
    show_evaluation(committed(run), words, limit=2)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["metric", "switched", "on", "switched", "off", "samples"]
    assert lines[1] == ["odd", "none", "(there", "is", "one", "sample)"]
    assert lines[2] == ["dice", "0.5000", "0.2500", "7"]
    assert lines[3][:3] == ["1", "more", "in"]
    assert lines[4] == ["measured", "against", "exact"]
    show_evaluation(committed(run), Words())
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:5]]
    assert names == ["dice", "odd", "dice_off", "count"], "no modes are known of a family without words"


@pytest.mark.parametrize("value", [None, "nan", math.nan, math.inf])
def test_a_metric_without_a_value_is_said_and_not_logged(value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class Logged:
        """What log_metrics needs of an artifact of KFP."""

        metadata: dict[str, Any] = {}  # noqa: RUF012
        path = ""

        def __init__(self) -> None:
            self.values: dict[str, float] = {}

        def log_metric(self, metric: str, value: float) -> None:
            self.values[metric] = value

    artifact = Logged()
    log_metrics(artifact, {"metrics": {"bad": value, "good": 2}})
    assert artifact.values == {"good": 2.0}
    assert capsys.readouterr().out == f"metric bad has no value ({value}): not logged\n"


def test_names_of_checkpoints_count_and_where_they_lie_does_not(tmp_path: Path) -> None:
    raw = raw_preset("film_flow", "tiny")
    plain = parse_config(raw, [f"root={tmp_path}"])
    named = parse_config(raw, [f"root={tmp_path}", "evaluate.checkpoints={old: backbone, new: /elsewhere/film}"])
    assert asked_checkpoints(plain) == {}
    assert asked_checkpoints(named) == {"old": "backbone", "new": "/elsewhere/film"}
    one = joint_fingerprint(plain, {"": ("c", {"a": 1})}, "data")
    assert one == joint_fingerprint(named, {"": ("c", {"a": 1})}, "data")
    both = {"old": ("c", {"a": 1}), "new": ("d", {"a": 1})}
    swapped = {"old": ("d", {"a": 1}), "new": ("c", {"a": 1})}
    assert len({one, *(joint_fingerprint(named, each, "data") for each in (both, swapped))}) == 3
    with pytest.raises(ConfigError, match="and not 'rows'"):
        parse_config(raw, ["evaluate.checkpoints={rows: backbone}"])


def test_files_are_named_with_their_media_type() -> None:
    assert [media_type(name) for name in ("a/b.PNG", "clip.mp4", "c")] == [
        "image/png",
        "video/mp4",
        "application/octet-stream",
    ]
