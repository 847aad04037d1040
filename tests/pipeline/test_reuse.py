"""What a run may take up: no changed receipt or evaluation, and no directory that another run is writing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from stageline.checkpoint.layout import StageDir
from stageline.checkpoint.lease import StageLease
from stageline.cli.configuration import raw_preset
from stageline.config import seal
from stageline.errors import BusyError, DataError
from stageline.families import parse_config
from stageline.pipeline.driver import run_pipeline
from stageline.pipeline.receipts import Receipt, read_receipt, receipt_key, write_receipt
from stageline.store import Store, open_store
from stageline.work.evaluations import METRICS, SCHEMA, EvaluationRecord, find_evaluation, refuse_damaged


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def test_a_receipt_holds_for_its_question_while_its_objects_do(root: Store) -> None:
    root.put("data/a", b"a")
    receipt = Receipt({"reference": "data@sha256:0", "metadata": {}}, {"data/a": sha256(b"a")})
    write_receipt(root, "run", "film", "q", receipt)
    assert read_receipt(root, "run", "film", "q") == receipt
    assert read_receipt(root, "run", "film", "another") is None
    root.put("data/a", b"b")
    assert read_receipt(root, "run", "film", "q") is None
    root.delete("data/a")
    assert read_receipt(root, "run", "film", "q") is None


@pytest.mark.parametrize("change", [{"answer": {"reference": "other"}}, {"hashes": {}}, {"hashes": None}])
def test_a_receipt_that_was_changed_is_none(root: Store, change: dict[str, Any]) -> None:
    key = receipt_key("run", "film")
    root.put("data/a", b"")
    write_receipt(root, "run", "film", "q", Receipt({"reference": "right"}, {"data/a": sha256(b"")}))
    plain = json.loads(root.get(key))
    root.put(key, json.dumps({**plain, **change}).encode())
    assert read_receipt(root, "run", "film", "q") is None
    del plain["answer"]
    root.put(key, json.dumps(plain).encode())
    assert read_receipt(root, "run", "film", "q") is None


def committed(run: Store) -> EvaluationRecord:
    """A small evaluation in a run, as found."""
    store = run.child("evaluations", "e")
    store.put("rows.csv", b"id\n1\n")
    about = {"num_samples": {"dice": 1}, "provenance": {}, "checkpoint": {}}
    plain = {"schema": SCHEMA, "metrics": {"dice": 0.5}, "files": {"rows.csv": sha256(b"id\n1\n")}, **about}
    store.put(METRICS, json.dumps(seal(plain)).encode())
    found = find_evaluation(run, "e")
    assert found is not None
    return found


def test_a_number_changed_in_an_evaluation_is_refused(root: Store) -> None:
    refuse_damaged(root, committed(root))
    key = f"evaluations/e/{METRICS}"
    root.put(key, root.get(key).replace(b"0.5", b"0.9"))
    with pytest.raises(DataError, match="changed after it was written") as caught:
        find_evaluation(root, "e")
    assert "made anew" in caught.value.remedy


def test_every_missing_or_changed_file_of_an_evaluation_is_named(root: Store) -> None:
    found = committed(root)
    root.put("evaluations/e/rows.csv", b"id\n2\n")
    with pytest.raises(DataError, match=r"rows\.csv: its hash differs"):
        refuse_damaged(root, found)
    root.delete("evaluations/e/rows.csv")
    with pytest.raises(DataError, match=r"rows\.csv: missing"):
        refuse_damaged(root, found)


def test_a_run_that_is_running_is_left_alone(root: Store) -> None:
    config = parse_config(raw_preset("film_flow", "tiny"), [f"root={root.uri}", "run=a"])
    run = root.child("runs", "a")
    with StageLease.acquire(StageDir.at(run), "stageline run of a"):
        with pytest.raises(BusyError, match="is being written by 'stageline run of a'"):
            run_pipeline(config, print, print)
        names = [info.key for info in run.list()]
    assert names == ["lease.json", "run.json"], "no failure record, plan or report in somebody else's run"
