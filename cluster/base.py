"""The base image: Debian bookworm and its Python 3.11, made by debootstrap from the mirror that this machine uses.

There is no public base image to pull where no registry is reachable; a Dockerfile here takes one by `BASE_IMAGE`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cluster.errors import ClusterError
from cluster.images import BASE, buildah, local_id
from cluster.mounts import remove_tree, unmount_below
from cluster.process import run
from cluster.progress import timed
from cluster.state import State

SUITE = "bookworm"
PACKAGES = ("ca-certificates", "python3", "python3-venv", "python3-pip", "netbase", "tzdata")
SOURCES = Path("/etc/apt")


def mirror(folder: Path = SOURCES) -> str:
    """Where this machine gets Debian from: the first source that has the suite's main component."""
    for path in sorted(folder.glob("sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            fields = dict(re.findall(r"^(\w[\w-]*):[ \t]*(.*)$", stanza, flags=re.MULTILINE))
            suites, components = fields.get("Suites", "").split(), fields.get("Components", "").split()
            if SUITE in suites and "main" in components and fields.get("URIs"):
                return str(fields["URIs"].split()[0])
    for path in [folder / "sources.list", *sorted(folder.glob("sources.list.d/*.list"))]:
        lines = path.read_text().splitlines() if path.is_file() else []
        for line in lines:
            entry = re.match(r"deb\s+(?:\[.*?\]\s+)?(\S+)\s+(\S+)\s+(.*)", line)
            if entry and entry[2] == SUITE and "main" in entry[3].split():
                return str(entry[1])
    raise ClusterError(
        f"no source in {folder} has {SUITE}/main; expected one, since the base image is made from this machine's "
        f"Debian mirror; add one, or bring the cluster up with --no-images"
    )


def make(state: State) -> str:
    """Make the base image unless it is there, and give back its name."""
    if local_id(state, BASE):
        return BASE
    root = state.images / "base"
    unmount_below(root)
    remove_tree(root)
    root.mkdir(parents=True)
    with timed("making the base image (debootstrap)", usual="1 min"):
        argv = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, root, mirror()]
        run(state, argv, log=state.logs / "debootstrap.log")
        trim(root)
        container = buildah(state, "from", "scratch").strip().splitlines()[-1]
        try:
            buildah(state, "copy", "--quiet", container, str(root), "/")
            buildah(state, "config", "--env", "LANG=C.UTF-8", "--cmd", "python3", container)
            buildah(state, "commit", "--quiet", container, BASE)
        finally:
            buildah(state, "rm", container)
    unmount_below(root)
    remove_tree(root)
    return BASE


def trim(root: Path) -> None:
    """Make it like the usual Python images: `python` and `pip` work, and no package cache is carried along."""
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    for mark in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        mark.unlink()
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        for current, _, files in os.walk(root / folder):
            for file in files:
                if file != "copyright":
                    (Path(current) / file).unlink()
    # The build sees the machine's own name server and certificates; the image must carry neither.
    (root / "etc/resolv.conf").unlink(missing_ok=True)
