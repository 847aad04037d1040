"""Mounts and cgroups that the cluster's parts leave when they are killed, and their removal."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import ClusterError
from cluster.state import NAME

DETACH = 2
"""MNT_DETACH of umount2(2): what is busy goes when its last user goes."""


def mounts_below(root: Path) -> list[Path]:
    """Mount points below a folder, deepest first."""
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[1])
        if Path(point).is_relative_to(root):
            found.append(Path(point))
    return found[::-1]


def unmount_below(root: Path) -> None:
    """Detach everything that is mounted below a folder."""
    libc = ctypes.CDLL(None, use_errno=True)
    for point in mounts_below(root):
        libc.umount2(os.fsencode(point), DETACH)
    left = mounts_below(root)
    if left:
        raise ClusterError(
            f"{left[0]} is still mounted after unmounting; expected nothing below {root}; see `umount -l`"
        )


def remove_tree(path: Path) -> None:
    """Remove a folder of ours; refused while anything is mounted in it, since that would be emptied too."""
    if path.is_symlink() or not path.is_dir():  # a socket is no file, and no folder either
        path.unlink(missing_ok=True)
        return
    held = mounts_below(path)
    if held:
        raise ClusterError(
            f"{held[0]} is mounted; expected nothing mounted below {path} before it is removed; run down"
        )
    shutil.rmtree(path)


def hierarchies() -> list[Path]:
    """Roots of the cgroup hierarchies: one on version 2, several on version 1 or both."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(words[1]) for words in lines if words[2] in ("cgroup", "cgroup2")]


def make_cgroup(name: str) -> str:
    """Make /<cluster>/<name> under every hierarchy, fit to run in, and give back that path.

    Version 1 starts nothing in a group whose cpuset is empty; version 2 wants controllers passed down.
    """
    for root in hierarchies():
        pure_v2 = (root / "cgroup.controllers").exists()
        folder = root
        for part in (NAME, name):
            if pure_v2:
                pass_controllers(folder)
            folder = folder / part
            folder.mkdir(exist_ok=True)
            for file in ("cpuset.cpus", "cpuset.mems"):
                if not pure_v2 and (folder / file).exists() and not (folder / file).read_text().strip():
                    (folder / file).write_text((folder.parent / file).read_text())
        if pure_v2:
            pass_controllers(folder)
    return f"/{NAME}/{name}"


def pass_controllers(folder: Path) -> None:
    """Let the children of a version 2 group use every controller that it has."""
    for controller in (folder / "cgroup.controllers").read_text().split():
        try:
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError:  # a controller that can't be passed on here; the kubelet names what it misses
            continue


def cgroup_folders(name: str = "") -> Iterator[Path]:
    """All our groups (of one node, if named), children first."""
    for root in hierarchies():
        top = root / NAME / name
        if top.is_dir():
            for folder, _, _ in os.walk(top, topdown=False):
                yield Path(folder)


def cgroup_pids(name: str = "") -> set[int]:
    """Processes in our groups: the pods'."""
    found: set[int] = set()
    for folder in cgroup_folders(name):
        try:
            found.update(int(pid) for pid in (folder / "cgroup.procs").read_text().split())
            if (folder / "freezer.state").exists():
                (folder / "freezer.state").write_text("THAWED")
        except OSError:
            continue
    return found - {0}


def remove_cgroups() -> None:
    """Remove all our groups; they must be empty of processes. The kernel may take a moment to see that."""
    for _ in range(50):
        for folder in cgroup_folders():
            try:
                folder.rmdir()
            except OSError:
                continue
        left = list(cgroup_folders())
        if not left:
            return
        time.sleep(0.1)
    raise ClusterError(f"the cgroup {left[0]} can't be removed; expected it empty by now; see its cgroup.procs")
