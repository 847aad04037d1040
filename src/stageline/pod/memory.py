"""Whether the kernel killed a process of this container because its memory was used up.

A process killed so leaves nothing but signal 9, which also an eviction or the kubelet sends; the kernel's own counter
tells them apart. Where the whole container is killed at once (cgroup v2 with `memory.oom.group`, the kubelet's way
since 1.28), this process is gone too, and the pod's status says OOMKilled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def count_oom_kills(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """How often the kernel has killed in this container's memory group; None where nobody says.

    root: where the groups are mounted; mostly the container's own view, in which its group is the root.
    own: which group this process is in, for the cases in which it is not.
    """
    for path in _counters(root, own):
        try:
            found = re.search(r"^oom_kill (\d+)$", path.read_text(encoding="ascii"), re.MULTILINE)
        except (OSError, UnicodeDecodeError):
            continue
        if found:
            return int(found[1])
    return None


def _counters(root: Path, own: Path) -> Iterator[Path]:
    """Files that may hold the counter, the most particular first; version 2 and version 1."""
    groups = {"": "", "memory": ""}
    try:
        for line in own.read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            groups |= {kind: path.strip("/") for kind in kinds.split(",") if kind in groups}
    except (OSError, ValueError):
        groups = {"": "", "memory": ""}
    for folder in dict.fromkeys((root / groups[""], root)):
        yield folder / "memory.events"
    for folder in dict.fromkeys((root / "memory" / groups["memory"], root / "memory")):
        yield folder / "memory.oom_control"
