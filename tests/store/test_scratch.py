"""Scratch folders: gone at the end, swept after a death, never taken from the living."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stageline.store.holder import is_dead, this_process
from stageline.store.scratch import YOUNG_SECONDS, scratch_folder

HOLD = """
import sys, time
from pathlib import Path
from stageline.store.scratch import scratch_folder
with scratch_folder("run", Path(sys.argv[1])) as folder:
    (folder / "tmp").mkdir()
    print(folder, flush=True)
    time.sleep(600)
"""


def aged(folder: Path) -> Path:
    """The folder as if it had been made a while ago."""
    then = time.time() - YOUNG_SECONDS - 1
    os.utime(folder, (then, then))
    return folder


def names(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


def test_a_folder_is_gone_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    with scratch_folder("data", tmp_path) as folder:
        (folder / "deeper").mkdir()
        (folder / "deeper" / "file").write_text("x")
    assert names(tmp_path) == set()
    with pytest.raises(RuntimeError), scratch_folder("data", tmp_path):
        raise RuntimeError
    assert names(tmp_path) == set()


def test_what_a_killed_process_left_is_swept_and_the_living_keep_theirs(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = aged(Path(process.stdout.readline().strip()))
    stranger = tmp_path / ".stageline-other-1"
    stranger.mkdir()
    aged(stranger)
    try:
        with scratch_folder("run", tmp_path):
            assert folder.is_dir(), "its process lives"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with scratch_folder("run", tmp_path) as own:
        assert names(tmp_path) == {own.name, stranger.name}


def test_a_dead_holders_folder_stays_while_its_child_uses_it(tmp_path: Path) -> None:
    left = tmp_path / ".stageline-run-left"
    (left / "tmp").mkdir(parents=True)
    child = left / "tmp" / "stageline-data-1"
    child.mkdir()
    handle = os.open(child, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # a lock counts per opened folder, so ours is as good as another process's
    aged(left)
    try:
        with scratch_folder("run", tmp_path):
            assert child.is_dir()
    finally:
        os.close(handle)
    with scratch_folder("run", tmp_path):
        assert not left.exists()


def test_a_young_folder_is_left_alone_since_its_lock_may_be_about_to_come(tmp_path: Path) -> None:
    (tmp_path / ".stageline-run-young").mkdir()
    with scratch_folder("run", tmp_path) as own:
        assert names(tmp_path) == {own.name, ".stageline-run-young"}


def test_a_process_is_dead_only_where_that_can_be_known() -> None:
    own = this_process()
    assert not is_dead(own)
    assert is_dead({**own, "born": "1"}), "the number belongs to another process by now"
    assert not is_dead({**own, "host": "elsewhere", "born": "1"})
