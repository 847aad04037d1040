"""A data set of QuIC-360's size, 2,000 pictures and 6,000 rows: what is read, held in memory, and made again."""

from __future__ import annotations

import csv
import io
import math
import os
import signal
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ranks import run_ranks
from runs import small
from tiny_run import built_by

from stageline.checkpoint.layout import StageDir
from stageline.data import prepared as prepared_module
from stageline.data.prepared import Prepared, PreparedData
from stageline.data.reading import SplitReader
from stageline.data.shards import SplitWriter
from stageline.data.tables import csv_rows
from stageline.errors import InterruptedRunError
from stageline.families.panorama_vlm import evaluate as module
from stageline.families.panorama_vlm.data import origin
from stageline.store import open_below
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.data.case import CountingStore, read_count

pytestmark = pytest.mark.slow

PICTURES = {"train": 1700, "val": 40, "test": 260}
ROWS_EACH = 3
KILLED_AT = 10
"""Batches that are answered before the kill."""
SHOWN = ("trainer.max_steps=2", "trainer.batch_size=8", "evaluate.batch_size=32", "generation.max_new_tokens=2")


def write_pictures(folder: Path) -> None:
    """JPEG files of 1024 x 512; eight pictures at two qualities, and in every file a comment of its own."""
    folder.mkdir()
    rng, made = np.random.default_rng(0), []
    for number in range(8):
        coarse = rng.integers(0, 256, (8, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((1024, 512), Image.Resampling.BICUBIC)
        for quality in (70, 90):
            blob = io.BytesIO()
            picture.save(blob, "JPEG", quality=quality + number)
            made.append(blob.getvalue())
    for number in range(sum(PICTURES.values())):
        data, comment = made[number % len(made)], str(number).encode()
        marked = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        (folder / f"{number}.jpg").write_bytes(data[:2] + marked + data[2:])


def write_rows(folder: Path, share: int = 1) -> dict[str, Any]:
    """CSV files about the pictures beside `folder`; the section `data` of a config. share: take every n-th picture."""
    folder.mkdir(exist_ok=True)
    first, data = 0, {"name": "csv"}
    for split, count in PICTURES.items():
        path = folder / f"{split}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("id", "image", "query", "response"))
            for number in range(first, first + count, share):
                for place in range(ROWS_EACH):
                    text = f"The thing {place} of room {number} is on the left."
                    writer.writerow((f"{number}-{place}", f"../pictures/{number}.jpg", f"thing {place}", text))
        first += count
        data[f"csv_{split}"] = [str(path)]
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("scale")
    write_pictures(found / "pictures")
    return found


@pytest.fixture(scope="module")
def config(folder: Path) -> Any:
    return small(folder / "root", *SHOWN, run="all", data=write_rows(folder / "rows"))


@pytest.fixture(scope="module")
def prepared(config: Any) -> Prepared:
    return prepare_data(config)


@contextmanager
def counted_reads(log: Path) -> Iterator[list[int]]:
    """Count what is read of prepared data: whole files from the store into `log`, lines and arrays of rows."""
    found: list[int] = []
    line, view = SplitReader._line, SplitReader._view

    def counted_line(self: SplitReader, row: int) -> Any:
        found.append(int(self._rows()[row]["@line_bytes"]))
        return line(self, row)

    def counted_view(self: SplitReader, row: int, name: str, place: Any) -> Any:
        array = view(self, row, name, place)
        found.append(array.nbytes)
        return array

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SplitReader, "_line", counted_line)
        patch.setattr(SplitReader, "_view", counted_view)
        patch.setattr(prepared_module, "open_below", lambda uri: CountingStore.over(open_below(uri), log))
        yield found


def start_resampler(config: Any, prepared: Prepared) -> None:
    """The second stage up to the end of its first optimizer step."""

    def stopping(build: Any, *given: Any) -> Any:
        task = build(*given)
        loss = task.loss

        def stopped(*batch: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return loss(*batch)

        task.loss = stopped
        return task

    with built_by("panorama_vlm", lambda build: partial(stopping, build)), pytest.raises(InterruptedRunError):
        train_stage(config, "resampler", data=str(prepared.reference))


@pytest.fixture(scope="module")
def bytes_read(config: Any, prepared: Prepared, folder: Path) -> int:
    """What the second stage read of prepared data up to its first optimizer step, where the first one was."""
    train_stage(config, "vision", data=str(prepared.reference))
    with counted_reads(folder / "log") as found:
        start_resampler(config, prepared)
    return sum(found) + sum(read_count(folder / "log").values())


def test_the_second_stage_starts_without_reading_its_data(prepared: Prepared, bytes_read: int) -> None:
    """Features of the frozen tower are computed when a picture is first used."""
    assert sum(split.num_rows for name, split in prepared.splits.items() if not name.endswith("-pictures")) == 6000
    assert 0 < bytes_read < 0.05 * prepared.num_bytes


@pytest.mark.usefixtures("bytes_read")  # whose run has loaded what every run loads
def test_memory_does_not_grow_with_the_rows(folder: Path, config: Any, prepared: Prepared) -> None:
    """Four times the rows and pictures: numbers of them are held, no text and no pixels."""
    few = small(folder / "few", *SHOWN, data=write_rows(folder / "few-rows", share=4))
    peaks = []
    for number, (whole, data) in enumerate(((few, prepare_data(few)), (config, prepared))):
        for name in data.splits:
            PreparedData(data).split(name).arrays(0)
        origin._pictures_named.cache_clear()
        keys = ("stages=[resampler]", "parents.resampler.default=none")
        alone = small(Path(whole.root), *SHOWN, *keys, run=f"memory-{number}", data=whole.data.model_dump())
        tracemalloc.start()
        start_resampler(alone, data)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 4500 * 300, "a row's text takes some hundred bytes, its picture 55,296"


def test_another_test_file_makes_no_training_picture_anew(
    config: Any, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes is the split of the test rows: only these are written."""
    path = Path(config.data.csv_test[0])
    before = path.read_text()
    path.write_text(f"{before}new,../pictures/{sum(PICTURES.values()) - 1}.jpg,thing,It is new.\n")
    written: list[int] = []
    add = SplitWriter.add
    monkeypatch.setattr(SplitWriter, "add", lambda *given: written.append(len(given[1])) or add(*given))
    again = prepare_data(config)
    path.write_text(before)
    changed = {name for name, split in again.splits.items() if split != prepared.splits[name]}
    assert changed == {"test"}
    assert len(written) == ROWS_EACH * PICTURES["test"] + 1
    assert not any(written), "arrays: no picture was written"


def predictions(run: Path) -> list[dict[str, str]]:
    """The table of the one evaluation of a run, without what rows took."""
    (path,) = run.rglob("predictions.csv")
    return [row for row in csv_rows(path.read_bytes().decode()) if row.pop("latency_ms")]


@pytest.mark.usefixtures("bytes_read")  # whose run has a checkpoint
def test_a_killed_evaluation_makes_only_the_rest(
    config: Any, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after ten of its batches: the others are made, and the table is that of one that was not killed."""
    run, data = Path(config.root) / "runs" / config.run, str(prepared.reference)
    ref = StageDir(config.root, config.run, "resampler/anyres-e2p_mlp").newest()
    assert ref is not None
    evaluate = partial(evaluate_checkpoint, config, str(ref.reference), data)
    evaluate()
    whole = predictions(run)
    (run / "evaluations").rename(tmp_path / "whole")
    calls: list[int] = []
    generate = module.generate

    def dying(*given: Any) -> Any:
        if len(calls) == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(1)
        return generate(*given)

    monkeypatch.setattr(module, "generate", dying)
    (end,) = run_ranks(lambda _: evaluate() and None, 1, tmp_path / "killed")
    assert end.code == -signal.SIGKILL
    monkeypatch.setattr(module, "generate", lambda *given: calls.append(1) or generate(*given))
    evaluate()
    batches = math.ceil(len(whole) / config.evaluate.batch_size)
    assert len(calls) == batches - KILLED_AT, "batches of the second attempt"
    assert predictions(run) == whole
    assert len(whole) == ROWS_EACH * PICTURES["test"]
