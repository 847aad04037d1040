"""Where each feature of one key lies, and its bytes made local: what a feature store reads with. No torch."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from io import BufferedReader

import numpy as np

from stageline.data.feature_files import FILE_NAME, INDEX, Array, Layout, ShardIndex, parse_index
from stageline.data.pod_cache import StoredFiles
from stageline.data.reading import OPEN_SHARDS, mapped
from stageline.errors import DataError
from stageline.store import NotFoundError, Store

LARGE_BYTES = 2**20
"""Entries of this size and more are fetched alone from an object store. Chosen here: a request costs less than that."""
REMEDY = "delete that folder of the cache; what is missing is computed anew"
UNREAD, SOUND, DAMAGED = 0, 1, 2
"""What this process knows of the bytes of an entry."""
TABLE = np.dtype([("id", "S32"), ("sha256", "S32"), ("start", "<u8"), ("shard", "<u4"), ("layout", "<u4")])


class FeatureTable:
    """The entries of a folder, about 100 bytes of memory each; shards are mapped when they are asked for.

    damaged: file or id -> what is wrong with it, as far as this process saw.
    """

    def __init__(self, folder: Store, cache_bytes: int | None = None) -> None:
        self.folder = folder
        self.damaged: dict[str, str] = {}
        self._cache_bytes = cache_bytes
        self._files: StoredFiles | None = None
        self._table = np.empty(0, TABLE)
        self._state = np.empty(0, np.int8)
        self._layouts: list[Layout] = []
        self._shards: dict[str, tuple[str, int]] = {}
        self._open: OrderedDict[int, Array] = OrderedDict()

    def __len__(self) -> int:
        """How many ids are known."""
        return len(np.unique(self._table["id"]))

    @property
    def files(self) -> StoredFiles:
        """The files of the folder, made local."""
        if self._files is None:
            self._files = StoredFiles(self.folder, cache_bytes=self._cache_bytes, what="feature cache", remedy=REMEDY)
        return self._files

    def has(self, name: str) -> bool:
        """Whether there is a copy that is not known to be damaged."""
        return any(self._state[row] != DAMAGED for row in self._rows(name))

    def refresh(self) -> None:
        """Learn of what was committed since the last look."""
        self.take(self._new_indexes())

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
            with self.files.open(name, size) as file:
                return parse_index(file.read())
        data = self.folder.get(name)
        if hashlib.sha256(data).hexdigest() != name.partition(".")[0]:
            raise self.files.fault(name, "its hash is not its name")
        return parse_index(data)

    def take(self, indexes: Iterable[tuple[str, ShardIndex]]) -> None:
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

    def entry(self, name: str) -> tuple[Layout, Array]:
        """Layout and bytes of the first sound copy of an entry."""
        if not self.has(name):
            self.refresh()
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
            return mapped(lambda: self.files.open_part(part, layout.size, arrays, start), layout.size, part)
        data = self._mapped(shard, arrays, size)[start : start + layout.size]
        if self._state[row] != SOUND:
            if hashlib.sha256(data.data).hexdigest() != sha256:
                raise self.files.fault(arrays, f"the hash of {layout.size} bytes from {start} is another")
            self._state[row] = SOUND
        return data

    def _mapped(self, shard: int, arrays: str, size: int) -> Array:
        if shard not in self._open:
            self._open[shard] = mapped(lambda: self._open_whole(arrays, size), size, arrays)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _open_whole(self, arrays: str, size: int) -> BufferedReader:
        local = self.folder.local
        if local is None:
            return self.files.open(arrays, size)
        try:
            file = local.open(arrays)
        except NotFoundError:
            raise self.files.fault(arrays, "missing") from None
        found = os.fstat(file.fileno()).st_size
        if found != size:
            file.close()
            raise self.files.fault(arrays, f"{found} bytes, expected {size}")
        return file
