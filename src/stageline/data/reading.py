"""Reading a split row by row: nothing is opened before it is asked for, and memory does not grow with the rows.

Table and shards are mapped into memory; the arrays that come out are views of a shard, read-only. One that was divided
between shards is read piece by piece, or put together in memory. What a file says is checked before anything is made
from it: names, bounds, types, sizes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from io import BufferedReader
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stageline.config.bounds import is_count, read_json, shape_fault
from stageline.data.pod_cache import StoredFiles
from stageline.data.quarantine import SetAside
from stageline.data.shards import DTYPES, row_type
from stageline.data.splits import NAME, REMEDY, SplitManifest
from stageline.errors import DataError

OPEN_SHARDS = 16
"""Shards that one reader holds open; those used longest ago are closed."""
ATTEMPTS = 5
LINE_BYTES = 64 * 2**20
"""Longest line of a row that is read."""
LINE_PARTS = ("arrays", "divided", "fields")

Array = NDArray[Any]


def mapped(fetch: Callable[[], BufferedReader], size: int, name: str) -> Array:
    """All bytes of a local file, mapped read-only.

    fetch: makes it local again each time, and opens it.  size: its bytes.  name: for messages.
    """
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError), fetch() as file:  # another process made room in the cache at this moment
            return (
                np.asarray(np.memmap(file, dtype=np.uint8, mode="r", shape=(size,))) if size else np.empty(0, np.uint8)
            )
    raise DataError(f"{name} goes away as soon as it is fetched", remedy="raise data.cache_bytes: it is too small")


class SplitReader:
    """The rows of one split. Travels to other processes without its open files."""

    def __init__(self, manifest: SplitManifest, files: StoredFiles) -> None:
        self.manifest = manifest
        self.files = files
        self._table: Array | None = None
        self._lines: Array | None = None
        self._shards: OrderedDict[int, Array] = OrderedDict()

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the family noted of the split when it was made."""
        return self.manifest.facts

    @property
    def set_aside(self) -> tuple[SetAside, ...]:
        """Rows of its sources that could not be used."""
        return self.manifest.set_aside

    def __len__(self) -> int:
        return self.manifest.num_rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None, "_lines": None, "_shards": OrderedDict()}

    def numbers(self, name: str) -> Array:
        """A number of all rows, (N,) int64 or float64, mapped and not copied."""
        if name not in self.manifest.numbers:
            have = ", ".join(sorted(self.manifest.numbers)) or "none"
            raise DataError(f"rows of split {self.name!r} have no number {name!r}", remedy=f"they have: {have}")
        column: Array = self._rows()[name]
        return column

    def fields(self, row: int) -> dict[str, Any]:
        """The JSON fields of a row."""
        fields: dict[str, Any] = self._line(row)["fields"]
        return fields

    def array(self, row: int, name: str) -> Array:
        """One array of a row: a read-only view of its shard. Nothing of the other arrays is read.

        An array that was divided is put together in memory of its own; `pieces` gives it without that.
        """
        line = self._line(row)
        if name in line["divided"]:
            return self._joined(row, name, line["divided"][name])
        if name not in line["arrays"]:
            have = ", ".join(sorted({**line["arrays"], **line["divided"]})) or "none"
            raise DataError(f"row {row} of split {self.name!r} has no array {name!r}", remedy=f"it has: {have}")
        return self._view(row, name, line["arrays"][name])

    def arrays(self, row: int) -> dict[str, Array]:
        """All arrays of a row by name."""
        line = self._line(row)
        found = {name: self._view(row, name, place) for name, place in line["arrays"].items()}
        return found | {name: self._joined(row, name, place) for name, place in line["divided"].items()}

    def pieces(self, row: int, name: str) -> Iterator[Array]:
        """An array of a row in pieces along its first axis, read-only views, one shard after the other.

        An array that lies in one shard is one piece.
        """
        divided = self._line(row)["divided"]
        if name not in divided:
            yield self.array(row, name)
            return
        kind, shape, pieces = self._checked_pieces(row, name, divided[name])
        for number, offset, count in pieces:
            yield self._piece(row, name, kind, (count, *shape[1:]), number, offset)

    def _rows(self) -> Array:
        if self._table is None:
            kind, name = row_type(self.manifest.numbers), self.manifest.rows
            size = self.manifest.sizes[name]
            if size != len(self) * kind.itemsize:
                raise self._fault(f"{name}: {size} bytes for {len(self)} rows of {kind.itemsize}")
            self._table = self._mapped(name).view(kind)
        return self._table

    def _line(self, row: int) -> dict[str, Any]:
        """Fields and layout of a row, checked."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        if self._lines is None:
            self._lines = self._mapped(self.manifest.lines)
        record = self._rows()[row]
        start, size = int(record["@line"]), int(record["@line_bytes"])
        if size > LINE_BYTES or start + size > len(self._lines):
            raise self._fault(f"row {row}: its line lies outside of {self.manifest.lines}")
        try:
            line = read_json(self._lines[start : start + size].tobytes())
        except ValueError as error:
            raise self._fault(f"row {row}: its line is no JSON ({error})") from error
        if isinstance(line, dict):
            line.setdefault("divided", {})
        whole = isinstance(line, dict) and all(isinstance(line.get(part), dict) for part in LINE_PARTS)
        if not whole or not all(NAME.fullmatch(name) for name in (*line["arrays"], *line["divided"])):
            raise self._fault(f"row {row}: its line has no `arrays` and `fields`")
        return dict(line)

    def _view(self, row: int, name: str, place: Any) -> Array:
        record = self._rows()[row]
        kind, shape, offset = self._checked_place(row, name, place, int(record["@bytes"]))
        return self._piece(row, name, kind, shape, int(record["@shard"]), int(record["@offset"]) + offset)

    def _piece(
        self, row: int, name: str, kind: np.dtype[Any], shape: tuple[int, ...], number: int, start: int
    ) -> Array:
        """An array, or a piece of one, as it lies in a shard. number: of the shard.  start: byte it begins at."""
        size = math.prod(shape) * kind.itemsize
        if size == 0:
            return np.empty(shape, kind)
        shard = self._shard(row, number)
        if start + size > len(shard):
            raise self._fault(f"row {row}: array {name!r} ends behind its shard")
        return shard[start : start + size].view(kind).reshape(shape)

    def _joined(self, row: int, name: str, place: Any) -> Array:
        """A divided array, put together; at any time one of its shards is looked at."""
        kind, shape, pieces = self._checked_pieces(row, name, place)
        whole, start = np.empty(shape, kind), 0
        for number, offset, count in pieces:
            whole[start : start + count] = self._piece(row, name, kind, (count, *shape[1:]), number, offset)
            start += count
        return whole

    def _checked_pieces(
        self, row: int, name: str, place: Any
    ) -> tuple[np.dtype[Any], tuple[int, ...], list[tuple[int, int, int]]]:
        """dtype, shape and (shard, offset, parts) of each piece of a divided array."""
        wrong = self._fault(f"row {row}: array {name!r} is described as {place!r:.200}")
        if not isinstance(place, list) or len(place) != 3 or not isinstance(place[2], list):
            raise wrong
        shards = sum(self.manifest.sizes[shard] for shard in self.manifest.shards)
        kind, shape, _ = self._checked_place(row, name, [place[0], place[1], 0], shards)
        for piece in place[2]:
            if not isinstance(piece, list) or len(piece) != 3 or not all(is_count(number) for number in piece):
                raise wrong
        if not shape or sum(piece[2] for piece in place[2]) != shape[0]:
            raise wrong
        return kind, shape, [(number, offset, count) for number, offset, count in place[2]]

    def _checked_place(self, row: int, name: str, place: Any, room: int) -> tuple[np.dtype[Any], tuple[int, ...], int]:
        """dtype, shape and offset of an array. room: bytes of all arrays of the row."""
        wrong = self._fault(f"row {row}: array {name!r} is described as {place!r:.200}")
        if not isinstance(place, list) or len(place) != 3:
            raise wrong
        kind, shape, offset = place
        if kind not in DTYPES or not isinstance(shape, list) or not is_count(offset):
            raise wrong
        if fault := shape_fault(shape, np.dtype(kind).itemsize):
            raise self._fault(f"row {row}: array {name!r}: {fault}")
        if offset + math.prod(shape) * np.dtype(kind).itemsize > room:
            raise wrong
        return np.dtype(kind), tuple(shape), offset

    def _shard(self, row: int, number: int) -> Array:
        if number not in self._shards:
            if number >= len(self.manifest.shards):
                raise self._fault(f"row {row}: shard {number} of {len(self.manifest.shards)}")
            self._shards[number] = self._mapped(self.manifest.shards[number])
            if len(self._shards) > OPEN_SHARDS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(number)
        return self._shards[number]

    def _mapped(self, name: str) -> Array:
        """All bytes of a file, mapped read-only."""
        size = self.manifest.sizes[name]
        return mapped(lambda: self.files.open(name, size), size, name)

    def _fault(self, what: str) -> DataError:
        return DataError(f"the split {self.name!r} at {self.files.store.uri!r} is damaged: {what}", remedy=REMEDY)
