"""Whether a run's config can become jobs on a cluster: an image to start, a store that every pod reaches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from stageline.config import RunConfig
from stageline.config.cluster import StorageConfig
from stageline.errors import ConfigError, Faults, PlanError


def place_root(raw: Mapping[str, Any]) -> str | None:
    """The root of a raw config as pods see it, where it is relative and there is a claim: a folder of that."""
    root, cluster = raw.get("root", "."), raw.get("cluster")
    storage = cluster.get("storage") if isinstance(cluster, Mapping) else None
    if not isinstance(root, str) or "://" in root or root.startswith("/") or not isinstance(storage, Mapping):
        return None
    if not storage.get("claim"):
        return None
    mount = storage.get("mount_path") or StorageConfig().mount_path
    return os.path.normpath(PurePosixPath(str(mount)) / root)


def check_on_cluster(config: RunConfig) -> None:
    """ConfigError with everything that keeps the stages of a config from being jobs."""
    faults = Faults(ConfigError, "stages as jobs on a cluster", "docs/pipeline.md shows both ways to store a run")
    if not config.cluster.image:
        faults.add("cluster.image is empty: give the trainer image, best by digest, as name@sha256:…")
    if "://" not in config.root:
        storage = config.cluster.storage
        path, mount = PurePosixPath(config.root), PurePosixPath(storage.mount_path)
        if not storage.claim:
            faults.add(
                f"root {config.root!r} is a folder of one machine: give root=s3://bucket/folder, or a claim "
                "(cluster.storage.claim)"
            )
        elif not path.is_relative_to(mount):
            faults.add(
                f"root {config.root!r} lies outside {str(mount)!r}, where the claim {storage.claim!r} is mounted"
            )
    faults.raise_if_any()


def check_mounted(config: RunConfig) -> None:
    """PlanError where jobs would write into a claim that whoever starts them does not see."""
    storage = config.cluster.storage
    if "://" in config.root or Path(storage.mount_path).is_dir():
        return
    raise PlanError(
        f"root {config.root!r} lies on the claim {storage.claim!r}, not mounted here at {storage.mount_path!r}",
        remedy=f"submit the pipeline that mounts it ({config.family}_pvc.yaml, parameter `claim`), or give root=s3://…",
    )
