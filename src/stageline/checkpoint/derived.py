"""Files for other programs, made from the weights at commit: written, hashed, and shown in the stage directory.

They are no source of ours: no reader takes a tensor from them, `content` does not count them, and `verify` looks at
their hash alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from stageline.checkpoint.layout import CheckpointRef, StageDir
from stageline.checkpoint.metadata import METADATA_NAME, FileRecord, is_reserved, parse_metadata
from stageline.checkpoint.tensors import Hashed, write_tensors
from stageline.errors import CheckpointError, Faults
from stageline.store import NotFoundError, Store

Content = bytes | Mapping[str, Tensor]
Exports = Callable[[Mapping[str, Tensor]], Mapping[str, Content]]
"""Own tensors on the CPU -> key of a derived file -> its bytes, or tensors for a safetensors file."""


def write_derived(store: Store, files: Mapping[str, Content]) -> dict[str, FileRecord]:
    """Write derived files into a step directory; name -> size and hash.

    files: key below the step directory -> content. CheckpointError for keys that are ours.
    """
    faults = Faults(CheckpointError, "files for other programs", "a fault in the family's `exports`: use other names")
    for name in files:
        if is_reserved(name):
            faults.add(f"{name!r} is a name of ours")
    faults.raise_if_any()
    records = {}
    for name, content in files.items():
        if isinstance(content, bytes):
            chunks = Hashed([content])
            store.put(name, chunks)
            record = chunks.record
        else:
            record = write_tensors(store, name, content, {"format": "pt"})
        records[name] = record.as_kind("derived")
    return records


def derived_names(files: Mapping[str, FileRecord]) -> list[str]:
    """The derived ones of a checkpoint's files."""
    return sorted(name for name, record in files.items() if record.kind == "derived")


def show_best(directory: StageDir, best: CheckpointRef) -> None:
    """Copy metadata and derived files of the best checkpoint into the stage directory, for people and other programs.

    Those of the one before that are not among them go. No reader of ours uses the copies.
    """
    before: list[str] = []
    try:
        shown = parse_metadata(directory.store.get(METADATA_NAME), f"{directory.uri}/{METADATA_NAME}")
        if shown.export_of == best.digest:
            return
        before = derived_names(shown.files)
    except (NotFoundError, CheckpointError):  # none yet, or damaged: written anew below
        before = []
    names = derived_names(best.metadata.files)
    for name in names:
        directory.store.put(name, best.store.stream(name))
    for name in set(before) - set(names):
        directory.store.delete(name)
    exported = best.metadata.model_copy(update={"export_of": best.digest})
    directory.store.put(METADATA_NAME, exported.to_bytes())
