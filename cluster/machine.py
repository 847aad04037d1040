"""What a machine needs to carry the cluster: said in words where it lacks something, installed where Debian has it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from cluster import parts, process, project
from cluster.errors import ClusterError, MissingError
from cluster.mounts import hierarchies
from cluster.progress import timed
from cluster.state import State

PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "etcd": "etcd-server",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "setsid": "util-linux",
    "sysctl": "procps",
    "openssl": "openssl",
    "curl": "curl",
}
"""Program to the Debian package that has it."""
BRIDGE = Path("/usr/lib/cni/bridge")

GIGABYTE = 10**9
DISK = {"building the programs": 10, "the images and what both nodes unpack of them": 25}
"""What a cold start needs at its peak, in GB, measured."""
LONGEST_ROOT = 60
"""Longest path of the state directory: a Unix socket's path ends at 107, and ours go deeper."""


def system_path() -> str:
    """PATH, with the folders of system programs, which some shells leave out."""
    return f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"


def missing(state: State) -> list[str]:
    """All that this machine lacks and that nobody can install for it; empty if a cluster can be made."""
    if platform.system() != "Linux":
        return [f"Linux (this is {platform.system()}): nodes are made of network namespaces and cgroups"]
    found = []
    if os.geteuid() != 0:
        found.append(f"root (this is user {os.geteuid()}): namespaces, cgroups and mounts are made")
    if not hierarchies():
        found.append("cgroups (none are mounted): pods run in them")
    if parts.missing(state):
        found += missing_go()
    if packages() and shutil.which("apt-get", path=system_path()) is None:
        found.append(f"the programs of {', '.join(packages())}, or apt-get to install them")
    if len(str(state.root)) > LONGEST_ROOT:
        found.append(
            f"a shorter path than {state.root} ({len(str(state.root))} characters; at most {LONGEST_ROOT}, "
            "since sockets lie in it): set STAGELINE_CLUSTER_DIR"
        )
    kind = file_system(state.root)
    if kind in ("overlay", "tmpfs", "nfs", "nfs4", "9p"):
        found.append(
            f"a disk below {state.root} (this is {kind}; layers of images lie in it): set STAGELINE_CLUSTER_DIR"
        )
    return found


def missing_go() -> list[str]:
    """Whether there is a Go that is new enough for every part."""
    lines = [re.search(r"^go (\d+)\.(\d+)", p.read_text(), re.MULTILINE) for p in parts.FOLDER.glob("*/go.mod")]
    wanted = max((int(m[1]), int(m[2])) for m in lines if m)
    words = f"Go >= {wanted[0]}.{wanted[1]}"
    if shutil.which("go") is None:
        return [f"{words} (there is no `go` in PATH): the programs are built from source"]
    done = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=False)
    found = re.match(r"go(\d+)\.(\d+)", done.stdout)
    if not found or (int(found[1]), int(found[2])) < wanted:
        return [f"{words} (this is {done.stdout.strip() or 'a Go that does not run'}): the pinned sources ask for it"]
    return []


def file_system(path: Path) -> str:
    """The kind of file system that a path, or its nearest parent that exists, lies on."""
    while not path.exists():
        path = path.parent
    best, kind = Path("/"), ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        point, name = Path(line.split()[1].replace("\\040", " ")), line.split()[2]
        if path.resolve().is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, kind = point, name
    return kind


def packages() -> list[str]:
    """Debian packages that must be installed."""
    wanted = {package for program, package in PACKAGES.items() if shutil.which(program, path=system_path()) is None}
    if not BRIDGE.exists():
        wanted.add("containernetworking-plugins")
    return sorted(wanted)


def check(state: State) -> None:
    """Raise, in words, if this machine can't carry the cluster, or is carrying another one."""
    lacks = missing(state)
    if lacks:
        raise MissingError(
            "this machine can't carry a cluster; it lacks:\n" + "\n".join(f"  - {line}" for line in lacks)
        )
    for pid, root in process.marked(process.DAEMON_MARK).items():
        if root != str(state.root):
            raise ClusterError(
                f"another cluster runs here, from {root} (process {pid}); expected none, since both would be named "
                f"alike; run `STAGELINE_CLUSTER_DIR={root} make cluster-down` first"
            )


def install(state: State) -> None:
    """Install the Debian packages that are missing."""
    wanted = packages()
    if not wanted:
        return
    with timed(f"installing {', '.join(wanted)}", usual="1 min"):
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        process.run(state, ["apt-get", "update", "-q"], env=env, log=state.logs / "apt-update.log")
        argv = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *wanted]
        process.run(state, argv, env=env, log=state.logs / "apt-install.log")


def check_disk(state: State, *, with_images: bool) -> None:
    """Raise if the disk has less room than what is still to be made needs."""
    state.root.mkdir(parents=True, exist_ok=True)
    build, unpack = DISK.values()
    needed = build if parts.missing(state) else 1
    if with_images and not project.record(state, "trainer").exists():
        needed += unpack
    free = shutil.disk_usage(state.root).free / GIGABYTE
    if free < needed:
        raise ClusterError(
            f"{free:.0f} GB are free at {state.root}; {needed} GB are needed "
            f"({sum(DISK.values())} GB for a cold start: "
            + ", ".join(f"{size} for {what}" for what, size in DISK.items())
            + "); free some, or set STAGELINE_CLUSTER_DIR to a larger disk"
        )
