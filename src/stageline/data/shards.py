"""Writing a split: rows of named arrays become shards, a table and lines. Memory does not grow with the rows.

A row holds arrays of any shape and of any of `DTYPES`, JSON fields, and numbers that every row of the split has (they
can be read for all rows at once). A row that a shard has no room for is divided: its largest arrays are cut along
their first axis into pieces, which may lie in several shards, and are written one piece after the other; what is left
of the row lies in one. An array that is mapped into memory is never held there as a whole. Equal rows give equal
bytes. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stageline.config.bounds import MAX_AXES
from stageline.data.quarantine import SetAside
from stageline.data.splits import NAME
from stageline.errors import DataError
from stageline.store.below import open_new

SHARD_BYTES = 256 * 2**20
ALIGNMENT = 64
"""Arrays begin at multiples of it, so that they can be used where they lie."""
DTYPES = ("|b1", "|u1", "|i1", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8")
ROW_FIELDS = [
    ("@shard", "<u4"),
    ("@line_bytes", "<u4"),
    ("@line", "<u8"),
    ("@offset", "<u8"),
    ("@bytes", "<u8"),
]
"""Which shard, how long the row's line is and where it begins, where in the shard its arrays begin and end."""


def row_type(numbers: Mapping[str, str]) -> np.dtype[Any]:
    """The record of one row in the table. numbers: name -> type."""
    return np.dtype([*ROW_FIELDS, *sorted(numbers.items())])


