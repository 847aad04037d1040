"""Features of frozen encoders, kept below the root under a hash of everything they depend on, shared by all runs.

    cache/features/<key>/
      about.json               what the key stands for, and what whoever writes noted
      <sha256>.safetensors     arrays; with <sha256>.json, written after it, they count (`feature_files`)
      filling/                 leases of the processes that are at it

The key is a hash of what all entries have in common: the owner's content or the external's digest, and settings. An
entry's id is the SHA-256 of what it was made from (a picture, a picture with its prompt), so that what is asked twice
is kept once. Nothing is ever changed: any number of processes may write at the same time, and what one of them wrote
before it was killed counts. An entry is checked against its own hash when a process reads it first. On disk it is read
where it lies; from an object store a large one (LARGE_BYTES) is fetched alone and a small one with its shard, once per
pod, into the cache that prepared data use. Of each entry about 100 bytes are held in memory. No torch but in `tensor`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from stageline.checkpoint.lease import LEASE_NAME, StageLease
from stageline.config import canonical_json, fingerprint
from stageline.data.feature_files import (
    FILE_NAME,
    INDEX,
    SCHEMA,
    SHARD_BYTES,
    Array,
    Layout,
    OpenShard,
    ShardIndex,
    index_bytes,
    parse_index,
    plain_value,
    refuse_wrong_ids,
)
from stageline.data.pod_cache import StoredFiles
from stageline.data.reading import OPEN_SHARDS, mapped
from stageline.data.splits import Progress, silent
from stageline.errors import BusyError, DataError, DiskFullError
from stageline.store import NotFoundError, Store
from stageline.store.scratch import scratch_folder

if TYPE_CHECKING:
    from torch import Tensor

FEATURES = "cache/features"
"""Where the features of all keys lie below a root."""
ABOUT = "about.json"
FILLING = "filling"
LARGE_BYTES = 2**20
"""Entries of this size and more are fetched alone from an object store. Chosen here: a request costs less than that."""
SHARE_ENTRIES, MOST_SHARES = 64, 64
"""Processes that fill a store together divide it into shares of about so many entries, at most so many shares."""
POLL_SECONDS = 0.5
REMEDY = "delete that folder of the cache; what is missing is computed anew"
UNREAD, SOUND, DAMAGED = 0, 1, 2
"""What this process knows of the bytes of an entry."""
TABLE = np.dtype([("id", "S32"), ("sha256", "S32"), ("start", "<u8"), ("shard", "<u4"), ("layout", "<u4")])

Make = Callable[[Sequence[str]], Iterable["tuple[str, Array | Tensor]"]]
"""Some ids -> each with its feature, one after the other."""


class FeatureStore:
    """The features of one key. Travels to other processes without its open files."""

    def __init__(self, place: Store, parts: Mapping[str, Any], cache_bytes: int | None = None) -> None:
        """place: the folder of all keys.

        parts: what every entry depends on beside what it is made from, as JSON values: `{"owner": content, "settings":
        {...}}`.  cache_bytes: as `data.cache_bytes`.
        """
        self.parts = dict(parts)
        self.key = fingerprint({"schema": SCHEMA, **self.parts})
        self.folder = place.child(self.key)
        self.damaged: dict[str, str] = {}
        """File or id -> what is wrong with it, as far as this process saw; such entries are missing."""
        self._cache_bytes = cache_bytes
        self._forget()

    @classmethod
    def open(cls, root: Store, parts: Mapping[str, Any], cache_bytes: int | None = None) -> FeatureStore:
        """The features of a key below a root; nothing is read or made yet."""
        return cls(root.child(FEATURES), parts, cache_bytes)

    def _forget(self) -> None:
        self._files: StoredFiles | None = None
        self._table = np.empty(0, TABLE)
        self._state = np.empty(0, np.int8)
        self._layouts: list[Layout] = []
        self._shards: dict[str, tuple[str, int]] = {}
        self._open: OrderedDict[int, Array] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts, "key": self.key, "folder": self.folder, "_cache_bytes": self._cache_bytes}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self.damaged = {}
        self._forget()

    def __len__(self) -> int:
        """How many entries there are; looks at the store."""
        self._refresh()
        return len(np.unique(self._table["id"]))

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those that are not there or damaged, each once, in order; asks the store about those that are not known."""
        wanted = list(dict.fromkeys(ids))
        refuse_wrong_ids(wanted)
        if all(self._has(name) for name in wanted):
            return []
        self._refresh()
        return [name for name in wanted if not self._has(name)]

    def _has(self, name: str) -> bool:
        """Whether there is a copy that is not known to be damaged."""
        return any(self._state[row] != DAMAGED for row in self._rows(name))

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
        fields: dict[str, Any] = json.loads(self._entry(name)[0].fields)
        return fields

    @property
    def notes(self) -> dict[str, Any]:
        """What was noted about the key; {} where nothing was."""
        try:
            plain = json.loads(self.folder.get(ABOUT))
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
        local = self.folder.local_path()
        if local is not None:
            local.mkdir(parents=True, exist_ok=True)
        with scratch_folder("features", local) as scratch, FeatureWriter(self, scratch, shard_bytes) as writer:
            yield writer

    def fill(self, ids: Iterable[str], make: Make, progress: Progress = silent) -> int:
        """Have all of these entries; returns how many were made here.

        Processes that ask for the same at the same time (ranks, runs) take shares, each under a lease: one makes it,
        the others go on with the next and wait at the end. What a process made before it died is kept; its share is
        taken over by another. make: gives the features of some ids.
        DataError where it does not give all of them; DiskFullError, after the first, where the rest has no room.
        """
        wanted = list(dict.fromkeys(ids))
        missing, made = self.missing(wanted), 0
        count = max(1, min(MOST_SHARES, math.ceil(len(wanted) / SHARE_ENTRIES)))
        while missing:
            progress(len(wanted) - len(missing), len(wanted), "computing features")
            at_work = False
            numbers = sorted({_share_of(name, count) for name in missing}, key=lambda n: (n - os.getpid()) % count)
            for number in numbers:
                with self._share(f"{count}-{number}") as held:
                    if held:
                        share = self.missing(name for name in missing if _share_of(name, count) == number)
                        made += self._make(share, make, len(missing))
                        at_work = True
            missing = self.missing(missing)
            if missing and not at_work:
                progress(len(wanted) - len(missing), len(wanted), "waiting for features that another process computes")
                time.sleep(POLL_SECONDS)
        return made

    def _make(self, ids: Sequence[str], make: Make, still: int) -> int:
        """Make one share. still: entries that are missing in all of them."""
        left = dict.fromkeys(ids)
        if not left:
            return 0
        with self.writer() as writer:
            for name, value in make(list(left)):
                if name not in left:
                    raise DataError(f"a feature was made for {name!r}, which nobody asked for")
                if len(left) == len(ids):
                    self.refuse_full(plain_value(name, value)[1].nbytes * still)
                del left[name]
                writer.add(name, value)
        if left:
            raise DataError(f"{len(left)} of {len(ids)} features were not made, among them {next(iter(left))!r}")
        return len(ids)

    @contextmanager
    def _share(self, name: str) -> Iterator[bool]:
        """Whether this process holds a share now. A lease that is lost costs work that is done twice, nothing else."""
        place = _Share(self.folder.child(FILLING, name))
        with ExitStack() as stack:
            try:
                stack.enter_context(StageLease.acquire(place, "features"))
            except BusyError:
                yield False
                return
            yield True
        place.store.delete(LEASE_NAME)

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
        self._take([(name, index)])

    def _refresh(self) -> None:
        """Learn of what was committed since the last look."""
        self._take(self._new_indexes())

    def _new_indexes(self) -> Iterator[tuple[str, ShardIndex]]:
        """The sound indexes that are not known yet, one after the other."""
        there = {info.key: info.size for info in self.folder.list() if FILE_NAME.fullmatch(info.key)}
        for name in sorted(set(there) - self._shards.keys()):
            if not name.endswith(INDEX):
                continue
            try:
                index = self._read_index(name, there[name])
            except (DataError, ValueError) as error:
                self.damaged[name] = str(error)
                continue
            if there.get(index.arrays) != index.size:
                self.damaged[name] = f"{index.arrays} is missing or not of {index.size} bytes"
                continue
            yield name, index

    def _read_index(self, name: str, size: int) -> ShardIndex:
        if not self.files.in_place:
            return parse_index(self.files.local(name, size).read_bytes())
        data = self.folder.get(name)
        if hashlib.sha256(data).hexdigest() != name.partition(".")[0]:
            raise self.files.fault(name, "its hash is not its name")
        return parse_index(data)

    def _take(self, indexes: Iterable[tuple[str, ShardIndex]]) -> None:
        """Put the entries of shards into the table. indexes: names of indexes and what they say."""
        parts, known = [self._table], {layout: number for number, layout in enumerate(self._layouts)}
        for name, index in indexes:
            if name in self._shards:  # written again, so that what was damaged there is sound
                shard = list(self._shards).index(name)
                self._state[self._table["shard"] == shard] = UNREAD
                self._open.pop(shard, None)
            else:
                parts.append(self._rows_of(index, len(self._shards), known))
                self._shards[name] = (index.arrays, index.size)
            for key in (name, *index.places):
                self.damaged.pop(key, None)
        table = np.concatenate(parts)
        order = np.argsort(table["id"], kind="stable")
        state = np.zeros(len(table), np.int8)
        state[: len(self._state)] = self._state
        self._table, self._state, self._layouts = table[order], state[order], list(known)

    def _rows_of(self, index: ShardIndex, shard: int, layouts: dict[Layout, int]) -> Array:
        """The entries of a shard as rows of the table. shard: its number.  layouts: numbers; new ones are added."""
        rows = np.empty(len(index.places), TABLE)
        for row, (entry, place) in enumerate(index.places.items()):
            number = layouts.setdefault(place.layout, len(layouts))
            rows[row] = (bytes.fromhex(entry), bytes.fromhex(place.sha256), place.start, shard, number)
        return rows

    def _rows(self, name: str) -> range:
        """Where an entry stands in the table; several where it was made more than once."""
        key = np.array(bytes.fromhex(name), "S32")
        ids = self._table["id"]
        return range(int(np.searchsorted(ids, key)), int(np.searchsorted(ids, key, "right")))

    def _entry(self, name: str) -> tuple[Layout, Array]:
        """Layout and bytes of the first sound copy of an entry."""
        refuse_wrong_ids([name])
        if not self._has(name):
            self._refresh()
        for row in self._rows(name):
            layout = self._layouts[self._table[row]["layout"]]
            try:
                return layout, self._bytes(row, layout)
            except DataError as error:
                self._state[row] = DAMAGED
                self.damaged[name] = error.message
        why = self.damaged.get(name, "it was never made")
        raise DataError(f"there is no feature {name} at {self.folder.uri!r}: {why}", remedy=REMEDY)

    def _bytes(self, row: int, layout: Layout) -> Array:
        """The bytes of an entry, (N,) uint8, mapped; checked if nobody did so in this process."""
        record = self._table[row]
        start, sha256 = int(record["start"]), record["sha256"].ljust(32, b"\0").hex()
        shard = int(record["shard"])
        arrays, size = list(self._shards.values())[shard]
        if layout.size == 0:
            return np.empty(0, np.uint8)
        if not self.files.in_place and layout.size >= LARGE_BYTES:
            part = f"{sha256}.feature"
            return mapped(lambda: self.files.local_part(part, layout.size, arrays, start), layout.size)
        data = self._mapped(shard, arrays, size)[start : start + layout.size]
        if self._state[row] != SOUND:
            if hashlib.sha256(data.data).hexdigest() != sha256:
                raise self.files.fault(arrays, f"the hash of {layout.size} bytes from {start} is another")
            self._state[row] = SOUND
        return data

    def _mapped(self, shard: int, arrays: str, size: int) -> Array:
        if shard not in self._open:
            self._open[shard] = mapped(lambda: self._local(arrays, size), size)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _local(self, arrays: str, size: int) -> Path:
        path = self.folder.local_path(arrays)
        if path is None:
            return self.files.local(arrays, size)
        found = path.stat().st_size if path.is_file() else -1
        if found != size:
            raise self.files.fault(arrays, "missing" if found < 0 else f"{found} bytes, expected {size}")
        return path

    @property
    def files(self) -> StoredFiles:
        """The files of this key, made local."""
        if self._files is None:
            self._files = StoredFiles(
                self.folder,
                cache_bytes=self._cache_bytes,
                what="feature cache",
                remedy=REMEDY,
            )
        return self._files


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


@dataclass(frozen=True)
class _Share:
    """A part of the entries that one process at a time makes. store: where its lease lies."""

    store: Store

    @property
    def uri(self) -> str:
        return self.store.uri


def _share_of(name: str, count: int) -> int:
    return int(name[:8], 16) % count
