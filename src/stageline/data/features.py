"""Features of frozen encoders, kept below the root under a hash of everything they depend on, shared by all runs.

    cache/features/<key>/
      about.json               what the key stands for, and what whoever writes noted
      <sha256>.safetensors     arrays; with <sha256>.json, written after it, they count (`feature_files`)

The key is a hash of what all entries have in common: the owner's content or the external's digest, and settings. An
entry's id is the SHA-256 of what it was made from (a picture, a picture with its prompt), so that what is asked twice
is kept once. Nothing is ever changed: any number of processes may write at the same time, and what one of them wrote
before it was killed counts. An entry is checked against its own hash when a process reads it first. On disk it is read
where it lies; from an object store a large one (LARGE_BYTES) is fetched alone and a small one with its shard, once per
pod, into the cache that prepared data use. Of each entry about 100 bytes are held in memory. No torch but in `tensor`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stageline.config import canonical_json, fingerprint
from stageline.config.bounds import read_json
from stageline.data.feature_files import (
    SCHEMA,
    SHARD_BYTES,
    Array,
    Layout,
    OpenShard,
    ShardIndex,
    index_bytes,
    plain_value,
    refuse_wrong_ids,
)
from stageline.data.feature_table import FeatureTable
from stageline.errors import DataError, DiskFullError
from stageline.store import NotFoundError, Store, open_below
from stageline.store.scratch import scratch_folder

if TYPE_CHECKING:
    from torch import Tensor

FEATURES = "cache/features"
"""Where the features of all keys lie below a root."""
ABOUT = "about.json"


class FeatureStore:
    """The features of one key. Travels to other processes without its open files."""

    def __init__(self, place: Store, parts: Mapping[str, Any], cache_bytes: int | None = None) -> None:
        """place: the folder of all keys.

        parts: what every entry depends on beside what it is made from, as JSON values: `{"owner": content, "settings":
        {...}}`.  cache_bytes: as `data.cache_bytes`.
        """
        self.parts = dict(parts)
        self.key = fingerprint({"schema": SCHEMA, "parts": self.parts})
        self.folder = place.child(self.key)
        self._cache_bytes = cache_bytes
        self._table = FeatureTable(self.folder, cache_bytes)

    @classmethod
    def open(cls, root: Store, parts: Mapping[str, Any], cache_bytes: int | None = None) -> FeatureStore:
        """The features of a key below a root; nothing is read or made yet."""
        return cls(root.child(FEATURES), parts, cache_bytes)

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts, "uri": self.folder.uri, "cache_bytes": self._cache_bytes}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        place, _, _ = state["uri"].rpartition("/")
        self.__init__(open_below(place), state["parts"], state["cache_bytes"])  # type: ignore[misc]

    def __len__(self) -> int:
        """How many entries there are; looks at the store."""
        self._table.refresh()
        return len(self._table)

    @property
    def damaged(self) -> Mapping[str, str]:
        """File or id -> what is wrong with it, as far as this process saw; such entries are missing."""
        return self._table.damaged

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those that are not there or damaged, each once, in order; asks the store about those that are not known."""
        wanted = list(dict.fromkeys(ids))
        refuse_wrong_ids(wanted)
        if all(self._table.has(name) for name in wanted):
            return []
        self._table.refresh()
        return [name for name in wanted if not self._table.has(name)]

    def has(self, name: str) -> bool:
        """Whether an entry is known to be there and not to be damaged; asks nobody, see `refresh`."""
        return self._table.has(name)

    def refresh(self) -> None:
        """Learn of what others wrote since the last look at the store."""
        self._table.refresh()

    def read(self, name: str) -> Array:
        """The array of an entry, read-only; bfloat16 comes as float32 with the same values.

        name: its id. DataError where it is not there or damaged.
        """
        layout, data = self._entry(name)
        return layout.numbers(data)

    def tensor(self, name: str) -> Tensor:
        """The same as a tensor of its own memory, in the number format that was stored."""
        layout, data = self._entry(name)
        return layout.tensor(data)

    def fields(self, name: str) -> dict[str, Any]:
        """The JSON fields of an entry."""
        fields: dict[str, Any] = read_json(self._entry(name)[0].fields)
        return fields

    def _entry(self, name: str) -> tuple[Layout, Array]:
        refuse_wrong_ids([name])
        return self._table.entry(name)

    @property
    def notes(self) -> dict[str, Any]:
        """What was noted about the key; {} where nothing was."""
        try:
            plain = read_json(self.folder.get(ABOUT))
        except (NotFoundError, ValueError):
            return {}
        notes = plain.get("notes") if isinstance(plain, dict) else None
        return notes if isinstance(notes, dict) else {}

    def note(self, notes: Mapping[str, Any]) -> None:
        """Note what follows from the key and helps to ask for features (an encoder's own picture size)."""
        if self.notes != dict(notes):
            about = {"schema": SCHEMA, "parts": self.parts, "notes": dict(notes)}
            self.folder.put(ABOUT, (json.dumps(about, indent=1, sort_keys=True) + "\n").encode())

    @contextmanager
    def writer(self, num_bytes: int = 0, shard_bytes: int = SHARD_BYTES) -> Iterator[FeatureWriter]:
        """A writer of entries: full shards are committed as they come, the last one at the end.

        num_bytes: what will be added, as far as it is known; DiskFullError before the first where it has no room.
        shard_bytes: most bytes of one shard.
        """
        self.refuse_full(num_bytes)
        local = self.folder.local
        place = scratch_folder("features") if local is None else local.scratch("features")
        with place as scratch, FeatureWriter(self, scratch, shard_bytes) as writer:
            yield writer

    def refuse_full(self, num_bytes: int) -> None:
        """DiskFullError where so many more bytes have no room in the store."""
        free = self.folder.free_bytes()
        if free is not None and free < num_bytes:
            raise DiskFullError(
                f"{num_bytes} bytes of features have no room at {self.folder.uri!r}, {free} are free",
                remedy="make room, or put `root` onto a larger disk",
            )

    def commit(self, index: ShardIndex, path: Path) -> None:
        """Put a finished shard into the store, its index last. path: its file of arrays."""
        self.refuse_full(index.size)
        name, data = index_bytes(index)
        self.folder.put(index.arrays, path)
        self.folder.put(name, data)
        self._table.take([(name, index)])


