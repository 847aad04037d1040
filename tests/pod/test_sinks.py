"""The log in the store: every line once, in order; a store that fails costs lines only when memory would run out."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from guards import HANG_SECONDS

from stageline.pod import sinks as segments
from stageline.pod.sinks import LogSegments
from stageline.store import open_store


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def kept(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("*.log")))


def test_lines_come_in_order_in_objects_that_are_never_written_again(tmp_path: Path) -> None:
    log = LogSegments(open_store(tmp_path / "log"), print, flush_seconds=0.1)
    for number in range(40):
        log.add(f"line {number}")
        time.sleep(0.01)
    log.close()
    assert kept(tmp_path / "log") == "".join(f"line {number}\n" for number in range(40))
    names = sorted(path.name for path in (tmp_path / "log").glob("*.log"))
    assert names == [f"{number:08d}.log" for number in range(1, len(names) + 1)]
    assert len(names) > 1


def test_what_a_store_did_not_take_comes_when_it_is_back(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where a folder should be")
    said: list[str] = []
    log = LogSegments(open_store(tmp_path / "log"), said.append, flush_seconds=0.05)
    log.add("first")
    until(lambda: said)
    log.add("second")
    time.sleep(0.2)
    (tmp_path / "log").unlink()
    until(lambda: len(said) > 1)
    log.close()
    assert kept(tmp_path / "log") == "first\nsecond\n"
    assert "cannot be stored" in said[0]
    assert "again" in said[1]
    assert len(said) == 2


def test_memory_is_bounded_and_the_gap_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "KEPT_BYTES", 1000)
    (tmp_path / "log").write_text("a file where a folder should be")
    said: list[str] = []
    log = LogSegments(open_store(tmp_path / "log"), said.append, flush_seconds=0.05)
    for number in range(500):
        log.add(f"line {number:04d}")
    until(lambda: said)
    (tmp_path / "log").unlink()
    until(lambda: len(said) > 1)
    log.close()
    gap, *rest = kept(tmp_path / "log").splitlines()
    assert "400 lines are missing here" in gap
    assert rest == [f"line {number:04d}" for number in range(400, 500)]


def test_the_end_writes_what_is_left(tmp_path: Path) -> None:
    log = LogSegments(open_store(tmp_path / "log"), print, flush_seconds=60)
    log.add("x")
    start = time.monotonic()
    log.close(limit_seconds=5)
    assert time.monotonic() - start < 5
    assert kept(tmp_path / "log") == "x\n"
