"""What a checkpoint is and where it comes from, as plain data for people and reports. Loads no torch."""

from __future__ import annotations

import math
from typing import Any

from stageline.checkpoint.layout import CheckpointRef, open_checkpoint, resolve
from stageline.checkpoint.metadata import CONFIG_FILE, ParentRecord
from stageline.config import parse_yaml
from stageline.errors import CheckpointError, StoreError
from stageline.store import NotFoundError, Reference, Store, open_below

MAX_DEPTH = 64
"""Chosen here: no family has so many stages; a longer chain is a loop."""


def describe(target: CheckpointRef | Reference | str) -> dict[str, Any]:
    """Everything worth knowing about a checkpoint, JSON values, without its tensors."""
    ref = target if isinstance(target, CheckpointRef) else resolve(target)
    metadata = ref.metadata
    plain = metadata.model_dump(mode="json", by_alias=True, exclude={"tensors", "seal", "export_of"})
    groups = {
        name: {"tensors": len(records), "parameters": sum(math.prod(r.shape) for r in records.values())}
        for name, records in metadata.tensors.items()
    }
    others = [(f"referenced {role}", owner.tensors) for role, owner in metadata.referenced.items()]
    others += [(f"external {key}", external.tensors) for key, external in metadata.externals.items()]
    groups |= {
        name: {"tensors": len(records), "parameters": sum(math.prod(r.shape) for r in records.values())}
        for name, records in others
    }
    for owner in (*plain["referenced"].values(), *plain["externals"].values()):
        owner.pop("tensors")
    total = sum(record.bytes for record in metadata.files.values())
    return {"uri": ref.uri, "digest": ref.digest, "content": ref.content, "bytes": total, "groups": groups, **plain}


def own_config(ref: CheckpointRef) -> dict[str, Any]:
    """The config a checkpoint was made with, as raw data. CheckpointError where it has none."""
    try:
        raw = parse_yaml(ref.store.get(CONFIG_FILE).decode(), f"{ref.uri}/{CONFIG_FILE}")
    except NotFoundError as error:
        raise CheckpointError(
            f"{ref.uri} has no {CONFIG_FILE}: nothing says how to build its model",
            remedy="use another checkpoint, or import the file again",
        ) from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{ref.uri}/{CONFIG_FILE} holds no config", remedy="use another checkpoint")
    return raw


def lineage(target: CheckpointRef | Reference | str) -> list[dict[str, Any]]:
    """The checkpoint and all it descends from, parents after their child: role, depth, stage, step, what was inherited.

    Each entry has a status: present, missing (not where it was) or another (something else lies there now).
    """
    ref = target if isinstance(target, CheckpointRef) else resolve(target)
    entries: list[dict[str, Any]] = []
    _add(entries, ref, "", None, 0)
    return entries


def _add(entries: list[dict[str, Any]], ref: CheckpointRef, role: str, link: ParentRecord | None, depth: int) -> None:
    metadata = ref.metadata
    entry = _entry(role, depth, ref.uri, ref.digest, link)
    entries.append({**entry, "run": metadata.run, "stage": metadata.stage, "step": metadata.step, "status": "present"})
    if depth >= MAX_DEPTH:
        raise CheckpointError(f"{ref.uri!r} descends from itself", remedy="the metadata was tampered with")
    for parent_role, parent in metadata.parents.items():
        found, status = find_parent(ref, parent)
        if found is not None:
            _add(entries, found, parent_role, parent, depth + 1)
            continue
        uri = parent.uri if ref.root is None else ref.locate(parent.uri)
        entry = _entry(parent_role, depth + 1, uri, parent.digest, parent)
        entries.append({**entry, "run": "", "stage": parent.stage, "step": parent.step, "status": status})


def _entry(role: str, depth: int, uri: str, digest: str, link: ParentRecord | None) -> dict[str, Any]:
    return {
        "role": role,
        "depth": depth,
        "uri": uri,
        "digest": digest,
        "weights": link.weights if link else "",
        "sections": link.sections if link else [],
    }


def find_parent(ref: CheckpointRef, parent: ParentRecord) -> tuple[CheckpointRef | None, str]:
    """(parent, status): below the child's own root where it lies there, else where its link says."""
    status = "missing"
    for store in _places(ref, parent):
        try:
            if store.list():
                return open_checkpoint(store, parent.digest), "present"
        except CheckpointError:
            status = "another"
        except StoreError:
            continue
    return None, status


def _places(ref: CheckpointRef, parent: ParentRecord) -> list[Store]:
    """Where a parent may lie: a link of schema `stageline/1` is whole, and its tree may have been moved or copied."""
    if "://" not in parent.uri and not parent.uri.startswith("/"):
        return [] if ref.root is None else [open_below(ref.locate(parent.uri))]
    _, mark, rest = parent.uri.rpartition("/runs/")
    own = [ref.root.child("runs", *rest.split("/"))] if ref.root is not None and mark else []
    return [*own, *([] if own and own[0].uri == parent.uri else [open_below(parent.uri)])]
