"""Makes `.venv` from the lock, once: `python requirements/environment.py` (what `make` calls before anything else).

Needs Python >= 3.11 and nothing else: uv comes from PATH or, by the hashes in `uv.txt`, from the package index that pip
is set up for. Digests of the files it depends on stand in `.venv/.complete`; equal digests end the call at once. An
interrupted or moved environment is made anew. Two calls at a time: the second waits and finds the work done.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
COMPLETE = VENV / ".complete"
INCOMPLETE = VENV / ".incomplete"
INPUTS = ("requirements/lock.txt", "requirements/uv.txt", "pyproject.toml", "setup.py")
STOPPING = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 3.0
"""How long an installer may take to end when it is asked to."""
HELP = """no way to install packages was found: Python has neither `ensurepip` nor `pip`, and there is no `uv` on PATH.
  -> install one of them, e.g. `apt install python3-pip` (Debian, Ubuntu), or uv; then run make again"""


def state() -> str:
    """What a complete environment was made from and where; one line each."""
    lines = [f"{name} {hashlib.sha256((ROOT / name).read_bytes()).hexdigest()}" for name in INPUTS]
    return "\n".join([f"path {VENV}", *lines, ""])


def python_of(venv: Path) -> Path:
    return venv / "bin" / "python"


def version_of(venv: Path) -> str:
    """`3.11` of an environment's own interpreter, or an empty text if it does not run."""
    if not python_of(venv).exists():
        return ""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    result = subprocess.run([python_of(venv), "-c", code], capture_output=True, text=True, check=False)
    return result.stdout.strip()


def call(*command: str | Path) -> bool:
    """Whether a command ran well; its words go to the terminal. It, and all it started, ends before we do."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    try:
        return process.wait() == 0
    except BaseException:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(GRACE_SECONDS)
        raise


def interrupt(*_: object) -> None:
    """SIGTERM as Ctrl-C: what is under way is ended on the way out."""
    raise KeyboardInterrupt


def has_module(name: str) -> bool:
    probe = [sys.executable, "-c", f"import {name}"]
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0


def make_empty() -> str:
    """Make the environment with nothing but uv in it; returns the path of the uv to use."""
    pinned = ["install", "--quiet", "--require-hashes", "-r", str(ROOT / "requirements/uv.txt")]
    VENV.mkdir()
    INCOMPLETE.touch()
    found = shutil.which("uv")
    if found:
        made = call(sys.executable, "-m", "venv", "--without-pip", VENV)
    elif has_module("ensurepip"):
        made = call(sys.executable, "-m", "venv", VENV) and call(python_of(VENV), "-m", "pip", *pinned)
    elif has_module("pip"):
        made = call(sys.executable, "-m", "venv", "--without-pip", VENV) and call(
            sys.executable, "-m", "pip", "--python", str(python_of(VENV)), *pinned
        )
    else:
        sys.exit(f"error: {HELP}")
    if not made:
        sys.exit("error: the environment could not be made; the lines above say why")
    return found or str(VENV / "bin" / "uv")


def fill(uv: str) -> None:
    """Bring the environment to exactly what the lock says, plus this project, editable."""
    python = str(python_of(VENV))
    lock, pinned = (str(ROOT / "requirements" / name) for name in ("lock.txt", "uv.txt"))
    hashed = ["--require-hashes", "--build-constraints", lock]
    sync = [uv, "pip", "sync", "--quiet", "--python", python, *hashed, lock, pinned]
    own = [uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--no-build-isolation", "-e", str(ROOT)]
    if not (call(*sync) and call(*own)):
        sys.exit("error: the packages of requirements/lock.txt could not be installed; the lines above say why")


def main(chosen: bool) -> None:
    """chosen: whether the user named the interpreter; then an environment of another version is made anew."""
    wanted = state()
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        version = version_of(VENV)
        fits = version and (version == own or not chosen)
        if fits and COMPLETE.exists() and COMPLETE.read_text() == wanted:
            return
        start = time.monotonic()
        version = version if fits else own
        print(f"environment: .venv from requirements/lock.txt, Python {version} (2 GB where not cached)", flush=True)
        moved = COMPLETE.exists() and f"path {VENV}\n" not in COMPLETE.read_text()
        uv = VENV / "bin" / "uv"
        if INCOMPLETE.exists() or moved or not fits or not uv.exists():
            shutil.rmtree(VENV, ignore_errors=True)
            uv = Path(make_empty())
        INCOMPLETE.touch()
        COMPLETE.unlink(missing_ok=True)
        fill(str(uv))
        partial = COMPLETE.with_suffix(".new")
        partial.write_text(wanted)
        partial.replace(COMPLETE)
        INCOMPLETE.unlink()
        print(f"environment: ready after {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    try:
        main(chosen="--chosen" in sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("environment: interrupted; the next call starts over")