class _HashedFile:
    """A file that is written once from start to end and named by its content."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.path = folder / f"unfinished.{kind}"
        self.kind = kind
        self.size = 0
        self._digest = hashlib.sha256()
        self._file: BinaryIO = open_new(self.path)

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def finish(self) -> str:
        """Close the file; its name."""
        self._file.close()
        return f"{self._digest.hexdigest()}.{self.kind}"

    def close(self) -> None:
        self._file.close()


@dataclass
class SplitWriter:
    """Writes the rows of one split, one after the other; `finish` says what was written.

    folder: an empty local folder for unfinished files.
    keep: takes each finished file (local path, its name) away, e.g. into a store; None leaves it in `folder`.
    shard_bytes: most bytes of one shard.
    """

    folder: Path
    keep: Callable[[Path, str], None] | None = None
    shard_bytes: int = SHARD_BYTES
    num_rows: int = 0
    aside: list[SetAside] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    _shards: list[str] = field(default_factory=list)
    _numbers: dict[str, str] | None = None
    _shard: _HashedFile | None = None
    _open: dict[str, _HashedFile] = field(default_factory=dict)

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is still open."""
        for file in [*self._open.values(), *([self._shard] if self._shard else [])]:
            file.close()

    def add(
        self,
        arrays: Mapping[str, NDArray[Any]],
        fields: Mapping[str, Any] | None = None,
        numbers: Mapping[str, int | float] | None = None,
    ) -> int:
        """Add a row; returns its number.

        arrays: by name, of any shape.  fields: JSON values.  numbers: the same names in every row, int or float each.
        DataError for a name, dtype or size that cannot be written; nothing of the row is written then.
        """
        parts = {name: _checked_array(name, arrays[name]) for name in sorted(arrays)}
        kinds = {_checked(name): _number_type(name, value) for name, value in sorted((numbers or {}).items())}
        if self._numbers is None:
            self._numbers = kinds
        if kinds != self._numbers:
            raise DataError(f"row {self.num_rows} has the numbers {kinds}, the rows before it {self._numbers}")
        divided = self._divided(parts)
        plain: dict[str, Any] = {"arrays": {}, "fields": dict(fields or {})}
        size = 0
        for name, array in parts.items():
            if name not in divided:
                plain["arrays"][name] = [_little(array.dtype).str, list(array.shape), size]
                size += _padded(array.nbytes)
        _line(self.num_rows, plain)  # refuses the fields before anything is written
        if divided:
            plain["divided"] = {name: self._write_pieces(parts[name]) for name in divided}
        line = _line(self.num_rows, plain)
        shard = self._shard_with_room(size)
        offset = shard.size if shard else 0
        for name, array in parts.items():
            if shard is not None and name not in divided:
                _write_array(shard, array)
        record = np.zeros(1, row_type(self._numbers))
        lines = self._table_file("lines")
        for key, value in {
            "@shard": len(self._shards) if size else 0,
            "@line_bytes": len(line),
            "@line": lines.size,
            "@offset": offset if size else 0,
            "@bytes": size,
            **(numbers or {}),
        }.items():
            record[key] = value
        lines.write(line + b"\n")
        self._table_file("rows").write(record.tobytes())
        self.num_rows += 1
        return self.num_rows - 1

    def _divided(self, parts: Mapping[str, NDArray[Any]]) -> list[str]:
        """Which arrays of a row are divided so that the others fit into a shard: the largest ones, by name.

        DataError where one of them has a first axis whose parts are larger than a shard.
        """
        left = sum(_padded(array.nbytes) for array in parts.values())
        found = []
        for name in sorted(parts, key=lambda name: (-parts[name].nbytes, name)):
            if left <= self.shard_bytes:
                break
            left -= _padded(parts[name].nbytes)
            found.append(name)
            if parts[name].ndim == 0 or _padded(parts[name].nbytes // len(parts[name])) > self.shard_bytes:
                raise DataError(
                    f"row {self.num_rows}: array {name!r} of shape {parts[name].shape} has {parts[name].nbytes} bytes, "
                    f"a shard holds {self.shard_bytes}, and one part along its first axis has no room there",
                    remedy="give it a longer first axis, or divide it into several rows",
                )
        return sorted(found)

    def _write_pieces(self, array: NDArray[Any]) -> list[Any]:
        """Write an array piece by piece; its dtype, its shape, and [shard, offset, parts] of each piece."""
        each, start, pieces = array.nbytes // len(array), 0, []
        while start < len(array):
            shard = self._shard_with_room(_padded(each))
            assert shard is not None
            count = min(len(array) - start, (self.shard_bytes - shard.size) // each)
            while _padded(count * each) > self.shard_bytes - shard.size:
                count -= 1  # a piece takes up whole multiples of the alignment
            pieces.append([len(self._shards), shard.size, count])
            _write_array(shard, array[start : start + count])
            start += count
        return [_little(array.dtype).str, list(array.shape), pieces]

    def set_aside(self, row: SetAside) -> None:
        """Note a row of the sources that cannot be used, and that is therefore none of the split's."""
        self.aside.append(row)

    def finish(self) -> dict[str, Any]:
        """Close all files; the fields of the manifest that tell of rows and files."""
        self._close_shard()
        names = {kind: self._taken(self._table_file(kind)) for kind in ("rows", "lines")}
        self._open.clear()
        return {
            "num_rows": self.num_rows,
            "numbers": self._numbers or {},
            "rows_file": names["rows"],
            "lines_file": names["lines"],
            "shards": self._shards,
            "files": self.sizes,
            **({"set_aside": [row.to_json() for row in self.aside]} if self.aside else {}),
        }

    def _shard_with_room(self, size: int) -> _HashedFile | None:
        """The shard that takes the next row; None for a row without arrays."""
        if size == 0:
            return None
        if self._shard is not None and self._shard.size + size > self.shard_bytes:
            self._close_shard()
        if self._shard is None:
            self._shard = _HashedFile(self.folder, "shard")
        return self._shard

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shards.append(self._taken(self._shard))
            self._shard = None

    def _table_file(self, kind: str) -> _HashedFile:
        if kind not in self._open:
            self._open[kind] = _HashedFile(self.folder, kind)
        return self._open[kind]

    def _taken(self, file: _HashedFile) -> str:
        """Finish a file and give it to its keeper; its name."""
        name = file.finish()
        known = name in self.sizes  # two shards of equal bytes are one file
        self.sizes[name] = file.size
        if self.keep is None:
            file.path.replace(self.folder / name)
            return name
        if not known:
            self.keep(file.path, name)
        file.path.unlink()
        return name


def _line(row: int, plain: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(plain, sort_keys=True, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"the fields of row {row} are no JSON: {error}", remedy="give finite, plain values") from error


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise DataError(f"{name!r} is no name of an array or number", remedy="use small letters, digits, '_', '-', '.'")
    return name


def _checked_array(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """The array as it was given; DataError unless it is of a known type."""
    _checked(name)
    array = np.asarray(array)
    if _little(array.dtype).str not in DTYPES or array.ndim > MAX_AXES:
        raise DataError(
            f"array {name!r} of type {array.dtype} with {array.ndim} axes cannot be written",
            remedy="use a bool, integer or float type",
        )
    return array


def _little(kind: np.dtype[Any]) -> np.dtype[Any]:
    """The type as it is written: little-endian."""
    big = kind.byteorder == ">" or (kind.byteorder == "=" and sys.byteorder == "big")
    return kind.newbyteorder("<") if big else kind


def _write_array(file: _HashedFile, array: NDArray[Any]) -> None:
    """Write an array's bytes, in its own order of axes, up to a multiple of the alignment."""
    if array.nbytes:
        plain = np.ascontiguousarray(array, dtype=_little(array.dtype))
        file.write(plain.reshape(-1).view(np.uint8).data)
        file.write(b"\x00" * (_padded(array.nbytes) - array.nbytes))


def _padded(size: int) -> int:
    return math.ceil(size / ALIGNMENT) * ALIGNMENT


def _number_type(name: str, value: float) -> str:
    fits = isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
    if isinstance(value, bool) or not fits or not math.isfinite(value):
        raise DataError(f"number {name!r} is {value!r}", remedy="give a finite int or float")
    return "<i8" if isinstance(value, int) else "<f8"
