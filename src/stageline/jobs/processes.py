"""Processes that end with their starter: parent-death signals, subreaping and watching, as Linux offers them.

On other systems the calls do nothing; there a job ends by its own signal handling alone.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from stageline.printing import LONGEST_LINE

PR_SET_PDEATHSIG = 1
"""<linux/prctl.h>"""
PR_SET_CHILD_SUBREAPER = 36
"""<linux/prctl.h>"""

_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None
"""Resolved at import: between fork and exec nothing may be loaded."""


def die_with_parent(signum: int = signal.SIGTERM) -> None:
    """Have the kernel send `signum` to this process when the thread that started it ends. Survives exec."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)


def adopt_orphans() -> None:
    """Make this process the new parent of every descendant whose own parent dies, so that none can be lost."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(pid: int) -> list[int]:
    """All living descendants of a process, parents before children; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    try:
        names = os.listdir("/proc")  # noqa: PTH208  # asked many times a second
    except FileNotFoundError:
        return []
    for name in filter(str.isdecimal, names):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                state, parent, *_ = file.read().rpartition(b")")[2].split(maxsplit=2)
        except OSError:  # it ended meanwhile
            continue
        if state != b"Z":
            children.setdefault(int(parent), []).append(int(name))
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def is_marked(pid: int, mark: str) -> bool:
    """Whether a process was started with `mark` (`NAME=value`) in its environment."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it ended meanwhile
        return False
    return mark.encode() in environment.split(b"\0")


def kill_marked(mark: str, *, spare: int = 0, limit_seconds: float = 5.0) -> list[int]:
    """SIGKILL every descendant of this process that has `mark` in its environment, until none is left.

    Orphans count too, once `adopt_orphans` was called. spare: a child whose exit status its `Popen` will collect.
    Returns those that could not be ended in time.
    """
    end = time.monotonic() + limit_seconds
    while True:
        left = [pid for pid in descendants(os.getpid()) if is_marked(pid, mark)]
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _reap(set(left) - {spare})
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.02)


def _reap(pids: set[int]) -> None:
    """Collect the exit status of adopted children among `pids`, so that no zombie is left."""
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue


def bounded_lines(output: IO[str]) -> Iterator[str]:
    """The lines of a program as they come, without their ends; one longer than LONGEST_LINE comes in several."""
    while line := output.readline(LONGEST_LINE + 1):
        yield line.removesuffix("\n")


def watch_process(pid: int, on_end: Callable[[], None]) -> threading.Thread:
    """Call `on_end` from a background thread once the process `pid` has ended (at once if it has already)."""

    def wait() -> None:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            on_end()
            return
        except (AttributeError, OSError):  # no pidfd here: look twice a second
            while Path(f"/proc/{pid}").exists():
                time.sleep(0.5)
            on_end()
            return
        try:
            select.select([handle], [], [])
        finally:
            os.close(handle)
        on_end()

    thread = threading.Thread(target=wait, name=f"watch-{pid}", daemon=True)
    thread.start()
    return thread
