"""Failure records: each rank leaves its own, the reader finds the first cause."""

from __future__ import annotations

import uuid

import pytest

from stageline.errors import DataError, InterruptedRunError, PeerLostError, StepFailedError, TrainingError
from stageline.store import open_store
from stageline.telemetry import clear_failures, read_failure, write_failure


@pytest.fixture(params=["folder", "disk", "memory"])
def target(request, tmp_path):
    if request.param == "folder":
        return tmp_path / "records"
    return open_store(tmp_path if request.param == "disk" else f"memory://{uuid.uuid4().hex}")


def test_a_record_tells_everything(target):
    assert read_failure(target) is None
    write_failure(target, DataError("a.png: empty", remedy="mend it", code="E_EMPTY"), log_tail=["one", "two"])
    record = read_failure(target)
    assert record.pop("time") > 1.7e9
    assert record == {
        "kind": "data",
        "code": "E_EMPTY",
        "sentence": "a.png: empty",
        "remedy": "mend it",
        "exit_code": 3,
        "rank": 0,
        "log_tail": ["one", "two"],
    }


def test_the_first_cause_wins(target):
    write_failure(target, PeerLostError("rank 1 went away"), rank=0)
    write_failure(target, InterruptedRunError("stopped"), rank=2)
    write_failure(target, TrainingError("loss is nan"), rank=1)
    write_failure(target, TrainingError("later"), rank=3)
    assert read_failure(target)["sentence"] == "loss is nan"
    assert read_failure(target, num_ranks=1)["kind"] == "peer_lost"
    clear_failures(target)
    assert read_failure(target) is None


def test_an_interruption_outranks_a_lost_peer(target):
    write_failure(target, PeerLostError("gone"), rank=0)
    write_failure(target, InterruptedRunError("stopped"), rank=1)
    assert read_failure(target)["exit_code"] == 143


def test_faults_of_ours_and_of_children(target):
    write_failure(target, ZeroDivisionError("division by zero"))
    assert (read_failure(target)["kind"], read_failure(target)["exit_code"]) == ("fault", 1)
    write_failure(target, StepFailedError("no GPU", exit_code=8, origin="out_of_memory"))
    assert (read_failure(target)["kind"], read_failure(target)["exit_code"]) == ("out_of_memory", 8)


def test_a_long_tail_is_cut(target):
    write_failure(target, DataError("x"), log_tail=[str(i) for i in range(500)])
    assert read_failure(target)["log_tail"] == [str(i) for i in range(450, 500)]
