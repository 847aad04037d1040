"""Runs a function in forked ranks, so that importing torch is paid once: exit codes, output and results come back."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guards import HANG_SECONDS


@dataclass(frozen=True)
class RankEnd:
    """How a rank ended. code: exit code, negative for a signal.  value: what the function returned."""

    code: int
    value: Any
    output: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(rank: int, size: int, port: int) -> dict[str, str]:
    if size == 1:
        return {}
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }


def _child(body: Callable[[int], Any], rank: int, size: int, port: int, folder: Path) -> None:
    code = 1
    try:
        with (folder / f"out-{rank}.txt").open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            sys.stdout = sys.stderr = out
            os.environ.update(_environment(rank, size, port))
            try:
                value = body(rank)
                (folder / f"value-{rank}.json").write_text(json.dumps(value))
                code = 0
            except BaseException as error:  # noqa: BLE001  # the parent sees it in output and code
                traceback.print_exc()
                code = getattr(error, "exit_code", 1)
            out.flush()
    finally:
        os._exit(code)


def run_ranks(body: Callable[[int], Any], size: int, folder: Path) -> list[RankEnd]:
    """Call `body(rank)` in `size` forked processes and wait for all; a hang ends in a kill and a failed assert."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("value-*.json"):
        old.unlink()
    port = free_port()
    sys.stdout.flush()
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            _child(body, rank, size, port, folder)
        pids.append(pid)
    codes: dict[int, int] = {}
    end = time.monotonic() + HANG_SECONDS
    while len(codes) < size:
        for rank, pid in enumerate(pids):
            if rank not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            for rank, pid in enumerate(pids):
                if rank not in codes:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            texts = "\n".join((folder / f"out-{rank}.txt").read_text() for rank in range(size))
            raise AssertionError(f"ranks hung, ended: {codes}\n{texts}")
        time.sleep(0.01)
    ends = []
    for rank in range(size):
        path = folder / f"value-{rank}.json"
        value = json.loads(path.read_text()) if path.exists() else None
        ends.append(RankEnd(codes[rank], value, (folder / f"out-{rank}.txt").read_text()))
    return ends
