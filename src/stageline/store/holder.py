"""Which process holds something in a store, written down so that another can tell whether it is dead."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Marks of this process: host, pid, born."""
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "born": _born(pid)}


def is_dead(marks: Mapping[str, Any]) -> bool:
    """Whether the marked process ran on this machine and is gone; False for other machines, of which nobody knows.

    marks: as somebody wrote them down; ValueError for what are none.
    """
    if not (isinstance(marks, Mapping) and type(marks.get("pid")) is int and isinstance(marks.get("host"), str)):
        raise ValueError(f"marks of a process are host, pid and born, found {marks!r:.200}")
    return bool(marks["host"] == _host() and _born(marks["pid"]) != marks.get("born"))


def _host() -> str:
    """This machine since its last start, seen from this process namespace: where process numbers mean the same."""
    parts = [socket.gethostname()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    if boot.is_file():
        parts.append(boot.read_text(encoding="ascii").strip())
    if space.exists():
        parts.append(str(space.readlink()))
    return "/".join(parts)


def _born(pid: int) -> str | None:
    """When a process started (clock ticks since boot), None if there is no such process or it is a zombie.

    Where there is no /proc, the empty text for a living process.
    """
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").is_file():
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in ("Z", "X") else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""
