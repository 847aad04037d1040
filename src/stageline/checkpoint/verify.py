"""Is a checkpoint whole? Sizes, hashes, headers and tensor names against its metadata; loads no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from stageline.checkpoint.header import SHARDING_KEY, Header, header_faults, read_header
from stageline.checkpoint.layout import CheckpointRef, open_checkpoint, resolve
from stageline.checkpoint.metadata import CLAIM_NAME, METADATA_NAME, TensorRecord, record_fault
from stageline.checkpoint.steps import ASIDE_NAME, Damaged, open_owner
from stageline.errors import CheckpointError, Faults, difference
from stageline.store import Reference

ROLES = {"model": "raw", "ema": "ema"}


def verify(target: CheckpointRef | Reference | str, *, hashes: bool = True) -> list[str]:
    """What is wrong with a checkpoint, one line per fault; an empty list if it is whole.

    target: a checkpoint or a name `resolve` takes (a name that leads nowhere raises CheckpointError).
    hashes: also read every byte; without it sizes, headers and names are compared.
    """
    ref = target if isinstance(target, CheckpointRef) else resolve(target)
    try:
        open_checkpoint(ref.store, ref.digest)
    except CheckpointError as error:
        return [error.message]
    metadata = ref.metadata
    there = {info.key: info.size for info in ref.store.list()}
    faults = [
        f"{name}: not in the metadata"
        for name in sorted({*there} - {*metadata.files, METADATA_NAME, CLAIM_NAME, ASIDE_NAME})
    ]
    for name, record in sorted(metadata.files.items()):
        if name not in there:
            faults.append(f"{name}: missing")
        elif there[name] != record.bytes:
            faults.append(f"{name}: {there[name]} bytes, expected {record.bytes}")
        elif hashes and (found := _hash(ref, name)) != record.sha256:
            faults.append(f"{name}: its bytes changed: SHA-256 {found}, expected {record.sha256}")
        elif name.endswith(".safetensors") and metadata.file_kinds[name] != "derived":
            faults.extend(_header_faults(ref, name))
    if "model" not in metadata.tensors:
        faults.append("model: the metadata lists no weights")
    for role in metadata.referenced:
        faults.extend(_owner_faults(ref, role, hashes=hashes))
    return faults


def _owner_faults(ref: CheckpointRef, role: str, *, hashes: bool) -> list[str]:
    """What is wrong with the parent that holds tensors of this checkpoint."""
    owner = ref.metadata.referenced[role]
    try:
        held = open_owner(ref, role)
    except CheckpointError as error:
        return [error.message]
    faults = [f"parent {role!r}, {held.uri}: {fault}" for fault in verify(held, hashes=hashes)]
    if held.content != owner.content:
        faults.append(f"parent {role!r}, {held.uri}: content {held.content}, expected {owner.content}")
    known = held.metadata.whole
    lines = (record_fault(name, record, known.get(name), held.uri) for name, record in owner.tensors.items())
    return faults + [line for line in lines if line]


def refuse_damaged(ref: CheckpointRef) -> None:
    """CheckpointError where a finished checkpoint is no longer what was committed; reads every byte."""
    faults = Faults(CheckpointError, f"checkpoint {ref.uri}", Damaged(ref.store, "").remedy)
    faults.extend(verify(ref))
    faults.raise_if_any()


def group_of(name: str) -> str:
    """Which group of tensors a file belongs to: `model.safetensors` and `model/shard….safetensors` to `model`."""
    stem = name.removesuffix(".safetensors")
    return stem.rpartition("/")[0] if "/shard-" in stem else stem


def _hash(ref: CheckpointRef, name: str) -> str:
    total = hashlib.sha256()
    for chunk in ref.store.stream(name):
        total.update(chunk)
    return total.hexdigest()


def _header_faults(ref: CheckpointRef, name: str) -> list[str]:
    """Header and names of one file against the metadata."""
    try:
        header = read_header(ref.store, name)
    except CheckpointError as error:
        return [error.message]
    group = group_of(name)
    role = ROLES.get(group, "training")
    faults = header_faults(header, ref.metadata, role, name)
    return faults + _name_faults(header, ref.metadata.tensors.get(group, {}), name)


def _name_faults(header: Header, expected: Mapping[str, TensorRecord], name: str) -> list[str]:
    if SHARDING_KEY in header.texts:
        strange = sorted(set(header.spans) - set(expected))
        return [f"{name}: holds {tensor!r}, which the metadata does not know" for tensor in strange]
    found = {key: f"{r.dtype} {list(r.shape)}" for key, r in header.records.items()}
    said = {key: f"{r.dtype} {list(r.shape)}" for key, r in expected.items()}
    return [f"{name}: file against metadata: {line}" for line in difference(found, said)]
