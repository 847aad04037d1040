"""`.ci/run` when it is stopped: what it started has tidied up and ended. The targets of make are played here."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guards import HANG_SECONDS

from stageline.jobs.processes import descendants

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = """
test:
	@mkdir -p .venv && {python} tests.py "a word in quotes"; true
clean:
	@touch cleaned
"""
TESTS = """
import subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(100)"], stdout=-1)
child.stdout.readline()  # an interpreter that only starts may lose a signal
try:
    Path(".venv/running").touch()
    time.sleep(100)
finally:
    time.sleep(0.3)
    Path(".venv/late").mkdir()
    child.wait()
    Path("tidied").touch()
"""


@pytest.mark.parametrize(
    ("number", "late"),
    [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)],
    ids=["SIGINT", "SIGTERM", "before-it-waits"],
)
def test_a_stopped_run_leaves_no_process_and_no_environment(tmp_path: Path, number: signal.Signals, late: bool) -> None:
    """late: the shell has started the tests and comes to its next command only later, as on a busy machine."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci")
    if late:
        script = (tmp_path / ".ci/run").read_text()
        assert " & wait $!" in script
        (tmp_path / ".ci/run").write_text(script.replace(" & wait $!", " & sleep 1; wait $!"))
    (tmp_path / "Makefile").write_text(MAKEFILE.format(python=sys.executable))
    (tmp_path / "tests.py").write_text(TESTS)
    run = subprocess.Popen(
        [tmp_path / ".ci/run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell can't trap what its parent ignores
    )
    end = time.monotonic() + HANG_SECONDS
    while not (tmp_path / ".venv/running").exists():
        assert time.monotonic() < end
        assert run.poll() is None
        time.sleep(0.02)
    started = descendants(run.pid)
    assert len(started) >= 4, "make, its shell, the tests and their child"
    run.send_signal(number)
    words, _ = run.communicate(timeout=HANG_SECONDS)
    assert run.returncode == 128 + number, words
    assert (tmp_path / "tidied").exists(), "by Ctrl-C, which tests can answer"
    assert (tmp_path / "cleaned").exists()
    assert not (tmp_path / ".venv").exists()
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
