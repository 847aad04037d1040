"""Rows of an evaluation: kept as they come, read back exactly, each of them once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from stageline.errors import BusyError, DataError
from stageline.store import Store, open_store
from stageline.verbs.evaluate.rows import FLUSH_ROWS, RowLog, rows_to_csv


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(str(tmp_path) if request.param == "disk" else f"memory://rows-{request.node.name}")


def nothing() -> None:
    """The lease is ours."""


def fill(log: RowLog, start: int, stop: int) -> None:
    for number in range(start, stop):
        log.add("", {"id": f"s{number}", "mode": "on", "dice": number / 7}, {f"s{number}.txt": b"%d" % number})


def test_a_killed_evaluation_loses_less_than_one_segment(store: Store) -> None:
    fill(RowLog(store, nothing), 0, 2 * FLUSH_ROWS + 3)
    again = RowLog(store, nothing)
    assert again.num_found == 2 * FLUSH_ROWS
    assert again.of("")["s5", "on"] == {"id": "s5", "mode": "on", "dice": 5 / 7}


def test_what_ends_a_batch_is_kept_at_once(store: Store) -> None:
    log = RowLog(store, nothing)
    fill(log, 0, 3)
    assert RowLog(store, nothing).num_found == 0
    log.flush()
    fill(log, 3, 5)
    assert list(RowLog(store, nothing).rows) == [("", f"s{n}", "on") for n in range(3)]


@pytest.mark.parametrize("killed", [False, True], ids=["whole", "killed before the others went"])
def test_many_small_batches_are_few_segments(store: Store, killed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 * 4 + 3 batches of two rows: two merged segments and three small ones; order, rows and files are the same."""
    monkeypatch.setattr("stageline.verbs.evaluate.rows.MERGED_SEGMENTS", 4)
    log = RowLog(store, nothing)
    with monkeypatch.context() as patch:
        if killed:
            patch.setattr(Store, "delete", lambda *_: None)
        for start in range(0, 2 * 11, 2):
            fill(log, start, start + 2)
            log.flush()
    assert len(store.list("rows")) == (11 if killed else 5)
    again = RowLog(store, nothing)
    assert list(again.rows.items()) == list(log.rows.items())
    assert again.files == log.files
    fill(again, 22, 23)
    again.flush()
    assert store.exists("rows/00000012.jsonl")


def test_rows_in_two_attempts_are_those_in_one(store: Store) -> None:
    with RowLog(store.child("one"), nothing) as one:
        fill(one, 0, 90)
    with RowLog(store.child("two"), nothing) as first:
        fill(first, 0, 37)
    with RowLog(store.child("two"), nothing) as second:
        assert second.num_found == 37
        fill(second, 37, 90)
    read = RowLog(store.child("two"), nothing)
    assert list(read.rows.items()) == list(one.rows.items())
    assert read.files == one.files
    assert all(store.child("two").get(name).decode() == name[1:-4] for name in read.files)


def test_two_rows_of_one_id_are_refused_and_modes_and_checkpoints_tell_rows_apart(store: Store) -> None:
    log = RowLog(store, nothing)
    log.add("", {"id": "a", "mode": "on"}, {})
    log.add("", {"id": "a", "mode": "off"}, {})
    log.add("other", {"id": "a", "mode": "on"}, {})
    with pytest.raises(DataError, match="two rows have the id 'a' in mode 'on'"):
        log.add("", {"id": "a", "mode": "on"}, {})
    with pytest.raises(DataError, match="has the id None"):
        log.add("", {"dice": 1.0}, {})


def test_who_lost_the_lease_writes_nothing(store: Store) -> None:
    def lost() -> None:
        raise BusyError("lost")

    log = RowLog(store, lost)
    log.add("", {"id": "a"}, {"a.txt": b"a"})
    checks: list[Callable[[], None]] = [log.flush, lambda: log.put({"b.txt": b"b"})]
    for write in checks:
        with pytest.raises(BusyError):
            write()
    assert store.list() == []


def test_a_damaged_segment_is_named(store: Store) -> None:
    with RowLog(store, nothing) as log:
        fill(log, 0, 3)
    store.put("rows/00000001.jsonl", b'{"row": 1}\n')
    with pytest.raises(DataError, match=r"rows/00000001\.jsonl is damaged"):
        RowLog(store, nothing)


def test_cells_that_are_no_finite_numbers_are_empty(store: Store) -> None:
    with RowLog(store, nothing) as log:
        log.add("", {"id": "a", "x": math.nan, "y": math.inf, "z": 0.1 + 0.2, "list": [1, math.nan]}, {})
    (row,) = RowLog(store, nothing).rows.values()
    assert row == {"id": "a", "x": None, "y": None, "z": 0.1 + 0.2, "list": [1, None]}
    assert rows_to_csv([row]).decode() == 'id,x,y,z,list\na,,,0.30000000000000004,"[1, null]"\n'
    assert json.loads(store.get("rows/00000001.jsonl"))["files"] == {}
