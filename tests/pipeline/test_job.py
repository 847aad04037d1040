"""Jobs are values: rendering is pure, the verdict on an end goes by the ranks' own records."""

from __future__ import annotations

import pytest

from stageline.errors import InterruptedRunError
from stageline.jobs.environment import process_environment
from stageline.jobs.job import Job, Verdict, judge, render_command
from stageline.jobs.step_lines import MARK, event_lines, parse_event
from stageline.telemetry import FAILURE_DIR_VARIABLE, FailureRecord

FAULT = FailureRecord("data", "image a.png is empty", exit_code=3)
STOPPED = FailureRecord("interrupted", "stopped", exit_code=143)


def test_one_process_is_started_directly() -> None:
    job = Job("a-film", ("train", "film", "-c", "x.yaml"))
    assert render_command(job, "python") == ["python", "-m", "stageline", "train", "film", "-c", "x.yaml"]


def test_several_processes_go_through_torchrun_without_its_own_restarts() -> None:
    job = Job("a-film", ("train", "film"), processes=2, shutdown_timeout_seconds=33)
    assert render_command(job, "python") == [
        *("python", "-m", "torch.distributed.run"),
        *("--nnodes=1", "--rdzv-backend=stageline", "--rdzv-endpoint=127.0.0.1:0", "--rdzv-id=a-film"),
        *("--rdzv-conf=rank=0,timeout=60", "--nproc-per-node=2", "--max-restarts=0"),
        *("-m", "stageline", "train", "film"),
    ]
    spread = Job("a-film", ("train", "film"), nodes=2, processes=3)  # one machine starts the ranks of all nodes itself
    assert "--nproc-per-node=6" in render_command(spread, "python")
    environment = process_environment(job.shutdown_timeout_seconds, "/records")
    assert environment["PET_SHUTDOWN_TIMEOUT"] == "33"
    assert environment["PET_MAX_RESTARTS"] == "0"
    assert environment[FAILURE_DIR_VARIABLE] == "/records"
    assert environment["PYTHONUNBUFFERED"] == "1"


@pytest.mark.parametrize(
    ("returncode", "record", "cancelled", "expected"),
    [
        pytest.param(0, None, False, 0, id="success"),
        pytest.param(0, STOPPED, True, 0, id="success-although-asked-to-stop"),
        pytest.param(1, FAULT, False, 3, id="torchrun-says-1-the-rank-says-3"),
        pytest.param(1, STOPPED, True, 143, id="torchrun-says-1-the-rank-was-stopped"),
        pytest.param(1, FAULT, True, 3, id="a-fault-while-stopping-stays-a-fault"),
        pytest.param(-15, None, True, 143, id="cancelled-before-it-could-say-so"),
        pytest.param(-9, None, False, 137, id="killed"),
        pytest.param(5, None, False, 5, id="no-record"),
    ],
)
def test_verdict(returncode: int, record: FailureRecord | None, cancelled: bool, expected: int) -> None:
    verdict = judge(returncode, record, cancelled=cancelled)
    assert verdict.exit_code == expected


def test_a_killed_process_is_told_as_such_with_the_likely_cause() -> None:
    record = judge(-9, None, cancelled=False).record
    assert record is not None
    assert "SIGKILL" in record.sentence
    assert "memory" in record.remedy


def test_events_survive_the_pipelines_indentation_and_nasty_text() -> None:
    event = {"item": "film", "line": 'a "quoted" {line} with \\ and umlauts: äöü'}
    import json

    assert parse_event("    " + MARK + json.dumps(event, ensure_ascii=False)) == event
    assert parse_event("16:09 - INFO - Executing task") is None
    assert event_lines({"item": "film", "state": "reused", "text": "digest 12"}) == ["film: reused: digest 12"]


def test_the_error_of_a_job_is_its_own_record_and_without_one_its_last_line() -> None:
    told = Verdict(3, FAULT).error("a-film", "epoch 1")
    assert (told.message, told.exit_code, told.kind) == ("image a.png is empty", 3, "data")
    assert isinstance(Verdict(143, STOPPED).error("a-film"), InterruptedRunError)
    assert Verdict(143).error("a-film").message == "a-film was stopped"
    assert Verdict(5).error("a-film", "epoch 1").message == "a-film ended with exit code 5; its last line: epoch 1"
