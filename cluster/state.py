"""The state directory: where everything of the cluster lies, and `cluster.json`, which tells tests how to reach it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.progress import say

NAME = os.environ.get("STAGELINE_CLUSTER_NAME") or "stageline"
"""What namespaces, cgroups and pod networks are named after. Two clusters with two names and two state directories live
side by side: that is how the tests kill one without harm to the other."""


@dataclass(frozen=True)
class State:
    """Paths below the state directory; pure, nothing is created by naming it."""

    root: Path

    @property
    def bin(self) -> Path:
        """The programs that were built."""
        return self.root / "bin"

    @property
    def parts(self) -> Path:
        """Manifests taken out of the Go modules."""
        return self.root / "parts"

    @property
    def images(self) -> Path:
        """Records of the images that were built, and the storage they are built in."""
        return self.root / "images"

    @property
    def run(self) -> Path:
        """Process ids, logs and certificates of the cluster that runs; gone after `down`."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        """One log per process, kept after `down` until the next `up`."""
        return self.root / "logs"

    @property
    def volumes(self) -> Path:
        """Folders behind the persistent volumes, shared by both nodes."""
        return self.root / "volumes"

    @property
    def kubeconfig(self) -> Path:
        """Credentials of the cluster's administrator."""
        return self.root / "kubeconfig"

    @property
    def document(self) -> Path:
        """What tests read: see `Own`."""
        return self.root / "cluster.json"

    def node(self, name: str) -> Path:
        """The folder of one node: runtime, kubelet, logs of its pods."""
        return self.root / "nodes" / name


def current() -> State:
    """The state directory that the environment names, else the one in the user's cache."""
    chosen = os.environ.get("STAGELINE_CLUSTER_DIR")
    if chosen:
        return State(Path(chosen).absolute())
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return State(Path(cache) / "stageline" / "cluster")


@dataclass(frozen=True)
class Own:
    """What a test may know about our own cluster, as written to `cluster.json` by `up`."""

    kubeconfig: str
    """Path of the administrator's kubeconfig; its server is reachable inside `netns` only."""
    netns: str
    """Path of the network namespace to run clients in: `nsenter --net=<netns> ...`."""
    nodes: list[str]
    kubectl: str
    helm: str
    kubeconform: str
    registry: str
    """host:port of the image registry, plain HTTP, reachable from both nodes and inside `netns`."""
    storage_class: str
    """The default StorageClass: volumes that both nodes see, ReadWriteMany."""
    s3: dict[str, str]
    """endpoint, region, bucket (made by `up`), access_key and secret_key (the server's root account)."""
    images: dict[str, str] = field(default_factory=dict)
    """Name (trainer, launcher, and base: Python alone) to reference by digest; pulled on both nodes."""


def write_own(state: State, own: Own) -> None:
    """Write `cluster.json` in one step."""
    write_json(state.document, asdict(own))


def read_own(state: State | None = None) -> Own | None:
    """The cluster that `up` described, or None where there is none."""
    try:
        return Own(**json.loads((state or current()).document.read_text()))
    except FileNotFoundError:
        return None


def write_text(path: Path, text: str, mode: int = 0o644) -> Path:
    """Write a whole file or none: a killed writer leaves the old one. An equal file is left alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.read_text() == text:
        return path
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text)
    scratch.chmod(mode)
    scratch.replace(path)
    return path


def write_json(path: Path, value: Any) -> Path:
    """`write_text` of a JSON document."""
    return write_text(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def locked(state: State) -> Iterator[None]:
    """One `up` or `down` at a time per state directory; a second one waits, and says for what."""
    state.root.mkdir(parents=True, exist_ok=True)
    with (state.root / "lock").open("a") as file:
        told = False
        for _ in range(3600):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say(f"another `cluster` command works on {state.root}; waiting for it")
                told = True
                time.sleep(1)
        else:
            raise ClusterError(
                f"another `cluster` command has held {state.root / 'lock'} for an hour; expected minutes; "
                "look at what it does, or end it"
            )
        yield
