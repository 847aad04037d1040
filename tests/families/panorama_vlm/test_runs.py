"""Runs through the verbs: broken input, evaluations and their comparison."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import run_ranks
from runs import small, trained

from stageline.checkpoint.layout import CheckpointRef
from stageline.data.prepared import PreparedData
from stageline.data.tables import csv_rows
from stageline.errors import ConfigError, DataError, StagelineError
from stageline.families import load_config
from stageline.families.panorama_vlm import evaluate as module
from stageline.families.panorama_vlm.config import STAGES, PanoramaVlmConfig
from stageline.families.panorama_vlm.data.made import draw_room, make_room
from stageline.families.panorama_vlm.data.sets import collate_questions
from stageline.families.panorama_vlm.guide_results import copy_evaluation, repeat_metrics
from stageline.families.panorama_vlm.model.assembly import build_tokenizer
from stageline.families.panorama_vlm.predictions import PREDICTIONS, Answers
from stageline.families.panorama_vlm.task import build_task
from stageline.stage import stage_config
from stageline.verbs.compare.comparison import compare_evaluations
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.prepare import prepare_data

SHORT = "trainer.max_steps=2"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def compared(root: Path) -> dict[str, Any]:
    """Finished evaluations of a run with overlap and one without."""
    found = {}
    for run, overlap in (("with", "0.5"), ("without", "0")):
        config = small(root, SHORT, f"image_processing.overlap_ratio={overlap}", "stages=[resampler]", run=run)
        ref = trained(config, "resampler")["resampler"]
        found[run] = (ref, evaluate_checkpoint(config, str(ref.uri), str(prepare_data(config).reference)))
    return found


def table(evaluation: Any) -> list[dict[str, str]]:
    text = next(Path(evaluation.reference.uri.removeprefix("file://")).rglob("predictions.csv")).read_text(
        encoding="utf-8"
    )
    return list(csv.DictReader(io.StringIO(text)))


def pictures(folder: Path, count: int) -> list[str]:
    names = []
    for number in range(count):
        names.append(f"room-{number}.png")
        Image.fromarray(draw_room(make_room("train", number, 0))).save(folder / names[-1])
    return names


def rows_of(path: Path, lines: list[tuple[str, str, str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "image", "query", "response"))
        writer.writerows(lines)
    return path


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, Any]:
    """Sixteen good rows about four pictures, and one row of each of seven kinds of fault."""
    names = pictures(tmp_path, 4)
    whole = (tmp_path / names[0]).read_bytes()
    Image.new("RGB", (64, 64)).save(tmp_path / "square.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_bytes(b"no picture")
    good = [(f"good-{k}", names[k % 4], f"What is at {k}?", f"Answer {k}.") for k in range(16)]
    bad = [
        *[(f"bad-{k}", name, "What?", "This.") for k, name in enumerate(("gone.png", "cut.png", "square.png"))],
        *[(f"bad-{k}", name, "What?", "This.") for k, name in enumerate(("empty.png", "text.png"), start=3)],
        *[("bad-5", names[1], "", "This."), ("bad-6", names[1], "What?", "")],
    ]
    lines = [row for pair in zip(bad, good[: len(bad)], strict=True) for row in pair] + good[len(bad) :]
    path = str(rows_of(tmp_path / "rows.csv", lines))
    return {"name": "csv", "csv_train": [path], "csv_val": [path], "csv_test": [path], "max_bad_fraction": 0.5}


def test_broken_rows_are_set_aside_and_nobody_gets_their_picture(tmp_path: Path, broken: dict[str, Any]) -> None:
    """Check 16: classes, rows and counts; each id keeps the hash of its own picture."""
    prepared = PreparedData(prepare_data(small(tmp_path / "root", data=broken)))
    split, files = prepared.split("train"), prepared.split("train-pictures")
    pictures_only = ["missing", "truncated", "not_equirectangular", "empty", "not_an_image"]
    expected = {"train": [*pictures_only, "empty_query", "empty_response"], "train-pictures": pictures_only}
    for name, kinds in expected.items():
        listed = csv_rows((tmp_path / f"root/runs/small/quarantine/{name}.csv").read_text())
        assert [(row["row"], row["class"]) for row in listed] == [
            (str(2 * k + 1), kind) for k, kind in enumerate(kinds)
        ]
        assert listed[2]["file"] == str(tmp_path / "square.png")
        assert all(row["message"] for row in listed)
    assert split.facts["quarantined"] == 7
    assert split.facts["rows_read"] == 23
    assert len(split) == 16
    for number in range(len(split)):
        fields = split.fields(number)
        picture = files.fields(int(split.numbers("picture")[number]))
        own = hashlib.sha256((tmp_path / fields["image"]).read_bytes()).hexdigest()
        assert picture["sha256"] == own, fields["id"]
        assert fields["response"] == f"Answer {fields['id'].removeprefix('good-')}."


@pytest.mark.parametrize("change", [{"max_bad_fraction": 0.02}, {"on_bad": "error"}])
def test_more_broken_rows_than_allowed_are_refused(
    tmp_path: Path, broken: dict[str, Any], change: dict[str, Any]
) -> None:
    """Check 16: as a fault of the data, before anything is prepared; the run has the whole list."""
    with pytest.raises(DataError, match=r"(?s)7 of 23 rows.*listed in"):
        prepare_data(small(tmp_path / "root", data=broken | change))
    assert len(csv_rows((tmp_path / "root/runs/small/quarantine/train.csv").read_text())) == 7
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.fixture
def mixed(tmp_path: Path, broken: dict[str, Any]) -> tuple[PanoramaVlmConfig, CheckpointRef, str]:
    """(config, a trained resampler, prepared data) over rows of which some are broken."""
    config = small(tmp_path / "root", SHORT, "stages=[resampler]", "trainer.batch_size=2", data=broken)
    return config, trained(config, "resampler")["resampler"], str(prepare_data(config).reference)


def test_an_evaluation_has_every_row_of_the_csv_and_can_be_measured_again(
    mixed: tuple[PanoramaVlmConfig, CheckpointRef, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check 20: rows set aside stand in predictions.csv with their status; metrics name the checkpoint's digest; a
    metric that fails loses no answer; a copy's metrics come out of its predictions as they were."""
    config, ref, data = mixed

    def failing(*_: Any) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Answers, "measure", failing)
        with pytest.raises(ZeroDivisionError):
            evaluate_checkpoint(config, str(ref.uri), data)
    with monkeypatch.context() as patch:
        patch.setattr(module, "generate", failing)
        record = evaluate_checkpoint(config, str(ref.uri), data)
    found = table(record)
    assert len(found) == 23
    assert sum(row["status"] == "quarantined" for row in found) == 7
    assert record.plain["checkpoint"]["digest"] == ref.digest

    (own,) = (tmp_path / "root/runs/small/resampler").glob("*/config.yaml")
    results = f"evaluate.results_dir={tmp_path / 'results'}"
    copies = [copy_evaluation(record.reference, str(own), [results], "said\n") for _ in range(4)]
    assert len(set(copies)) == 4
    assert any(copy.name.endswith("_2") for copy in copies)
    copy, source = copies[0], Path(record.reference.uri)
    assert {path.name for path in copy.iterdir()} == {"metrics.json", "predictions.csv", "eval_config.yaml", "run.log"}
    assert all((copy / name).read_bytes() == (source / name).read_bytes() for name in ("metrics.json", PREDICTIONS))
    assert load_config(copy / "eval_config.yaml") == load_config(own, [results])

    assert repeat_metrics(copy) == (record.plain, [])
    assert (copy / "metrics.json").read_bytes() == (source / "metrics.json").read_bytes()
    (copy / "metrics.json").unlink()
    plain, _ = repeat_metrics(copy)
    for part in ("metrics", "reasons", "num_samples"):
        assert plain[part] == record.plain[part]
    text = (copy / PREDICTIONS).read_text(encoding="utf-8")
    (copy / PREDICTIONS).write_text(text.replace("length", "eos", 1), encoding="utf-8")
    (line,) = repeat_metrics(copy)[1]
    before = record.metrics["stopped_by_length"]
    assert line == f"stopped_by_length: {before} -> {before - 1}"
    (copy / "metrics.json").write_text("{}")
    with pytest.raises(DataError, match="changed after it was written"):
        repeat_metrics(copy)
    with pytest.raises(ConfigError, match="never written again"):
        repeat_metrics(source)


