"""Checkpoints for other programs: one self-contained `model.safetensors` with its config and metadata in a folder.

What a parent holds of it goes into the file too; external weights stay with their source. Loads no torch where the
checkpoint's own file is all there is to it.

The metadata says `export_of`; no reader of ours takes an export for a checkpoint.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from stageline.checkpoint.layout import CheckpointRef, resolve
from stageline.checkpoint.metadata import CONFIG_FILE, EMA_FILE, METADATA_NAME, MODEL_FILE, FileRecord
from stageline.checkpoint.verify import verify
from stageline.errors import CheckpointError, ConfigError, Faults
from stageline.store import Reference, Store, open_store

Format = Literal["safetensors"]
FORMATS: tuple[Format, ...] = ("safetensors",)


def export(
    target: CheckpointRef | Reference | str,
    folder: str | Path,
    format: str = "safetensors",  # noqa: A002  # the command line's word
    *,
    weights: Literal["raw", "ema"] | None = None,
) -> Path:
    """Write a checkpoint's weights into an empty local folder; returns the folder.

    weights: raw, ema, or None for ema where there is one. A damaged checkpoint is refused.
    """
    ref = target if isinstance(target, CheckpointRef) else resolve(target)
    path = Path(folder)
    if format not in FORMATS:
        raise ConfigError(f"there is no export format {format!r}", remedy=f"formats: {', '.join(FORMATS)}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{str(path)!r} is not an empty folder", remedy="name a new folder")
    chosen: Literal["raw", "ema"] = weights or ("ema" if ref.metadata.has_weights("ema") else "raw")
    if not ref.metadata.has_weights(chosen):
        raise CheckpointError(f"{ref.uri!r} holds no {chosen} weights", remedy="export weights=raw")
    faults = Faults(CheckpointError, f"{ref.uri} can't be exported", "use a checkpoint that is whole")
    faults.extend(verify(ref))
    faults.raise_if_any()
    store = open_store(path)
    files = {MODEL_FILE: _write_weights(ref, store, chosen)}
    if CONFIG_FILE in ref.metadata.files:
        store.put(CONFIG_FILE, ref.store.get(CONFIG_FILE))
        files[CONFIG_FILE] = ref.metadata.files[CONFIG_FILE]
    for name, record in ref.metadata.files.items():
        if record.kind == "derived":
            store.put(name, ref.store.stream(name))
            files[name] = record
    external = ref.metadata.external_names
    held = {name: record for name, record in ref.metadata.whole.items() if name not in external}
    metadata = ref.metadata.model_copy(
        update={"export_of": ref.digest, "files": files, "tensors": {"model": held}, "referenced": {}}
    )
    store.put(METADATA_NAME, metadata.to_bytes())
    return path


def _write_weights(ref: CheckpointRef, store: Store, weights: Literal["raw", "ema"]) -> FileRecord:
    """Copy the weights' file; shards, an average and what parents hold are joined into one."""
    key = MODEL_FILE if weights == "raw" else EMA_FILE
    group = "model" if weights == "raw" else "ema"
    held = set(ref.metadata.whole) - ref.metadata.external_names
    if key in ref.metadata.files and set(ref.metadata.tensors[group]) == held:
        store.put(MODEL_FILE, ref.store.stream(key))
        total = hashlib.sha256()
        for chunk in store.stream(MODEL_FILE):
            total.update(chunk)
        if total.hexdigest() != ref.metadata.files[key].sha256:
            raise CheckpointError(f"{ref.uri}/{key} changed while it was copied", remedy="export again")
        return ref.metadata.files[key]
    from stageline.checkpoint.header import header_texts
    from stageline.checkpoint.tensors import read_tensors, write_tensors

    return write_tensors(store, MODEL_FILE, read_tensors(ref, weights), header_texts(ref.metadata, weights))
