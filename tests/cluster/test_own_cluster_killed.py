"""A cluster of ours that is killed at any point comes up again, and one that is down has left nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster import process
from cluster.mounts import mounts_below
from cluster.state import current

from .conftest import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.owns_nodes]


@dataclass(frozen=True)
class Second:
    """Another cluster beside the one under test, with the same programs: one that may be killed."""

    root: Path
    name: str = "drill"

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "cluster", *words]

    @property
    def environment(self) -> dict[str, str]:
        own = {"STAGELINE_CLUSTER_DIR": str(self.root), "STAGELINE_CLUSTER_NAME": self.name}
        return {**os.environ, **own}

    def run(self, *words: str) -> str:
        done = subprocess.run(
            self.argv(*words), cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up_killed_after(self, seconds: float) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        argv = self.argv("up", "--no-images")
        with subprocess.Popen(argv, cwd=ROOT, env=self.environment, **quiet) as begun:
            time.sleep(seconds)
            begun.send_signal(signal.SIGKILL)

    def remains(self) -> list[str]:
        """What is left of it outside its folder: asked of the kernel, not of the records."""
        found = [f"process {pid}" for pid in process.marked(process.DAEMON_MARK, self.root)]
        found += [f"mount {point}" for point in mounts_below(self.root)]
        found += [str(path) for path in process.NETNS.glob(f"{self.name}-*")]
        found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{self.name}")]
        found += [str(path) for path in Path("/sys/fs/cgroup").glob(self.name)]
        return found + [str(path) for path in Path("/var/lib/cni/results").glob(f"{self.name}-*")]


@pytest.fixture
def second() -> Iterator[Second]:
    """A second cluster that is not up; whatever becomes of it is removed."""
    cluster = Second(current().root.with_name("drill"))
    if cluster.root.exists():  # a killed predecessor's
        cluster.run("down", "--purge")
    # Links: the programs lie on the disk once.
    shutil.copytree(current().bin, cluster.root / "bin", symlinks=True, copy_function=os.link)
    yield cluster
    cluster.run("down", "--purge")
    assert not cluster.root.exists()


def test_up_works_after_a_kill_at_any_point_and_down_leaves_nothing(second: Second) -> None:
    for seconds in (0.5, 2.0, 5.0, 9.0, 14.0, 20.0):
        second.up_killed_after(seconds)
    second.run("up", "--no-images")
    second.run("status")
    for pid in process.marked(process.DAEMON_MARK, second.root):
        os.kill(pid, signal.SIGKILL)
    second.run("up", "--no-images")
    second.run("status")
    second.run("down")
    assert second.remains() == []


def test_down_after_a_kill_at_any_point_leaves_nothing(second: Second) -> None:
    for seconds in (3.0, 12.0):
        second.up_killed_after(seconds)
        second.run("down")
        assert second.remains() == []
