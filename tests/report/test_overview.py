"""What a report tells first: the result with its interval, what the conditions do beyond noise, time, each sample."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stageline.cli.tables import show_evaluation
from stageline.config import seal
from stageline.data.tables import csv_rows
from stageline.families.film_flow.words import WORDS
from stageline.store import Reference, Store, open_store
from stageline.verbs.compare.samples import estimate
from stageline.work.evaluations import BASELINES_SCHEMA, EvaluationRecord

from .page import Page, report_of
from .run_directory import HandMade, png, training_events


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "runs" / "trees"))


def evaluated(store: Store, effect: float, *, samples: int = 24, noise: float = 0.02, **fields: Any) -> Page:
    """The report of a run whose FiLM adds `effect` to Dice on average, with some noise from sample to sample."""
    draw = np.random.default_rng(5)
    run = HandMade(store)
    run.claim()
    run.checkpoint("backbone", 80, 80, timing={"seconds": 60.0})
    run.checkpoint("film", 250, 250, timing={"seconds": 125.0}, environment={"device": "cpu", "ranks": 2})
    off = [0.5 + 0.3 * draw.random() for _ in range(samples)]
    on = [value + effect + noise * (draw.random() - 0.5) for value in off]
    checkpoint = {"stage": "film", "step": 250, "uri": f"{store.uri}/film/checkpoints/step-00000250"}
    metrics = {"dice_off": sum(off) / samples, "dice": sum(on) / samples}  # the usual mode need not stand first
    run.evaluation(metrics=metrics, checkpoint=checkpoint, num_samples={"dice": samples}, **fields)
    rows = "id,prompt,mode,dice\r\n" + "".join(
        f"s{n},dark,{mode},{value}\r\n" for n in range(samples) for mode, value in (("on", on[n]), ("off", off[n]))
    )
    store.put(f"evaluations/{'a' * 64}/rows.csv", rows.encode())
    page, _ = report_of(store)
    return page


def test_an_effect_is_told_with_its_interval(store: Store) -> None:
    page = evaluated(store, 0.1)
    name, difference, interval = page.row("FiLM off")
    assert (name, difference) == ("FiLM off", "+0.100")
    low, high = (float(word) for word in interval.split(" to "))
    assert 0.09 < low <= 0.1 <= high < 0.11
    assert "No effect beyond noise" not in page.text


def test_no_effect_is_called_none(store: Store) -> None:
    page = evaluated(store, 0.0)
    low, high = (float(word) for word in page.row("FiLM off")[2].split(" to "))
    assert low <= 0 <= high
    assert "No effect beyond noise is shown." in page.text


def test_one_sample_shows_nothing(store: Store) -> None:
    page = evaluated(store, 0.1, samples=1)
    assert page.row("FiLM off")[2] == "one sample shows nothing"
    assert "beyond noise" not in page.text


def test_one_sample_is_no_claim_about_noise(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """It shows neither a gain nor that there is none, in the report and on the terminal."""
    page = beside(store, 0.4, samples=1)
    assert "beyond noise" not in page.text
    assert "Better than the model" not in page.text
    show_evaluation(evaluation_of(store), WORDS, limit=10)
    said = [line for line in capsys.readouterr().out.splitlines() if "shows nothing" in line]
    assert [line.split(" (")[0] for line in said] == ["effect against FiLM off", "gain against Otsu threshold"]


def test_the_interval_holds_the_mean_and_narrows_with_samples() -> None:
    draw = np.random.default_rng(0)
    widths = []
    for count in (10, 1000):
        found = estimate(list(draw.random(count)))
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.mean < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 4


def test_training_time_is_told_stage_by_stage_with_what_it_ran_on(store: Store) -> None:
    page = evaluated(store, 0.1)
    assert "3 min 05 s" in page.text
    assert "backbone 1 min 00 s, film 2 min 05 s" in page.text
    assert "2 ranks on cpu" in page.text


def test_a_metric_that_is_no_mean_of_rows_has_no_interval(store: Store) -> None:
    """A pooled metric is another number than the mean of its samples."""
    page = evaluated(store, 0.1)
    assert "(95 % interval)" in page.text
    metrics = {"dice": 0.123, "dice_off": 0.1}
    HandMade(store).evaluation(metrics=metrics, num_samples={"dice": 24})
    rows = "id,prompt,mode,dice\r\ns0,dark,on,0.5\r\ns1,dark,on,0.6\r\n"
    store.put(f"evaluations/{'a' * 64}/rows.csv", rows.encode())
    page, _ = report_of(store)
    assert "(95 % interval)" not in page.text


def test_samples_stand_best_first_and_pictures_say_which_is_best_median_and_worst(store: Store) -> None:
    page = evaluated(store, 0.1, samples=5)
    ids = [row[0] for row in page.cells if re.fullmatch(r"s\d", row[0])]
    values = [float(row[1]) for row in page.cells if re.fullmatch(r"s\d", row[0])]
    assert sorted(ids) == ["s0", "s1", "s2", "s3", "s4"]
    assert values == sorted(values, reverse=True)
    for n in range(5):
        store.put(f"evaluations/{'a' * 64}/sample-{n:03d}.png", png(8, 8))
    page, _ = report_of(store)
    for place, name in (("best", ids[0]), ("median", ids[2]), ("worst", ids[4])):
        assert f"{name}, prompt 'dark', {place}" in page.text


def test_evaluations_that_read_alike_tell_in_what_they_differ(store: Store) -> None:
    run = HandMade(store)
    run.claim()
    checkpoint = {"stage": "film", "step": 250, "uri": "film"}
    for name, nfe in (("a" * 64, 4), ("b" * 64, 16)):
        run.evaluation(name, checkpoint=checkpoint, provenance={"film_mode": "on", "nfe": nfe, "solver": "euler"})
    page, _ = report_of(store)
    assert "film at step 250 (FiLM on): nfe 4" in page.text
    assert "film at step 250 (FiLM on): nfe 16" in page.text
    assert "solver euler, nfe" not in page.text, "what is equal tells nothing"


def test_a_value_recorded_once_is_a_number_and_no_chart(store: Store) -> None:
    run = HandMade(store)
    run.claim()
    once = {"time": 1.0, "event": "validation", "step": 40, "metrics": {"dice": 0.625}}
    run.events("film", [*training_events(0.0, 40), once])
    page, text = report_of(store)
    assert page.row("dice") == ["dice", "0.625", "40"]
    assert 'aria-label="film: validation (dice).' not in text


def test_a_failed_stage_tells_its_step(store: Store) -> None:
    run = HandMade(store)
    run.claim()
    run.events("film", training_events(0.0, 30))
    failure = {"kind": "TrainingError", "sentence": "the loss is not finite", "remedy": "smaller", "exit_code": 1}
    run.json("film/failure.json", failure)
    page, _ = report_of(store)
    assert "failed after step 30, before its first checkpoint" in page.text


def beside(store: Store, gain: float, *, samples: int = 24) -> Page:
    """The report of a run whose Dice is better by `gain` than a threshold's, in every sample a little differently."""
    evaluated(store, 0.0, samples=samples)
    own = [row for row in csv_rows(store.get(f"evaluations/{'a' * 64}/rows.csv").decode()) if row["mode"] == "on"]
    draw = np.random.default_rng(1)
    rows = {row["id"]: {"dice": float(row["dice"]) - gain - 0.1 * (draw.random() - 0.5)} for row in own}
    mean = sum(row["dice"] for row in rows.values()) / samples
    scores = {"otsu": {"metrics": {"dice": mean}, "rows": rows, "told": {"polarity": "dark"}}}
    put_baselines(store, baselines=scores)
    return report_of(store)[0]


