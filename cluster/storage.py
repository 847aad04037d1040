"""Persistent volumes: folders that both nodes see, made beforehand, and taken back once their claim is gone."""

from __future__ import annotations

import json
from typing import Any

from cluster.control_plane import kubectl
from cluster.mounts import remove_tree
from cluster.network import HEAD
from cluster.state import State, current

CLASS = "shared"
COUNT = 12
CAPACITY = "200Gi"
"""Nominal: a claim of any usual size must find one; what it may use is what the disk has."""


def name(index: int) -> str:
    """The name of a volume and of its folder."""
    return f"shared-{index:02d}"


def volume(state: State, index: int) -> dict[str, Any]:
    """One PersistentVolume over a folder in the state directory."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name(index), "labels": {"stageline/head": HEAD.name}},
        "spec": {
            "storageClassName": CLASS,
            "capacity": {"storage": CAPACITY},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(state.volumes / name(index)), "type": "Directory"},
        },
    }


def make(state: State) -> None:
    """Make the class's volumes and their folders; those that are there stay as they are."""
    for index in range(1, COUNT + 1):
        make_folder(state, name(index))
    items = [volume(state, index) for index in range(1, COUNT + 1)]
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    kubectl(state, "apply", "--server-side", "-f", "-", text=document)


def make_folder(state: State, volume_name: str) -> None:
    """A folder that any user of any pod may write to."""
    folder = state.volumes / volume_name
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)


def recycle(state: State | None = None) -> list[str]:
    """Empty the volumes whose claim was deleted and offer them again; returns their names."""
    state = state or current()
    volumes = json.loads(kubectl(state, "get", "pv", "-o", "json"))["items"]
    done = []
    for item in volumes:
        volume_name = item["metadata"]["name"]
        if item["status"].get("phase") != "Released" or not (state.volumes / volume_name).is_dir():
            continue
        remove_tree(state.volumes / volume_name)
        make_folder(state, volume_name)
        claim = item["spec"]["claimRef"]
        # Only if it is still that claim's: another one may have asked in between.
        patch = [{"op": "test", "path": "/spec/claimRef/uid", "value": claim["uid"]}]
        patch.append({"op": "remove", "path": "/spec/claimRef"})
        kubectl(state, "patch", "pv", volume_name, "--type=json", "-p", json.dumps(patch))
        done.append(volume_name)
    return done