@dataclass
class FeatureWriter:
    """Adds entries to a store. folder: an empty local one.  shard_bytes: most bytes of one shard."""

    store: FeatureStore
    folder: Path
    shard_bytes: int = SHARD_BYTES
    _shard: OpenShard | None = field(default=None)

    def add(self, name: str, value: Array | Tensor, fields: Mapping[str, Any] | None = None) -> None:
        """Add an entry; it counts once its shard is committed.

        name: its id.  value: array or tensor of float32, float16 or bfloat16, of any shape.
        fields: JSON values; few different ones in one store.
        DataError for an id, a number format or a size that cannot be written.
        """
        refuse_wrong_ids([name])
        kind, data = plain_value(name, value)
        layout = Layout(kind, tuple(value.shape), canonical_json(dict(fields or {})))
        if self._shard is not None and not self._shard.has_room(data.nbytes, self.shard_bytes):
            self.flush()
        if self._shard is None:
            self._shard = OpenShard(self.folder)
        if name in self._shard.places:
            raise DataError(f"the feature {name!r} was added twice")
        if not self._shard.has_room(data.nbytes, self.shard_bytes):
            raise DataError(f"the feature {name!r} has {data.nbytes} bytes, a shard holds {self.shard_bytes}")
        self._shard.add(name, layout, data)

    def flush(self) -> None:
        """Commit what was added."""
        if self._shard is not None and self._shard.places:
            path, index = self._shard.finish()
            try:
                self.store.commit(index, path)
            finally:
                path.unlink()
        self._shard = None

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit the rest, unless something failed."""
        if kind is None:
            self.flush()
        elif self._shard is not None:
            self._shard.close()