def evaluation_of(store: Store) -> EvaluationRecord:
    folder = f"evaluations/{'a' * 64}"
    plain = json.loads(store.get(f"{folder}/metrics.json"))
    return EvaluationRecord(Reference(store.child(*folder.split("/")).uri, "0" * 64), plain)


def put_baselines(store: Store, **fields: Any) -> None:
    plain = seal({"schema": BASELINES_SCHEMA, "family": "film_flow", **fields})
    store.put(f"evaluations/{'a' * 64}/baselines.json", json.dumps(plain).encode())


def test_a_gain_over_a_trivial_method_is_told_with_its_interval(store: Store) -> None:
    """In a card, a column of the metrics and one of the samples; how it was made stands with the provenance."""
    page = beside(store, 0.2)
    _, value, difference, interval = page.row("Otsu threshold")
    low, high = (float(word) for word in interval.split(" to "))
    assert low < 0.2 < high
    assert low <= float(difference) <= high
    assert "No gain beyond noise" not in page.text
    metrics = page.row("dice")
    assert len(metrics) == 6, "metric, FiLM on, its interval, FiLM off, threshold, samples"
    assert metrics[4] == value
    assert re.fullmatch(r"0\.\d{3} to 0\.\d{3}", metrics[2])
    assert "dice of Otsu threshold" in page.text
    assert '"polarity": "dark"' in page.text


def test_no_gain_over_a_trivial_method_is_called_none_and_a_loss_a_loss(store: Store) -> None:
    assert "No gain beyond noise over: Otsu threshold." in beside(store, 0.0).text
    assert "Better than the model: Otsu threshold." in beside(store, -0.2).text


@pytest.mark.parametrize("field", ["off", "failed"])
def test_trivial_methods_that_were_not_scored_say_why(store: Store, field: str) -> None:
    evaluated(store, 0.1)
    put_baselines(store, **{field: "9 pixels are too many"})
    assert "Trivial methods were not measured: 9 pixels are too many." in report_of(store)[0].text


def test_a_record_of_trivial_methods_that_was_changed_is_a_line_of_the_report(store: Store) -> None:
    evaluated(store, 0.1)
    store.put(f"evaluations/{'a' * 64}/baselines.json", b"{}")
    assert "is no record of baselines" in report_of(store)[0].text


def test_the_end_of_a_run_says_the_same(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """The table on the terminal: interval and method as columns, and a sentence where a difference may be noise."""
    beside(store, 0.0)
    show_evaluation(evaluation_of(store), WORDS, limit=10)
    head, row, *said = capsys.readouterr().out.splitlines()
    assert re.split(r" {2,}", head) == ["metric", "FiLM on", "95 % interval", "FiLM off", "Otsu threshold", "samples"]
    assert re.search(r"^dice +0\.\d{3} +0\.\d{3} to 0\.\d{3} +0\.\d{3} +0\.\d{3} +24", row)
    assert [line.split(" (")[0] for line in said] == [
        "no effect beyond noise against FiLM off",
        "no gain beyond noise against Otsu threshold",
    ]
