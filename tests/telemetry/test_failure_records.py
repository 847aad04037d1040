"""Failure records: one type from rank to report, read from anybody's JSON, and one rule for the first cause."""

from __future__ import annotations

import itertools
import json
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageline.errors import DataError, InterruptedRunError, PeerLostError, StepFailedError, TrainingError
from stageline.jobs.cluster.explain.describe import job_failure
from stageline.store import open_store
from stageline.telemetry import (
    FAILURE_DIR_VARIABLE,
    FailureRecord,
    asked_by,
    clear_failures,
    first_cause,
    note_asked,
    read_failure,
    write_failure,
)
from stageline.telemetry.failures import LARGEST_BYTES, LONGEST_TEXT
from stageline.telemetry.remedies import REMEDIES


@pytest.fixture(params=["folder", "disk", "memory"])
def target(request, tmp_path):
    if request.param == "folder":
        return tmp_path / "records"
    return open_store(tmp_path if request.param == "disk" else f"memory://{uuid.uuid4().hex}")


def test_a_record_tells_everything(target):
    assert read_failure(target) is None
    write_failure(target, DataError("a.png: empty", remedy="mend it", code="E_EMPTY"), log_tail=["one", "two"])
    record = read_failure(target)
    assert record.time > 1.7e9
    remedy = "mend it" if isinstance(target, Path) else REMEDIES["data"]  # of whoever may write a store: ours
    assert record == FailureRecord("data", "a.png: empty", remedy, 3, "E_EMPTY", 0, record.time, ("one", "two"))


def test_the_first_cause_wins(target):
    write_failure(target, PeerLostError("rank 1 went away"), rank=0)
    write_failure(target, InterruptedRunError("stopped"), rank=2)
    write_failure(target, TrainingError("loss is nan"), rank=1)
    write_failure(target, TrainingError("later"), rank=3)
    assert read_failure(target).sentence == "loss is nan"
    assert read_failure(target, num_ranks=1).kind == "peer_lost"
    clear_failures(target)
    assert read_failure(target) is None


def test_faults_of_ours_and_of_children(target):
    write_failure(target, ZeroDivisionError("division by zero"))
    assert (read_failure(target).kind, read_failure(target).exit_code) == ("fault", 1)
    write_failure(target, StepFailedError("no GPU", exit_code=8, origin="out_of_memory"))
    assert (read_failure(target).kind, read_failure(target).exit_code) == ("out_of_memory", 8)


def test_a_long_tail_is_cut(target):
    write_failure(target, DataError("x"), log_tail=[str(i) for i in range(500)])
    assert read_failure(target).log_tail == tuple(str(i) for i in range(450, 500))


def test_a_damaged_record_hides_no_other_and_is_told_where_it_is_the_only_one(tmp_path):
    (tmp_path / "failure-rank-1.json").write_bytes(b'{"kind": "da')
    found = read_failure(tmp_path)
    assert (found.kind, found.exit_code) == ("fault", 1)
    assert found.sentence.startswith("unreadable record failure-rank-1.json: ")
    write_failure(tmp_path, PeerLostError("gone"))
    assert read_failure(tmp_path).kind == "peer_lost"


FAULT = FailureRecord("training", "loss is nan", exit_code=7, time=9.0)
EARLY = FailureRecord("data", "early", exit_code=3, time=2.0)
STOPPED = FailureRecord("interrupted", "stopped", exit_code=143, time=5.0)
KILLED = FailureRecord("killed", "killed", exit_code=137, time=3.0)
LOST = FailureRecord("peer_lost", "a peer went away", exit_code=138, time=1.0)
FOREIGN_LOST = FailureRecord("fault", "ended with 138", exit_code=138, time=0.5)
RANK_1 = FailureRecord("training", "the same moment on rank 1", exit_code=7, rank=1, time=9.0)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        pytest.param([], None, id="none-among-none"),
        pytest.param([LOST, FAULT], FAULT, id="a-fault-before-the-peers-it-took-along"),
        pytest.param([FAULT, EARLY], EARLY, id="the-earlier-of-two-faults"),
        pytest.param([LOST, STOPPED], STOPPED, id="an-interruption-before-a-lost-peer-though-later"),
        pytest.param([LOST, KILLED, STOPPED], KILLED, id="the-earlier-of-two-interruptions"),
        pytest.param([FOREIGN_LOST, STOPPED], STOPPED, id="a-lost-peer-is-known-by-its-code-too"),
        pytest.param([STOPPED, FAULT, LOST], FAULT, id="a-fault-before-an-interruption-though-later"),
        pytest.param([RANK_1, FAULT], FAULT, id="the-lower-rank-of-one-moment"),
        pytest.param([LOST, FOREIGN_LOST], FOREIGN_LOST, id="the-earliest-of-lost-peers"),
    ],
)
def test_one_rule_says_the_first_cause_here_and_on_a_cluster(records, expected, tmp_path):
    """In every order: of values, of files in a folder, and of termination messages of pods."""
    for order in itertools.permutations(records):
        assert first_cause(order) == expected
        pods = [as_pod(index, record) for index, record in enumerate(order)]
        found = job_failure(pods)
        assert (found and found.sentence) == (expected and expected.sentence)
    folder = tmp_path / "records"
    folder.mkdir()
    for index, record in enumerate(records):
        (folder / f"failure-rank-{index}.json").write_bytes(record.to_bytes())
    assert read_failure(folder) == expected


