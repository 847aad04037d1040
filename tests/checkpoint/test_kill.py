"""A process that is killed while it saves leaves something that loads, every time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_drill.py"


def run(kills: int, folder: Path) -> dict[str, int]:
    """One drill in a process of its own: forking wants a parent without threads."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(kills), "--seed", "1", "--folder", str(folder)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    assert found["kills"] == kills
    assert found["steps"] > 0
    return found


@pytest.mark.slow
def test_two_hundred_kills_always_leave_a_loadable_state(tmp_path: Path) -> None:
    found = run(200, tmp_path)
    assert found["inside a save"] > 40, "the kills hit what they were aimed at"
