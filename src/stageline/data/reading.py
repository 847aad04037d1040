"""Reading a split row by row: nothing is opened before it is asked for, and memory does not grow with the rows.

Table and shards are mapped into memory; the arrays that come out are views of a shard, read-only. What a file says is
checked before anything is made from it: names, bounds, types, sizes.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stageline.data.pod_cache import StoredFiles
from stageline.data.quarantine import SetAside
from stageline.data.shards import DTYPES, MAX_AXES, row_type
from stageline.data.splits import NAME, REMEDY, SplitManifest
from stageline.errors import DataError

OPEN_SHARDS = 16
"""Shards that one reader holds open; those used longest ago are closed."""
ATTEMPTS = 5
LINE_BYTES = 64 * 2**20
"""Longest line of a row that is read."""

Array = NDArray[Any]


def mapped(fetch: Callable[[], Path], size: int) -> Array:
    """All bytes of a local file, mapped read-only. fetch: makes it local again each time.  size: its bytes."""
    for _ in range(ATTEMPTS):
        path = fetch()
        if size == 0:
            return np.empty(0, np.uint8)
        with suppress(FileNotFoundError):  # another process made room in the cache at this moment
            return np.asarray(np.memmap(path, dtype=np.uint8, mode="r", shape=(size,)))
    raise DataError(
        f"{str(path)!r} goes away as soon as it is fetched", remedy="raise data.cache_bytes: it is too small"
    )


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
        """One array of a row: a read-only view of its shard. Nothing of the other arrays is read."""
        layout = self._line(row)["arrays"]
        if name not in layout:
            have = ", ".join(sorted(layout)) or "none"
            raise DataError(f"row {row} of split {self.name!r} has no array {name!r}", remedy=f"it has: {have}")
        return self._view(row, name, layout[name])

    def arrays(self, row: int) -> dict[str, Array]:
        """All arrays of a row by name."""
        return {name: self._view(row, name, place) for name, place in self._line(row)["arrays"].items()}

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
            line = json.loads(self._lines[start : start + size].tobytes())
        except ValueError as error:
            raise self._fault(f"row {row}: its line is no JSON ({error})") from error
        whole = isinstance(line, dict) and all(isinstance(line.get(part), dict) for part in ("arrays", "fields"))
        if not whole or not all(NAME.fullmatch(name) for name in line["arrays"]):
            raise self._fault(f"row {row}: its line has no `arrays` and `fields`")
        return dict(line)

    def _view(self, row: int, name: str, place: Any) -> Array:
        record = self._rows()[row]
        kind, shape, offset = self._checked_place(row, name, place, int(record["@bytes"]))
        size = math.prod(shape) * kind.itemsize
        if size == 0:
            return np.empty(shape, kind)
        shard = self._shard(row, int(record["@shard"]))
        start = int(record["@offset"]) + offset
        if start + size > len(shard):
            raise self._fault(f"row {row}: array {name!r} ends behind its shard")
        return shard[start : start + size].view(kind).reshape(shape)

    def _checked_place(self, row: int, name: str, place: Any, room: int) -> tuple[np.dtype[Any], tuple[int, ...], int]:
        """dtype, shape and offset of an array. room: bytes of all arrays of the row."""
        wrong = self._fault(f"row {row}: array {name!r} is described as {place!r}")
        if not isinstance(place, list) or len(place) != 3:
            raise wrong
        kind, shape, offset = place
        if kind not in DTYPES or not isinstance(shape, list) or len(shape) > MAX_AXES:
            raise wrong
        if not all(type(number) is int and 0 <= number < 2**63 for number in [*shape, offset]):
            raise wrong
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
        return mapped(lambda: self.files.local(name, size), size)

    def _fault(self, what: str) -> DataError:
        return DataError(f"the split {self.name!r} at {self.files.store.uri!r} is damaged: {what}", remedy=REMEDY)