def as_pod(index, record):
    """A pod whose container left the record; the rank's own time counts, not that of the container's end."""
    state = {"exitCode": record.exit_code, "finishedAt": f"2026-01-01T00:00:0{index}Z"}
    state["message"] = json.dumps(record.to_json())
    return {
        "metadata": {"name": f"a-film-worker-{index}"},
        "status": {"containerStatuses": [{"state": {"terminated": state}}]},
    }


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=50)


@given(
    st.builds(
        FailureRecord,
        kind=st.sampled_from(["data", "fault", "peer_lost"]),
        sentence=TEXT.filter(bool),
        remedy=TEXT,
        exit_code=st.integers(1, 255),
        code=st.sampled_from(["", "E_RANGE"]),
        rank=st.integers(0, 9999),
        time=st.floats(0, 1e11),
        log_tail=st.lists(TEXT, max_size=50).map(tuple),
        pod=st.sampled_from(["", "a-film-worker-0"]),
        node=st.sampled_from(["", "node-1"]),
    )
)
def test_a_record_survives_its_json_form(record):
    assert FailureRecord.from_bytes(record.to_bytes()) == record.redacted()


def test_records_of_older_versions_stay_readable():
    """As versions before 0.2 wrote them: with and without the fields that came later."""
    plain = {"kind": "data", "code": "", "sentence": "a.png: empty", "remedy": "mend it", "exit_code": 3}
    assert FailureRecord.from_json(plain) == FailureRecord("data", "a.png: empty", "mend it", 3)
    full = {**plain, "rank": 1, "time": 1700000000.5, "log_tail": ["x"], "pod": "p", "node": "n", "uid": "u"}
    expected = FailureRecord("data", "a.png: empty", "mend it", 3, "", 1, 1700000000.5, ("x",), "p", "n", "u")
    assert FailureRecord.from_json(full) == expected
    assert FailureRecord.from_json({}) == FailureRecord("fault", "its record says nothing more")


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        pytest.param([1], "mapping", id="a-list"),
        pytest.param({"exit_code": "3"}, "exit_code", id="a-code-as-text"),
        pytest.param({"exit_code": True}, "exit_code", id="a-code-as-truth"),
        pytest.param({"exit_code": 0}, "exit_code", id="success"),
        pytest.param({"exit_code": 256}, "exit_code", id="beyond-a-byte"),
        pytest.param({"rank": -1}, "rank", id="a-negative-rank"),
        pytest.param({"time": float("nan")}, "time", id="no-time"),
        pytest.param({"time": "now"}, "time", id="a-time-as-text"),
        pytest.param({"sentence": {"a": 1}}, "sentence", id="a-mapping-as-sentence"),
        pytest.param({"log_tail": "abc"}, "log_tail", id="a-text-as-lines"),
        pytest.param({"advice": "abc"}, "advice", id="a-key-of-its-own"),
    ],
)
def test_what_is_no_record_is_refused_in_words(plain, words):
    with pytest.raises(ValueError, match=words):
        FailureRecord.from_json(plain)


def test_all_faults_of_a_record_are_told_at_once():
    with pytest.raises(ValueError, match=r"exit_code.*rank.*kind"):
        FailureRecord.from_json({"exit_code": 0, "rank": "x", "kind": 3})


def test_a_file_too_large_for_a_record_is_not_parsed():
    with pytest.raises(ValueError, match="bytes"):
        FailureRecord.from_bytes(b" " * (LARGEST_BYTES + 1))


def test_what_a_terminal_would_obey_is_made_visible_and_long_texts_are_cut():
    record = FailureRecord.from_json(
        {
            "kind": "da\x1b[31mta\nx",
            "sentence": "a\x1b]0;title\x07b\x1b[2Jc\x00d\re\nf\tg\u202e" + "h" * LONGEST_TEXT,
            "log_tail": ["x"] * 60,
        }
    )
    assert record.kind == r"da\u001b[31mta\nx"
    assert record.sentence.startswith(r"a\u001b]0;title\u0007b\u001b[2Jc\u0000d\re" + "\nf\tg" + r"\u202eh")
    assert len(record.sentence) == LONGEST_TEXT
    assert len(record.log_tail) == 50
    assert FailureRecord.from_json({"log_tail": ["\x1b[1mbold\n"]}).log_tail == (r"\u001b[1mbold\n",)


def test_credentials_are_redacted_when_it_is_made_and_when_it_is_read():
    address = "https://user:opensesame@host/x"
    made = FailureRecord.of(DataError(address, remedy=address), log_tail=[address])
    read = FailureRecord.from_json({"sentence": address, "remedy": address, "log_tail": [address]})
    assert "opensesame" not in f"{made}{read}{made.to_bytes()!r}"


@pytest.mark.parametrize("exit_code", [3, 143])
def test_its_error_ends_a_process_with_the_same_record(exit_code):
    kind = "interrupted" if exit_code == 143 else "data"
    record = FailureRecord(kind, "sentence", "remedy", exit_code, "" if exit_code == 143 else "E_X")
    again = FailureRecord.of(record.error())
    assert (again.kind, again.sentence, again.remedy, again.exit_code, again.code) == (
        (record.kind, record.sentence, record.remedy, record.exit_code, record.code)
    )


def test_why_a_process_is_asked_to_stop_is_what_its_starter_noted(tmp_path, monkeypatch):
    folder = tmp_path / "made later"
    monkeypatch.setenv(FAILURE_DIR_VARIABLE, str(folder))
    assert asked_by("SIGTERM") == "SIGTERM"
    note_asked(folder, "Ctrl-C")
    assert asked_by("SIGTERM") == "Ctrl-C"
    assert read_failure(folder) is None
    monkeypatch.delenv(FAILURE_DIR_VARIABLE)
    assert asked_by("SIGTERM") == "SIGTERM"
