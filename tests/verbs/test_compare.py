"""Comparing two evaluations: what the intervals promise, what is refused, where the result lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stageline.cli import main
from stageline.config import is_sealed, seal
from stageline.contract import Words
from stageline.errors import ConfigError, DataError, PlanError, StagelineError
from stageline.store import open_store
from stageline.store.references import decode, encode
from stageline.verbs.compare import (
    NO_DIFFERENCE,
    Bootstrap,
    ComparisonRecord,
    compare_evaluations,
    difference_of,
)
from stageline.verbs.evaluate.rows import rows_to_csv
from stageline.verbs.report import build_report
from stageline.work.evaluations import METRICS, SCHEMA

Rows = list[dict[str, Any]]
CONTENT = {"a": "a" * 64, "b": "b" * 64}


class Runs:
    """A root with runs of one evaluation each, made by hand."""

    def __init__(self, root: Path) -> None:
        self.root = open_store(str(root))

    def evaluation(self, run: str, rows: Rows, name: str = "", **fields: Any) -> str:
        """Commit an evaluation and give its URI. fields: of metrics.json."""
        base = self.root.child("runs", run)
        base.put("run.json", json.dumps({"run": run, "family": "film_flow"}).encode())
        name = name or hashlib.sha256(run.encode()).hexdigest()
        store, table = base.child("evaluations", name), rows_to_csv(rows)
        checkpoint = {"run": run, "stage": "film", "step": 9, "uri": run, "digest": "d", "content": CONTENT[run[0]]}
        plain = {
            "schema": SCHEMA,
            "family": "film_flow",
            "metrics": {metric: 0.0 for metric in rows[0] if metric not in ("id", "mode", "note")},
            "num_samples": {},
            "provenance": {},
            "checkpoint": checkpoint,
            "checkpoints": {"": checkpoint},
            "data": {"uri": "", "digest": run, "inputs": "0" * 64},
            "settings": {"split": "val"},
            "files": {
                "rows.csv": {"sha256": hashlib.sha256(table).hexdigest(), "bytes": len(table), "type": "text/csv"}
            },
            **fields,
        }
        store.put("rows.csv", table)
        store.put(METRICS, json.dumps(seal(plain)).encode())
        return store.uri

    def compare(self, a: str, b: str, **keys: Any) -> ComparisonRecord:
        return compare_evaluations(a, b, root=self.root.uri, **keys)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def some_rows(shift: float = 0.0, count: int = 40, seed: int = 0) -> Rows:
    """Paired rows in two modes; `shift` is added to what all evaluations share."""
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(1).normal(0.5, 0.2, (2, count))
    values = shared + shift + rng.normal(0, 0.02, (2, count))
    return [
        {
            "id": f"s{n:02d}",
            "mode": mode,
            "dice": float(values[m, n]),
            "note": "text",
            "cldice": float(values[m, n] / 2),
        }
        for n in range(count)
        for m, mode in enumerate(("on", "off"))
    ]


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    """400 data sets of 60 pairs whose true mean difference is 0.3: 95 % +- 3 of the intervals hold it."""
    rng, held = np.random.default_rng(0), 0
    for trial in range(400):
        shared = rng.normal(0, 1.0, 60)
        gaps = rng.gamma(2.0, 0.5, 60) - 1.0 + 0.3  # skewed, of mean 0.3
        low, high = Bootstrap(resamples=500, seed=trial).interval((shared + gaps) - shared)
        held += low <= 0.3 <= high
    assert 0.92 <= held / 400 <= 0.98


def test_pairing_takes_out_what_samples_share() -> None:
    """Samples differ by 1, evaluations by 0.1: unpaired, nothing would show."""
    rng = np.random.default_rng(0)
    a = rng.normal(0, 1, 50)
    both = np.stack([a, a + 0.1 + rng.normal(0, 0.05, 50)], axis=1)
    found = difference_of("dice", "", both, Bootstrap(), Words(higher_is_better=frozenset({"dice"})))
    assert found.verdict == "B is better"
    assert found.low is not None
    assert found.high is not None
    assert 0.05 < found.low < 0.1 < found.high < 0.15


def test_the_other_way_round_is_the_negative(runs: Runs) -> None:
    runs.evaluation("a", some_rows(0.0))
    runs.evaluation("b", some_rows(0.03, seed=5))
    there, back = runs.compare("a", "b").differences, runs.compare("b", "a").differences
    assert len(there) == 4
    for one, other in zip(there, back, strict=True):
        assert (one.metric, one.mode, one.rows) == (other.metric, other.mode, other.rows)
        assert (one.a, one.b, one.difference) == (other.b, other.a, -other.difference)
        assert (one.low, one.high) == pytest.approx((-(other.high or 0), -(other.low or 0)), abs=1e-12)
        assert {one.verdict, other.verdict} == {"A is better", "B is better"}


def test_the_usual_mode_stands_before_its_controls(runs: Runs) -> None:
    """Rows of the mode that was asked for name none; rows lie sorted by sample, in any order of modes."""
    named = {"off": "shuffled", "on": ""}
    for run, shift in (("a", 0.0), ("b", 0.1)):
        rows = [{**row, "mode": named[row["mode"]]} for row in reversed(some_rows(shift))]
        runs.evaluation(run, rows, family="panorama_vlm")
    assert [found.mode for found in runs.compare("a", "b").differences] == ["", "", "shuffled", "shuffled"]


def test_a_comparison_is_the_same_each_time_and_lies_below_the_first_run(runs: Runs) -> None:
    runs.evaluation("a", some_rows(0.0))
    runs.evaluation("b", some_rows(0.0, seed=5))
    first, again = runs.compare("a", "b"), runs.compare("a", "b")
    assert (first.uri, first.plain) == (again.uri, again.plain)
    assert first.uri.startswith(f"{runs.root.uri}/runs/a/comparisons/")
    plain = json.loads(Path(first.uri).read_text())
    assert is_sealed(plain)
    assert plain["metrics"] == [asdict(found) for found in first.differences]
    assert {(found.metric, found.mode) for found in first.differences} == {
        (metric, mode) for metric in ("dice", "cldice") for mode in ("on", "off")
    }
    assert all(found.verdict == NO_DIFFERENCE for found in first.differences), "only noise differs"
    assert runs.compare("a", "b", bootstrap=Bootstrap(seed=1)).uri != first.uri


def test_rows_without_a_number_are_left_out_of_a_metric_alone(runs: Runs) -> None:
    rows = some_rows(0.1)
    rows[0]["dice"] = None
    runs.evaluation("a", rows)
    runs.evaluation("b", some_rows(0.0, seed=5))
    counts = {(found.metric, found.mode): found.rows for found in runs.compare("a", "b").differences}
    assert counts == {("dice", "on"): 39, ("dice", "off"): 40, ("cldice", "on"): 40, ("cldice", "off"): 40}


def test_one_sample_shows_nothing(runs: Runs) -> None:
    runs.evaluation("a", some_rows(0.5, count=1))
    runs.evaluation("b", some_rows(0.0, count=1))
    assert {(f.low, f.verdict) for f in runs.compare("a", "b").differences} == {(None, "one sample shows nothing")}


def same_evaluation(runs: Runs) -> tuple[str, str]:
    return (uri := runs.evaluation("a", some_rows())), uri


def same_weights(runs: Runs) -> tuple[str, str]:
    return runs.evaluation("a", some_rows()), runs.evaluation("a2", some_rows(0.1))


def other_data(runs: Runs) -> tuple[str, str]:
    data = {"uri": "", "digest": "a", "inputs": "1" * 64}
    return runs.evaluation("a", some_rows()), runs.evaluation("b", some_rows(0.1), data=data)


def other_samples(runs: Runs) -> tuple[str, str]:
    return runs.evaluation("a", some_rows()), runs.evaluation("b", some_rows(0.1)[:-3])


def nothing_shared(runs: Runs) -> tuple[str, str]:
    metrics = {"loss": 0.0}
    return runs.evaluation("a", some_rows()), runs.evaluation("b", some_rows(0.1), metrics=metrics)


def another_digest(runs: Runs) -> tuple[str, str]:
    return f"{runs.evaluation('a', some_rows())}@sha256:{'0' * 64}", runs.evaluation("b", some_rows(0.1))


def two_evaluations(runs: Runs) -> tuple[str, str]:
    runs.evaluation("a", some_rows(), "1" * 64)
    runs.evaluation("a", some_rows(), "2" * 64)
    return "a", runs.evaluation("b", some_rows(0.1))


@pytest.mark.parametrize(
    ("make", "error", "part"),
    [
        (same_evaluation, PlanError, "they are one evaluation"),
        (same_weights, PlanError, "the same weights"),
        (other_data, DataError, "their data differ: 000000000000"),
        (other_samples, DataError, r"has no row s38 off, s39 off, s39 on"),
        (nothing_shared, DataError, "no metric in common"),
        (another_digest, PlanError, "another evaluation than the one named"),
        (two_evaluations, PlanError, "has 2 evaluations"),
        (lambda _runs: ("nobody", "a"), PlanError, "no evaluation 'nobody'"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(
    runs: Runs, make: Callable[[Runs], tuple[str, str]], error: type[StagelineError], part: str
) -> None:
    a, b = make(runs)
    with pytest.raises(error, match=part):
        runs.compare(a, b)
    assert not list(Path(runs.root.uri).rglob("comparison.json"))


def test_other_weights_with_equal_rows_show_no_difference(runs: Runs) -> None:
    """Two checkpoints may both be right everywhere: that is a result, no mistake."""
    made = runs.compare(runs.evaluation("a", some_rows()), runs.evaluation("b", some_rows()))
    assert made.differences
    for found in made.differences:
        assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)


def test_rounding_is_no_difference(runs: Runs) -> None:
    """Sums in another order differ in their last digits; an interval of such gaps excludes 0 and shows nothing."""
    made = runs.compare(runs.evaluation("a", some_rows()), runs.evaluation("b", some_rows(1e-13)))
    assert {found.verdict for found in made.differences} == {"no difference shown"}


def test_what_both_have_is_compared_where_it_is_asked_for(runs: Runs) -> None:
    a, b = other_samples(runs)
    made = runs.compare(a, b, intersect=True)
    assert made.plain["left_out"] == {"a": 3, "b": 0}
    assert {found.rows for found in made.differences} == {39, 38}


def test_a_mode_that_only_one_has_is_left_out(runs: Runs) -> None:
    a = runs.evaluation("a", some_rows())
    made = runs.compare(a, runs.evaluation("b", [row for row in some_rows(0.1) if row["mode"] == "on"]))
    assert made.plain["left_out"] == {"a": 40, "b": 0}
    assert {found.mode for found in made.differences} == {"on"}


def test_one_checkpoint_of_several_is_named(runs: Runs) -> None:
    rows = [
        {"checkpoint": name, **row} for name, s in (("old", 0.0), ("new", 0.2)) for row in some_rows(s, seed=int(9 * s))
    ]
    told = {n: {"run": "a", "stage": "film", "step": 1, "content": c} for n, c in (("old", "1"), ("new", "2"))}
    metrics = {f"{name}.dice": 0.0 for name in told}
    uri = runs.evaluation("a", rows, checkpoints=told, metrics=metrics)
    with pytest.raises(PlanError, match="of 2 checkpoints"):
        runs.compare(uri, f"{uri}#new")
    found = {f.mode: f for f in runs.compare(f"{uri}#old", f"{uri}#new").differences}
    assert found["on"].difference == pytest.approx(0.2, abs=0.02)
    assert {f.verdict for f in found.values()} == {"B is better"}


def test_settings_of_the_bootstrap_are_checked() -> None:
    with pytest.raises(ConfigError, match="at least 100"):
        Bootstrap(resamples=10, level=2.0)


def test_the_command_shows_a_table_and_the_report_has_a_section(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.evaluation("a", some_rows(0.0))
    runs.evaluation("b", some_rows(0.1, seed=5))
    assert main(["compare", "a", "b", "--root", runs.root.uri, "--resamples", "200"]) == 0
    shown = capsys.readouterr().out
    assert "B is better" in shown
    assert "95% interval, paired bootstrap, 200 draws" in shown
    page = Path(build_report(f"{runs.root.uri}/runs/a")).read_text()
    assert "B is better" in page
    assert "a paired bootstrap over samples" in page
    assert main(["compare", "a", "a", "--root", runs.root.uri]) == PlanError.exit_code
    assert "they are one evaluation" in capsys.readouterr().err


def test_a_checkpoint_that_is_gone_is_said_and_its_metrics_are_compared(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.evaluation("a", some_rows(0.0))
    runs.evaluation("b", some_rows(0.1, seed=5))
    assert main(["compare", "a", "b", "--root", runs.root.uri]) == 0
    shown = capsys.readouterr().out
    assert "not known of A: " in shown
    assert "B is better" in shown


def test_the_component_of_pipelines_leaves_the_comparison_and_returns_where(runs: Runs, tmp_path: Path) -> None:
    """Its body is what KFP runs; the other evaluation is named by its run."""
    steps = pytest.importorskip("stageline_components.steps")
    a = runs.evaluation("a", some_rows(0.0))
    runs.evaluation("b", some_rows(0.1, seed=5))
    shown = SimpleNamespace(path=str(tmp_path / "shown.json"), metadata={})
    config = f"family: film_flow\nroot: {runs.root.uri}\nrun: a\n"
    given = {"family": "film_flow", "config": config, "launcher": "local"}
    digest = hashlib.sha256((Path(a) / METRICS).read_bytes()).hexdigest()
    reference = encode(f"{a}@sha256:{digest}")
    (where,) = steps.compare.python_func(comparison=shown, evaluation=reference, other="b", **given)
    assert json.loads(Path(decode(where)).read_text()) == json.loads(Path(shown.path).read_text())
    assert (shown.metadata["metrics"], shown.metadata["differences"]) == (4, 4)
    events = [json.loads(line) for line in (Path(runs.root.uri) / "runs/a/events.jsonl").read_text().splitlines()]
    assert [(event["item"], event["state"]) for event in events if event["event"] == "step"] == [("compare", "done")]
