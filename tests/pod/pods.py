"""Pods as processes: `stageline-entry` with small programs in place of torchrun and the ranks.

Run as a program it is the entry itself, with the stand-ins put in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from guards import HANG_SECONDS

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
ranks = [
    subprocess.Popen([sys.executable, *words[2:]], start_new_session=True,
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


class PodProcess:
    """An entry that runs."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
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
) -> PodProcess:
    """Start an entry whose ranks run the text `rank`. groups: a folder in place of /sys/fs/cgroup."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "message").write_text("")
    (folder / "agent.py").write_text(AGENT)
    (folder / "rank.py").write_text(RANK + lines(rank))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {folder / "agent.py"} "$@"\n')
    python.chmod(0o755)
    plan = {
        "python": str(python),
        "command": [sys.executable, str(folder / "rank.py")],
        "groups": str(groups) if groups else "",
    }
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
    with (folder / "output.txt").open("w") as output:
        command = [sys.executable, __file__, json.dumps(plan), *arguments]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables, text=True)
    return PodProcess(process, folder)


def run_pod(folder: Path, rank: str, **options: Any) -> PodEnd:
    """Start a pod and wait for its end."""
    return start_pod(folder, rank, **options).end()


def main() -> int:
    from stageline.pod.entry import run_entry
    from stageline.pod.memory import count_oom_kills

    plan = json.loads(sys.argv[1])
    groups = plan["groups"]
    options: dict[str, Any] = {"count_kills": lambda: count_oom_kills(Path(groups))} if groups else {}
    return run_entry(sys.argv[2:], python=plan["python"], command=plan["command"], **options)


if __name__ == "__main__":
    sys.exit(main())
