"""Events: appended, read back, void after a resume, whole after a crash; and what is redacted on the way."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid

import pytest

from stageline.errors import StagelineError
from stageline.store import open_store
from stageline.telemetry import EVENTS_FILE, EventLog, parse_events, read_events, redact


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    return open_store(tmp_path if request.param == "disk" else f"memory://{uuid.uuid4().hex}").child("runs", "r", "s")


def test_what_is_emitted_is_read_in_order(store):
    log = EventLog(store)
    assert not log.had_lines
    for step in range(3):
        log.emit("step", step=step, loss=float("nan") if step == 1 else 0.5, parts={"a": float("inf")})
    log.close()
    told = read_events(store)
    assert [e["step"] for e in told] == [0, 1, 2]
    assert (told[1]["loss"], told[1]["parts"]["a"], told[2]["loss"]) == ("nan", "inf", 0.5)
    assert all(e["time"] > 1.7e9 for e in told)


def test_lines_after_a_resumed_step_are_void(store):
    first = EventLog(store)
    for step in (1, 2, 3, 4):
        first.emit("step", step=step, attempt=1)
    first.emit("warning", text="kept: it names no step")
    first.close()
    second = EventLog(store)
    assert second.had_lines
    second.emit("resumed", step=2)
    second.emit("step", step=3, attempt=2)
    second.close()
    told = read_events(store)
    assert [(e["step"], e["attempt"]) for e in told if e["event"] == "step"] == [(1, 1), (2, 1), (3, 2)]
    assert [e["event"] for e in told] == ["step", "step", "warning", "resumed", "step"]


def test_no_events_yet(store):
    assert read_events(store) == []


def test_a_stage_below_a_run(store):
    log = EventLog(store.child("deeper"))
    log.emit("step", step=1)
    log.close()
    assert [e["step"] for e in read_events(store, "deeper")] == [1]


def test_an_object_store_gets_numbered_segments():
    store = open_store(f"memory://{uuid.uuid4().hex}")
    for attempt in range(2):
        log = EventLog(store)
        log.emit("step", step=attempt)
        log.flush()
        log.emit("step", step=attempt + 10)
        log.close()
    keys = [info.key for info in store.list()]
    assert keys == [f"events-{number:08d}.jsonl" for number in (1, 2, 3, 4)]
    assert [e["step"] for e in read_events(store)] == [0, 10, 1, 11]


def test_a_torn_last_line_is_no_event_and_is_cut_by_the_next_writer(tmp_path):
    store = open_store(tmp_path)
    path = tmp_path / EVENTS_FILE
    path.write_bytes(b'{"time": 1, "event": "step", "step": 1}\n{"time": 2, "eve')
    assert [e["step"] for e in read_events(store)] == [1]
    log = EventLog(store)
    log.emit("step", step=2)
    log.close()
    assert [e["step"] for e in read_events(store)] == [1, 2]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_damaged_line_in_the_middle_is_told():
    with pytest.raises(StagelineError, match="not JSON"):
        parse_events(['{"event": "a"}\nrubbish\n{"event": "b"}\n'])


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIAIOSFODNN7EXAMPLE:abcdefgh12345@host/bucket",
        "aws_secret_access_key = abcdefgh12345",
        "AWS_SECRET_ACCESS_KEY=abcdefgh12345 started",
        '{"password": "abcdefgh12345"}',
        "Authorization: Bearer abcdefgh12345",
        "https://x/?X-Amz-Signature=abcdefgh12345&a=1",
        "token hf_abcdefgh12345",
        "api-key: abcdefgh12345",
        "the variable's value zyxwvuts98765 in a sentence",
    ],
)
def test_credentials_do_not_pass(text, monkeypatch):
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "zyxwvuts98765")
    out = redact(text)
    assert "abcdefgh12345" not in out
    assert "zyxwvuts98765" not in out
    assert "***" in out


@pytest.mark.parametrize(
    "text",
    ["loss 0.5 at step 12", "num_tokens: 512", "pad_token: 0", "tokenizer=clip", "s3://bucket/runs/a", "a.b-c/keys"],
)
def test_ordinary_texts_pass_unchanged(text):
    assert redact(text) == text


def test_mappings_are_redacted_by_key_and_at_any_depth():
    value = {"secret": "x", "deep": [{"password": "y", "max_tokens": 5, "pad_token": "<pad>"}], "key": "kept"}
    assert redact(value) == {
        "secret": "***",
        "deep": [{"password": "***", "max_tokens": 5, "pad_token": "<pad>"}],
        "key": "kept",
    }


def test_the_module_loads_no_torch():
    code = "import sys, stageline.telemetry; sys.exit(bool({'torch', 'lightning_fabric'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
