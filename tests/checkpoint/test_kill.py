"""A process that is killed while it saves leaves something that loads, every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from guards import HANG_SECONDS

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_drill.py"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Memory where there is some: SIGKILL does not care about fsync, but 200 drills wait for it."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="stageline-drill-", dir="/dev/shm") as scratch:
        yield Path(scratch)


def run(kills: int, folder: Path) -> dict[str, int]:
    """One drill in a process of its own: forking wants a parent without threads."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(kills), "--seed", "1", "--folder", str(folder)],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    assert found["kills"] == kills
    assert found["steps"] > 0
    return found


@pytest.mark.slow
def test_two_hundred_kills_always_leave_a_loadable_state(folder: Path) -> None:
    found = run(200, folder)
    assert found["inside a save"] > 40, "the kills hit what they were aimed at"
