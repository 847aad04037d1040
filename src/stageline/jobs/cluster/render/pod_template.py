"""What a pod of ours mounts, as volumes and mounts. Pure.

Only kinds of volume that the pod security level `restricted` allows. Credentials are files of a Secret: the kubelet
renews them while the pod runs, and they stand in no spec, no environment and no log.
"""

from __future__ import annotations

from typing import Any

from stageline.config import ClusterConfig
from stageline.config.cluster import MountConfig
from stageline.store.credentials import DEFAULT_FOLDER as CREDENTIALS_FOLDER
from stageline.store.settings import CA_FILE, CA_FOLDER


def volumes_of(cluster: ClusterConfig) -> list[dict[str, Any]]:
    """The volumes of a pod, in the order of `mounts_of`."""
    storage = cluster.storage
    volumes: list[dict[str, Any]] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": cluster.shared_memory}},
        {"name": "tmp", "emptyDir": {"sizeLimit": cluster.scratch}},
    ]
    if storage.claim:
        volumes.append({"name": "store", "persistentVolumeClaim": {"claimName": storage.claim}})
    if storage.s3 and storage.s3.secret:
        volumes.append({"name": "s3", "secret": {"secretName": storage.s3.secret, "defaultMode": 0o440}})
    if storage.s3 and (storage.s3.ca_config_map or storage.s3.ca_secret):
        items = [{"key": storage.s3.ca_key, "path": CA_FILE.name}]
        if storage.s3.ca_secret:
            source = {"secret": {"secretName": storage.s3.ca_secret, "items": items, "defaultMode": 0o440}}
        else:
            source = {"configMap": {"name": storage.s3.ca_config_map, "items": items, "defaultMode": 0o444}}
        volumes.append({"name": "ca", **source})
    return [*volumes, *({"name": f"mount-{i}", **_source(mount)} for i, mount in enumerate(cluster.mounts))]


def _source(mount: MountConfig) -> dict[str, Any]:
    if mount.secret:
        return {"secret": {"secretName": mount.secret, "defaultMode": 0o440}}
    if mount.config_map:
        return {"configMap": {"name": mount.config_map, "defaultMode": 0o444}}
    return {"persistentVolumeClaim": {"claimName": mount.claim, **({"readOnly": True} if mount.read_only else {})}}


def mounts_of(cluster: ClusterConfig) -> list[dict[str, Any]]:
    """Where the container sees its volumes."""
    storage = cluster.storage
    mounts: list[dict[str, Any]] = [
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
    ]
    if storage.claim:
        mounts.append({"name": "store", "mountPath": storage.mount_path, **_sub_path(storage.sub_path)})
    if storage.s3 and storage.s3.secret:
        mounts.append({"name": "s3", "mountPath": str(CREDENTIALS_FOLDER), "readOnly": True})
    if storage.s3 and (storage.s3.ca_config_map or storage.s3.ca_secret):
        mounts.append({"name": "ca", "mountPath": str(CA_FOLDER), "readOnly": True})
    for index, mount in enumerate(cluster.mounts):
        read_only = {"readOnly": True} if mount.read_only else {}
        mounts.append(
            {"name": f"mount-{index}", "mountPath": mount.mount_path, **_sub_path(mount.sub_path), **read_only}
        )
    return mounts


def _sub_path(path: str) -> dict[str, str]:
    return {"subPath": path} if path else {}
