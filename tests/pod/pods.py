"""Pods as processes: `stageline-entry` with small programs for torchrun and the ranks (`-S`: they need no packages).

The entry is forked from the tests' own process, so that its modules are loaded once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from guards import HANG_SECONDS

from stageline.pod import attempt, program
from stageline.pod.entry import run_entry
from stageline.pod.memory import count_oom_kills

AGENT = """
import os, signal, subprocess, sys, time
words = sys.argv[1:]
assert words[:4] == ["-m", "torch.distributed.run", "-m", "stageline.pod.rank"], words
if os.environ.get("AGENT_FAILS"):
    from pathlib import Path
    counter = Path(os.environ["AGENT_FAILS"])
    left = int(counter.read_text())
    if left:
        counter.write_text(str(left - 1))
        print("torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: no store")
        sys.exit(1)
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(15))
waits = ["-c", "import time; time.sleep(1000)"]
ranks = [
    subprocess.Popen([sys.executable, *(waits if n == 0 and os.environ.get("FIRST_RANK_WAITS") else words[2:])],
                     start_new_session=True,
                     env={**os.environ, "RANK": str(n), "LOCAL_RANK": str(n)})
    for n in range(int(os.environ["PET_NPROC_PER_NODE"]))
]
told = False
while any(rank.poll() is None for rank in ranks):
    if not told and (asked or any(rank.poll() for rank in ranks)):
        told = True
        for rank in ranks:
            if rank.poll() is None:
                os.killpg(rank.pid, signal.SIGTERM)
    time.sleep(0.02)
while os.environ.get("AGENT_HANGS"):
    time.sleep(1)
sys.exit(int(any(rank.returncode for rank in ranks)) or int(os.environ.get("AGENT_ENDS", "0")))
"""
"""What torchrun does as far as the entry sees it: 1 whatever happened, SIGTERM to all when one fails."""

RANK = """
import json, os, pathlib, signal, sys, time
rank = int(os.environ.get("RANK", "0"))
def record(kind, code, sentence="it went wrong", at=None):
    folder = pathlib.Path(os.environ["STAGELINE_FAILURE_DIR"])
    name = "failure.json" if rank == 0 else f"failure-rank-{rank}.json"
    plain = {"kind": kind, "code": "", "sentence": sentence, "remedy": "mend it", "exit_code": code, "rank": rank,
             "time": at or time.time(), "log_tail": []}
    (folder / name).write_text(json.dumps(plain))
    sys.exit(code)
def lose_peers(*_):
    record("peer_lost", 138, "another rank went away")
def sleep():
    end = time.monotonic() + 100
    while time.monotonic() < end:
        time.sleep(0.05)
"""
"""Words a stand-in for a rank may use."""


def lines(text: str) -> str:
    return textwrap.dedent(text).strip() + "\n"


@dataclass
class PodEnd:
    """message: the termination message, empty after success."""

    code: int
    output: str
    message: dict[str, Any]


class Forked:
    """A child of this process, by the verbs of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise TimeoutError(f"process {self.pid} has not ended")
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.wait(HANG_SECONDS)


class PodProcess:
    """An entry that runs."""

    def __init__(self, process: Forked, folder: Path) -> None:
        self.process = process
        self.folder = folder

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    def wait_for(self, text: str) -> None:
        """Return when a line with `text` has come."""
        end = time.monotonic() + HANG_SECONDS
        while text not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.02)

    def end(self) -> PodEnd:
        """Wait for the end."""
        try:
            code = self.process.wait(HANG_SECONDS)
        finally:
            self.process.kill()
        text = (self.folder / "message").read_text() if (self.folder / "message").exists() else ""
        return PodEnd(code, self.output, json.loads(text) if text else {})


def start_pod(
    folder: Path,
    rank: str,
    *,
    arguments: tuple[str, ...] = ("train", "film"),
    ranks: int = 2,
    environment: Mapping[str, str] | None = None,
    groups: Path | None = None,
    patience: Mapping[str, float] | None = None,
) -> PodProcess:
    """Start an entry whose ranks run the text `rank`.

    groups: a folder in place of /sys/fs/cgroup.
    patience: seconds in place of constants of `stageline.pod.program` and `stageline.pod.attempt`, by their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "message").write_text("")
    (folder / "agent.py").write_text(AGENT)
    (folder / "rank.py").write_text(RANK + lines(rank))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S {folder / "agent.py"} "$@"\n')
    python.chmod(0o755)
    own = {key: value for key, value in os.environ.items() if not key.startswith(("STAGELINE_", "PET_"))}
    variables = {
        **own,
        "PET_NNODES": "1",
        "PET_NPROC_PER_NODE": str(ranks),
        "PET_SHUTDOWN_TIMEOUT": "20",
        "STAGELINE_JOB": "a-film",
        "STAGELINE_TERMINATION_LOG": str(folder / "message"),
        "POD_NAME": "a-film-worker-0",
        "POD_UID": "12345678-90",
        "TMPDIR": str(folder),
        **(environment or {}),
    }
    options: dict[str, Any] = {"count_kills": lambda: count_oom_kills(groups)} if groups else {}
    command = [sys.executable, "-S", str(folder / "rank.py")]

    def body() -> int:
        for name, seconds in (patience or {}).items():
            setattr(program if hasattr(program, name) else attempt, name, seconds)
        return run_entry(arguments, python=str(python), command=command, **options)

    return PodProcess(fork(body, folder / "output.txt", variables), folder)


def fork(body: Callable[[], int], output: Path, environment: Mapping[str, str]) -> Forked:
    """A new process that ends with the code `body` returns; its output goes to a file."""
    output.touch()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Forked(pid)
    code = 1
    try:
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None
        with output.open("w") as out, open(os.devnull) as nothing:  # noqa: PTH123  # descriptors, which are kept
            os.dup2(nothing.fileno(), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
            try:
                code = body()
            except BaseException:  # noqa: BLE001  # whoever waits sees it in output and code
                traceback.print_exc()
            sys.stdout.flush()
    finally:
        os._exit(code)


def run_pod(folder: Path, rank: str, **options: Any) -> PodEnd:
    """Start a pod and wait for its end."""
    return start_pod(folder, rank, **options).end()
