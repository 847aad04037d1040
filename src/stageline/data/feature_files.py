"""The two files of a shard of features: the arrays (safetensors) and the index that says where each lies. No torch.

    <sha256>.safetensors    arrays, one per entry, of at most 256 MiB together with its header
    <sha256>.json           index: the arrays' file, its size, and per entry dtype, shape, begin, SHA-256, fields

Both are named by their content, so equal entries in equal order give equal files. A file of arrays without its index
does not exist for a reader. What an index says is checked before anything is made from it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stageline.config import canonical_json
from stageline.config.bounds import MAX_AXES, is_count, read_json, shape_fault
from stageline.data.splits import DIGEST
from stageline.errors import DataError
from stageline.store.below import open_local, open_new

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = "stageline-features/2"
ARRAYS, INDEX = "safetensors", "json"
SHARD_BYTES = 256 * 2**20
SHARD_ENTRIES = 4096
"""Most entries of one shard."""
HEADER_BYTES = 256
"""Chosen here: room that is left in a shard for the description of each entry."""
FILE_NAME = re.compile(rf"[0-9a-f]{{64}}\.({ARRAYS}|{INDEX})")
DTYPES: Mapping[str, str] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Number format as safetensors names it -> type of its bytes; numpy has no bfloat16."""
FORMATS = {
    "float32": "F32",
    "float16": "F16",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
}
COPY_BYTES = 8 * 2**20

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """What an entry looks like. kind: one of DTYPES.  shape: of its array.  fields: its JSON values, as text."""

    kind: str
    shape: tuple[int, ...]
    fields: str = "{}"

    @property
    def size(self) -> int:
        """Bytes of its array."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.kind]).itemsize

    def numbers(self, data: Array) -> Array:
        """The array of an entry as numpy has it: bfloat16 becomes float32, exactly. data: (size,) uint8."""
        array = data.view(DTYPES[self.kind]).reshape(self.shape)
        return (array.astype(np.uint32) << 16).view(np.float32) if self.kind == "BF16" else array

    def tensor(self, data: Array) -> Tensor:
        """A tensor of its own memory in the number format that was stored. data: (size,) uint8."""
        import torch

        kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        bits = np.array(data).view("<i4" if self.kind == "F32" else "<i2").reshape(self.shape)
        return torch.from_numpy(bits).view(kinds[self.kind])


@dataclass(frozen=True)
class Place:
    """Where an entry lies in its shard. start: its first byte.  sha256: of its array's bytes, 64 hex digits."""

    layout: Layout
    start: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """What an index says. arrays: name of the file of arrays.  size: its bytes.  places: id -> place."""

    arrays: str
    size: int
    places: Mapping[str, Place]


def plain_value(name: str, value: Any) -> tuple[str, Array]:
    """Number format and bytes (N,) uint8 of an array or tensor of float32, float16 or bfloat16; DataError else."""
    kind = FORMATS.get(str(value.dtype))
    if kind is None or value.ndim > MAX_AXES:
        raise DataError(
            f"the feature {name!r} is of type {value.dtype} with {value.ndim} axes",
            remedy="store float32, float16 or bfloat16",
        )
    if str(value.dtype).startswith("torch."):
        import torch

        bits = torch.int32 if kind == "F32" else torch.int16
        value = value.detach().cpu().contiguous().view(bits).numpy()
    array = np.ascontiguousarray(value)
    return kind, array.reshape(-1).view(np.uint8)