def test_a_run_is_not_compared_with_itself(compared: dict[str, Any]) -> None:
    """Check 18."""
    ref, _ = compared["with"]
    with pytest.raises(StagelineError):
        compare_evaluations(str(ref.uri), str(ref.uri))


def test_both_overlaps_are_compared(compared: dict[str, Any]) -> None:
    """Check 18: both plans, and differences with intervals."""
    found = compare_evaluations(*(str(compared[run][1].reference.uri) for run in ("with", "without")))
    assert len({found.plain["a"]["content"], found.plain["b"]["content"]}) == 2
    assert all(d.low is not None and d.low <= d.difference <= d.high for d in found.differences if d.difference)
    a, b = found.plain["a"], found.plain["b"]
    assert [(side["about"]["tiles"], side["about"]["views"]) for side in (a, b)] == [(8, 9), (4, 5)]
    assert ["overlap 0.5" in a["about"]["plan"], "overlap 0," in b["about"]["plan"]] == [True, True]
    assert a["about"]["image_tokens"] > b["about"]["image_tokens"]
    assert found.plain["ratios"]["tower_operations"] == pytest.approx(5 / 9)
    assert found.plain["ratios"]["tower_seconds_per_panorama"] > 0, "how much, a benchmark says"
    for side in (a, b):
        assert side["unknown"] == []
        assert side["training"]["resampler"]["steps"] == 2
        assert side["training"]["resampler"]["seconds"] > 0
        assert side["about"]["peak_memory_bytes"] > 0


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_with_the_rest(
    root: Path, compared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after some rows: only the others are answered, and the table is that of one that was not killed."""
    ref, whole = compared["with"]
    keys = ("image_processing.overlap_ratio=0.5", "stages=[resampler]", "evaluate.batch_size=2")
    config = small(root, SHORT, *keys, "evaluate.max_samples=7", run="with")
    data = str(prepare_data(config).reference)
    calls: list[int] = []
    generate = module.generate

    def dying(*args: Any) -> Any:
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(1)
        return generate(*args)

    monkeypatch.setattr(module, "generate", dying)
    (end,) = run_ranks(lambda _: str(evaluate_checkpoint(config, str(ref.uri), data)), 1, tmp_path / "killed")
    assert end.code == -signal.SIGKILL
    monkeypatch.setattr(module, "generate", lambda *args: calls.append(1) or generate(*args))
    resumed = table(evaluate_checkpoint(config, str(ref.uri), data))
    assert len(calls) == 2
    plain = {row["sample_id"]: row for row in table(whole)}
    assert len(resumed) == 7
    for row in resumed:
        assert row["prediction"] == plain[row["sample_id"]]["prediction"]


def test_a_sample_has_the_text_and_the_picture_of_its_own_row(tmp_path: Path, broken: dict[str, Any]) -> None:
    """Check 16: what a batch is trained on, and what is answered, belongs together."""
    config = stage_config(small(tmp_path / "root", "text.max_text_length=256", data=broken), STAGES["resampler"])
    data = PreparedData(prepare_data(config))
    task = build_task(config, STAGES["resampler"], data)
    samples = [task.train_set[0, number] for number in range(len(task.train_set))]
    batch = task.collate(samples)
    asked, fields = collate_questions(task.train_set, range(len(samples)), task.special.pad)
    assert asked.text is not None
    read = build_tokenizer(config, STAGES["resampler"]).decode
    for number, row in enumerate(fields):
        labels = batch.text.labels[number]
        assert read(labels[labels >= 0], skip_special_tokens=True) == row["response"]
        for given in (batch, asked):
            assert row["query"] in read(given.text.ids[number])
            pixels = given.pictures[int(given.rows[number])].pixels
            assert torch.equal(pixels, torch.from_numpy(np.array(Image.open(tmp_path / row["image"]))).permute(2, 0, 1))


def test_csv_files_that_are_missing_are_all_named(tmp_path: Path) -> None:
    """Before anything is written."""
    files = [str(tmp_path / name) for name in ("one.csv", "two.csv")]
    config = small(tmp_path / "root", data={"name": "csv", "csv_train": files, "csv_val": files[:1]})
    with pytest.raises(DataError) as caught:
        prepare_data(config)
    assert caught.value.message.count("there is no file") == 3
    assert all(file in caught.value.message for file in files)
    assert not list((tmp_path / "root").rglob("manifest.json"))
