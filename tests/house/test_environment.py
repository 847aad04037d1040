"""`requirements/environment.py`: made once, from the lock, by whichever call comes first. uv is played by a script."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guards import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[2]
UV = """#!/bin/sh
echo "$@" >> "{root}/calls"
cp "$0" "{root}/.venv/bin/uv"
sleep 0.1
exit $(cat "{root}/exit" 2>/dev/null || echo 0)
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like a clone, with a `uv` that only writes down how it was called."""
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / "requirements/environment.py", tmp_path / "requirements")
    for name in ("requirements/lock.txt", "requirements/uv.txt", "pyproject.toml", "setup.py"):
        (tmp_path / name).write_text("first\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/uv").write_text(UV.format(root=tmp_path))
    (tmp_path / "bin/uv").chmod(0o755)
    return tmp_path


def start(clone: Path, *arguments: str) -> subprocess.Popen[str]:
    path = f"{clone / 'bin'}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, str(clone / "requirements/environment.py"), *arguments]
    return subprocess.Popen(
        command, env={**os.environ, "PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def make(clone: Path, *arguments: str) -> tuple[int, str]:
    process = start(clone, *arguments)
    out, err = process.communicate(timeout=HANG_SECONDS)
    return process.returncode, out + err


def syncs(clone: Path) -> int:
    return (clone / "calls").read_text().count("pip sync")


def test_it_is_made_once_from_the_lock_by_its_hashes(clone: Path) -> None:
    code, words = make(clone)
    assert code == 0, words
    assert "ready after" in words
    calls = (clone / "calls").read_text().splitlines()
    assert len(calls) == 2
    assert "pip sync" in calls[0]
    assert "--require-hashes" in calls[0]
    assert str(clone / "requirements/lock.txt") in calls[0]
    assert f"--no-deps --no-build-isolation -e {clone}" in calls[1]
    assert (clone / ".venv/bin/python").exists()
    code, words = make(clone)
    assert (code, words, syncs(clone)) == (0, "", 1)


def test_a_touched_file_is_no_change_and_a_changed_lock_is(clone: Path) -> None:
    make(clone)
    (clone / "pyproject.toml").touch()
    make(clone)
    assert syncs(clone) == 1
    marker = clone / ".venv/kept"
    marker.touch()
    (clone / "requirements/lock.txt").write_text("second\n")
    make(clone)
    assert syncs(clone) == 2
    assert marker.exists()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda venv: (venv / ".incomplete").touch(), id="interrupted"),
        pytest.param(lambda venv: (venv / "bin/python").unlink(), id="interpreter-gone"),
        pytest.param(lambda venv: (venv / ".complete").write_text("path /elsewhere/.venv\n"), id="moved"),
    ],
)
def test_a_damaged_environment_is_made_anew(clone: Path, damage: object) -> None:
    make(clone)
    left_over = clone / ".venv/left-over"
    left_over.touch()
    damage(clone / ".venv")  # type: ignore[operator]
    (clone / "setup.py").write_text("second\n")
    code, words = make(clone)
    assert code == 0, words
    assert not left_over.exists()
    assert not (clone / ".venv/.incomplete").exists()
    assert make(clone) == (0, "")


def test_a_failed_installation_is_an_error_and_starts_over(clone: Path) -> None:
    (clone / "exit").write_text("3")
    code, words = make(clone)
    assert code == 1
    assert "could not be installed" in words
    assert not (clone / ".venv/.complete").exists()
    (clone / "exit").unlink()
    assert make(clone)[0] == 0
    assert (clone / ".venv/.complete").exists()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_stopped_installation_leaves_no_process(clone: Path, number: signal.Signals) -> None:
    """Not the installer, nor what it started, nor anything that could write into an environment that is removed."""
    (clone / "bin/uv").write_text(
        '#!/bin/sh\nsleep 100 &\necho $$ $! > "$0.pids.new"\nmv "$0.pids.new" "$0.pids"\nwait\n'
    )
    process = start(clone)
    pids, end = clone / "bin/uv.pids", time.monotonic() + HANG_SECONDS
    while not pids.exists():
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, words = process.communicate(timeout=HANG_SECONDS)
    assert (process.returncode, words) == (1, "environment: interrupted; the next call starts over\n")
    assert not [pid for pid in map(int, pids.read_text().split()) if is_alive(pid)]


def test_two_calls_at_a_time_make_one_environment(clone: Path) -> None:
    processes = [start(clone) for _ in range(3)]
    words = [process.communicate(timeout=HANG_SECONDS)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert syncs(clone) == 1
    assert sum("ready after" in text for text in words) == 1


def test_an_interpreter_of_another_version_counts_only_where_it_was_chosen(clone: Path) -> None:
    make(clone)
    python = clone / ".venv/bin/python"
    python.unlink()
    python.write_text("#!/bin/sh\necho 3.99\n")
    python.chmod(0o755)
    assert make(clone) == (0, "")
    code, words = make(clone, "--chosen")
    assert code == 0, words
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in words
    assert syncs(clone) == 2


def test_without_any_installer_it_says_what_to_install(clone: Path, tmp_path: Path) -> None:
    (clone / "bin/uv").unlink()
    block = tmp_path / "block"
    block.mkdir()
    (block / "sitecustomize.py").write_text("import sys\nsys.modules['ensurepip'] = sys.modules['pip'] = None\n")
    result = subprocess.run(
        [sys.executable, str(clone / "requirements/environment.py")],
        env={"PATH": str(block), "PYTHONPATH": str(block)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "apt install python3-pip" in result.stderr
