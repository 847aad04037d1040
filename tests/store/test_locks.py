"""Lock files: one holder at a time whatever is removed meanwhile, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from guards import HANG_SECONDS

from stageline.store.locks import LOCK, hold_if_free, hold_lock, sweep_locks

HOLD = """
import os, sys
from pathlib import Path
from stageline.store.locks import hold_if_free, hold_lock, sweep_locks
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for turn in range(400):
    with hold_lock(folder / f"{turn % 2}.lock"):
        inside = folder / f"inside-{turn % 2}"
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails where somebody else is inside
        inside.unlink()
    sweep_locks(folder)
    with hold_if_free(folder / "0.lock") as free:
        if free:
            os.close(os.open(folder / "inside-0", os.O_CREAT | os.O_EXCL))
            (folder / "inside-0").unlink()
"""


def test_one_holder_at_a_time_and_nothing_is_left(tmp_path: Path) -> None:
    """Every holder removes the file and everybody sweeps: still no two processes are inside at once."""
    command, pipe = [sys.executable, "-c", HOLD, str(tmp_path)], subprocess.PIPE
    others = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    for other in others:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
    for other in others:
        assert other.stdin is not None
        other.stdin.write("go\n")
        other.stdin.flush()
    for other in others:
        other.communicate(timeout=HANG_SECONDS)
        assert other.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_holder_died_is_swept_and_one_that_is_held_is_not(tmp_path: Path) -> None:
    (tmp_path / f"dead{LOCK}").touch()
    with hold_lock(tmp_path / f"held{LOCK}"):
        sweep_locks(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [f"held{LOCK}"]
        with hold_if_free(tmp_path / f"held{LOCK}") as free:
            assert not free
    assert list(tmp_path.iterdir()) == []
