"""What only local disk has: durability, hidden files, room, other processes."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from guards import HANG_SECONDS

from stageline.errors import DiskFullError, StoreError
from stageline.store import open_store


def test_a_write_is_synced_before_it_gets_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is what survives a power cut; only the calls can show it."""
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        order.append("sync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync file")
        fsync(handle)

    def noted_replace(*names: str, **folders: int) -> None:
        order.append("name")
        replace(*names, **folders)

    store = open_store(tmp_path)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    store.put("file", b"x")
    assert order == ["sync file", "name", "sync folder"]
    order.clear()
    store.put("new/folder/file", b"x")
    assert order == ["sync folder", "sync folder", "sync file", "name", "sync folder"]


def test_an_interrupted_write_leaves_the_old_file_and_no_trace(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put("file", b"old")

    def breaks() -> object:
        yield b"ne"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put("file", breaks())  # type: ignore[arg-type]
    assert store.get("file") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_leftover_of_a_killed_writer_is_never_listed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".stageline-0123").write_bytes(b"half")
    assert store.list() == []
    assert store.folders() == []


def test_only_what_was_left_long_ago_is_tidied_away(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put("file", b"x")
    old, young, lock = (tmp_path / f".stageline-{name}" for name in ("0" * 32, "1" * 32, "lock"))
    for path in (old, young, lock, tmp_path / "mine"):
        path.write_bytes(b"half")
    for path in (old, lock, tmp_path / "mine", tmp_path / "file"):
        os.utime(path, (1e9, 1e9))
    store.tidy()
    assert {path.name for path in tmp_path.iterdir()} == {"file", "mine", young.name, lock.name}
    store.child("nowhere").tidy()


def test_a_file_too_large_for_its_limit_is_a_full_disk(tmp_path: Path) -> None:
    """RLIMIT_FSIZE in a process of its own: the kernel refuses, nothing is simulated."""
    script = f"""
import resource
from stageline.errors import DiskFullError
from stageline.store import open_store
store = open_store({str(tmp_path)!r})
store.put("old", b"good")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.put("old", b"x" * 200_000)
except DiskFullError as error:
    print(error.exit_code, store.get("old"), [i.key for i in store.list()])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=HANG_SECONDS, check=True
    )
    assert done.stdout.strip() == f"{DiskFullError.exit_code} b'good' ['old']"


def test_of_two_processes_creating_exactly_one_wins(tmp_path: Path) -> None:
    script = f"""
import sys, time
from stageline.store import open_store
store = open_store({str(tmp_path)!r})
store.put("ready/" + sys.argv[1], b"")
while len(store.list("ready")) < 2:
    time.sleep(0.002)
print(sum(store.create(f"claims/{{i}}", sys.argv[1].encode()) for i in range(200)))
"""
    ones = [
        subprocess.Popen([sys.executable, "-c", script, name], stdout=subprocess.PIPE, text=True) for name in ("a", "b")
    ]
    counts = [int(one.communicate(timeout=HANG_SECONDS)[0]) for one in ones]
    store = open_store(tmp_path)
    winners = [store.get(f"claims/{i}") for i in range(200)]
    assert sum(counts) == 200
    assert counts == [winners.count(b"a"), winners.count(b"b")]


def test_creation_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    store = open_store(tmp_path)
    assert store.create("claim", b"one")
    assert not store.create("claim", b"two")
    assert store.get("claim") == b"one"


def test_room_is_known_before_the_folder_exists(tmp_path: Path) -> None:
    free = open_store(tmp_path / "not" / "yet").free_bytes()
    assert free is not None
    assert free > 0


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="file"):
        open_store(tmp_path / "file").put("key", b"x")
    assert open_store(tmp_path / "file").stat("key") is None


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/data/x/", "/data/x"),
        ("file:///data/x", "/data/x"),
        ("/data/./x/../y", "/data/y"),
        ("memory://name/", "memory://name"),
        ("memory://name/a/b/", "memory://name/a/b"),
    ],
)
def test_one_place_has_one_uri(uri: str, expected: str) -> None:
    assert open_store(uri).uri == expected


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("here").uri == str(tmp_path / "here")
    assert open_store(".").uri == str(tmp_path)
