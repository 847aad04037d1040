"""Whether a run's config can become jobs on a cluster: an image to start, a store that every pod reaches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from stageline.config import RunConfig, home_paths
from stageline.config.cluster import ClusterConfig, StorageConfig
from stageline.errors import ConfigError, Faults, PlanError
from stageline.families import config_class
from stageline.work.evaluations import asked_checkpoints

SHARED = ("s3://", "gs://")
"""Roots that every pod reaches without a claim."""


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
    faults.extend(image_faults(config.cluster))
    faults.extend(root_faults(config.root, config.cluster.storage))
    faults.extend(checkpoint_faults(config))
    faults.raise_if_any()


def image_faults(cluster: ClusterConfig) -> Iterator[str]:
    """Why a section `cluster` names nothing that a pod could start."""
    if not cluster.image:
        yield "cluster.image is empty: give the trainer image of this version, best by digest, as name@sha256:…"


def root_faults(root: str, storage: StorageConfig) -> Iterator[str]:
    """Why pods, and whoever reads their results, would not find the same root.

    root: as pods get it.
    storage: what is mounted into them.
    """
    path, mount = PurePosixPath(root), PurePosixPath(storage.mount_path)
    if "://" in root:
        if not root.startswith(SHARED):
            yield f"root {root!r} is not shared by pods: expected {' or '.join(SHARED)}, or a folder of a claim"
    elif not storage.claim:
        yield (
            f"root {root!r} is a folder of one machine, or of one pod and gone with it: give root=s3://bucket/folder, "
            "or cluster.storage.claim=<PersistentVolumeClaim>"
        )
    elif not path.is_relative_to(mount):
        yield (
            f"root {root!r} lies outside {str(mount)!r}, where pods see the claim {storage.claim!r}: "
            f"give root={mount}/<folder>"
        )


def home_faults(raw: Mapping[str, Any]) -> Iterator[str]:
    """Which paths of a raw config that pods read begin with a home folder."""
    for key in home_paths(raw, config_class(raw)):
        yield f"{key}: `~` is the home folder of whoever reads it, and pods have none of yours: write the path they see"


def checkpoint_faults(config: RunConfig) -> Iterator[str]:
    """Which checkpoints a config names by a path that pods do not have."""
    storage = config.cluster.storage
    mounts = [mount.mount_path for mount in config.cluster.mounts] + ([storage.mount_path] if storage.claim else [])
    named = {f"parents.{stage}.{role}": name for stage, of in config.parents.items() for role, name in of.items()}
    named |= {f"evaluate.checkpoints.{name}": uri for name, uri in asked_checkpoints(config).items()}
    for key, name in named.items():
        path = name.removeprefix("file://")
        if path.startswith("/") and not any(PurePosixPath(path).is_relative_to(mount) for mount in mounts):
            yield (
                f"{key}={name}: a path of this machine, which pods do not have: bring that checkpoint below the root, "
                "or give its URI in a store"
            )


def check_mounted(config: RunConfig) -> None:
    """PlanError where jobs would write into a claim that whoever starts them does not see."""
    storage = config.cluster.storage
    if "://" in config.root or Path(storage.mount_path).is_dir():
        return
    raise PlanError(
        f"root {config.root!r} lies on the claim {storage.claim!r}, not mounted here at {storage.mount_path!r}",
        remedy=f"submit the pipeline that mounts it ({config.family}_pvc.yaml, parameter `claim`), or give root=s3://…",
    )