@dataclass
class OpenShard:
    """A shard that is being filled. folder: an empty local one."""

    folder: Path
    size: int = 0
    places: dict[str, Place] = field(default_factory=dict)
    _file: BinaryIO | None = None

    def has_room(self, size: int, limit: int) -> bool:
        """Whether `size` more bytes fit under `limit`, of the whole file."""
        count = len(self.places) + 1
        return count <= SHARD_ENTRIES and self.size + size + HEADER_BYTES * (count + 1) <= limit

    def add(self, name: str, layout: Layout, data: Array) -> None:
        """Add an entry. name: its id.  data: (N,) uint8."""
        if self._file is None:
            self._file = open_new(self.folder / "unfinished")
        self._file.write(data.data)
        self.places[name] = Place(layout, self.size, hashlib.sha256(data.data).hexdigest())
        self.size += data.nbytes

    def close(self) -> None:
        """Let go of the unfinished file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self) -> tuple[Path, ShardIndex]:
        """Write the file of arrays whole; where it lies, and its index."""
        self.close()
        header: dict[str, Any] = {"__metadata__": {"schema": SCHEMA}}
        for name, place in self.places.items():
            shape, stop = list(place.layout.shape), place.start + place.layout.size
            header[name] = {"dtype": place.layout.kind, "shape": shape, "data_offsets": [place.start, stop]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        head = len(text).to_bytes(8, "little") + text
        digest, unfinished, path = hashlib.sha256(head), self.folder / "unfinished", self.folder / "finished"
        with os.fdopen(open_local(unfinished), "rb") as source, open_new(path) as target:
            target.write(head)
            while chunk := source.read(COPY_BYTES):
                digest.update(chunk)
                target.write(chunk)
        unfinished.unlink()
        places = {name: Place(p.layout, p.start + len(head), p.sha256) for name, p in self.places.items()}
        return path, ShardIndex(f"{digest.hexdigest()}.{ARRAYS}", len(head) + self.size, places)


def index_bytes(index: ShardIndex) -> tuple[str, bytes]:
    """The name and the bytes of the file that says so."""
    entries = {
        name: [p.layout.kind, list(p.layout.shape), p.start, p.sha256, read_json(p.layout.fields)]
        for name, p in index.places.items()
    }
    plain = {"schema": SCHEMA, "arrays": index.arrays, "size": index.size, "entries": entries}
    data = (json.dumps(plain, sort_keys=True, separators=(",", ":")) + "\n").encode()
    return f"{hashlib.sha256(data).hexdigest()}.{INDEX}", data


def parse_index(data: bytes) -> ShardIndex:
    """An index read back; ValueError that says in what it is none of ours."""
    plain = read_json(data)
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        raise ValueError(f"no {SCHEMA}")
    arrays, size, entries = plain.get("arrays"), plain.get("size"), plain.get("entries")
    if not isinstance(arrays, str) or not FILE_NAME.fullmatch(arrays) or not arrays.endswith(ARRAYS):
        raise ValueError(f"arrays {arrays!r} is no file of ours")
    if not is_count(size) or not isinstance(entries, dict):
        raise ValueError("no size, or no entries")
    places = {}
    for name, entry in entries.items():
        if not DIGEST.fullmatch(name):
            raise ValueError(f"{name!r} is no id")
        places[name] = _place(name, entry, size)
    return ShardIndex(arrays, size, places)


def _place(name: str, entry: Any, size: int) -> Place:
    wrong = ValueError(f"entry {name} is described as {entry!r:.200}")
    if not isinstance(entry, list) or len(entry) != 5:
        raise wrong
    kind, shape, start, sha256, fields = entry
    if kind not in DTYPES or not isinstance(shape, list) or not is_count(start) or not isinstance(fields, dict):
        raise wrong
    if fault := shape_fault(shape, np.dtype(DTYPES[kind]).itemsize):
        raise ValueError(f"entry {name}: {fault}")
    if not isinstance(sha256, str) or not DIGEST.fullmatch(sha256):
        raise wrong
    layout = Layout(kind, tuple(shape), canonical_json(fields))
    if start + layout.size > size:
        raise wrong
    return Place(layout, start, sha256)


def refuse_wrong_ids(ids: Iterable[str]) -> None:
    """DataError for an id that is no SHA-256."""
    wrong = [name for name in ids if not DIGEST.fullmatch(name)]
    if wrong:
        raise DataError(
            f"{wrong[0]!r} is no id of a feature", remedy="give the SHA-256 (64 hex digits) of what it was made from"
        )
