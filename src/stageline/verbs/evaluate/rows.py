"""The rows of an evaluation as they come: numbered segments of JSON lines, so that a killed evaluation continues.

`rows/00000001.jsonl` and so on below the evaluation, each put whole: a line holds a row and the files that belong to
it, which lie there before the line does. Their order is the family's own, so that a continued evaluation has the rows
of an uninterrupted one. A segment is written at the end of a batch, or when enough came; of many small ones the last is
written again with the rows of all, and the others go.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from stageline.config.bounds import read_json
from stageline.contract import Row, RowKey
from stageline.data.tables import csv_text
from stageline.errors import BusyError, DataError, StagelineError
from stageline.store import Store
from stageline.work.evaluations import media_type

SEGMENTS = "rows"
FLUSH_ROWS = 64
FLUSH_SECONDS = 5.0
FLUSH_BYTES = 32_000_000
"""Where no batch ends, a segment is written as soon as one of these is reached: what a kill can cost."""
MERGED_SEGMENTS = 32
"""As many segments become one. An object store is asked once per segment when an evaluation goes on."""


class RowLog:
    """The rows of one evaluation, those of an earlier attempt among them. A context manager: its end writes the rest.

    rows: (checkpoint, id, mode) -> row, in the order in which they were made.
    files: file -> {"sha256", "bytes", "type"}.
    """

    def __init__(self, store: Store, check: Callable[[], None]) -> None:
        """store: the evaluation's folder.  check: raises where it is no longer ours to write."""
        self.rows: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.files: dict[str, dict[str, Any]] = {}
        self._store, self._check = store, check
        self._lines: list[dict[str, Any]] = []
        self._blobs: dict[str, bytes] = {}
        self._since = 0.0
        self._number = 0
        self._segments: dict[str, bytes] = {}
        for info in store.list(SEGMENTS):
            self._read(info.key)
        self.num_found = len(self.rows)

    def _read(self, key: str) -> None:
        try:
            lines = [read_json(line) for line in self._store.get(key).splitlines()]
            self._number = int(key.rsplit("/", 1)[-1].removesuffix(".jsonl"))
            for line in lines:
                row = line["row"]
                self.rows.setdefault((line["checkpoint"], *key_of_row(row)), row)
                self.files |= line["files"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self._store.uri}/{key} is damaged: {error!r}",
                remedy="delete that file and run again: its rows are computed anew",
            ) from error

    def of(self, checkpoint: str) -> dict[RowKey, Row]:
        """The rows of one checkpoint by id and mode."""
        return {(i, mode): row for (name, i, mode), row in self.rows.items() if name == checkpoint}

    def add(self, checkpoint: str, row: Row, blobs: Mapping[str, bytes]) -> None:
        """Take one row. blobs: file -> bytes.

        DataError where there is one of that id and mode already: rows could not be told apart.
        """
        plain = {str(name): as_json(value) for name, value in row.items()}
        key = (checkpoint, *key_of_row(plain))
        if key in self.rows:
            mode = f" in mode {key[2]!r}" if key[2] else ""
            raise DataError(f"two rows have the id {key[1]!r}{mode}", remedy="give every sample an id of its own")
        self.rows[key] = plain
        if not self._lines:
            self._since = time.monotonic()
        self._lines.append({"checkpoint": checkpoint, "row": plain, "files": self._note(blobs)})
        self._blobs |= blobs
        full = len(self._lines) >= FLUSH_ROWS or sum(map(len, self._blobs.values())) >= FLUSH_BYTES
        if full or time.monotonic() - self._since >= FLUSH_SECONDS:
            self.flush()

    def put(self, blobs: Mapping[str, bytes]) -> None:
        """Write files that belong to no row."""
        self._note(blobs)
        self._check()
        for name, blob in blobs.items():
            self._store.put(name, blob)

    def _note(self, blobs: Mapping[str, bytes]) -> dict[str, Any]:
        noted = {
            name: {"sha256": hashlib.sha256(blob).hexdigest(), "bytes": len(blob), "type": media_type(name)}
            for name, blob in blobs.items()
        }
        self.files |= noted
        return noted

    def flush(self) -> None:
        """Write what came since the last segment."""
        if not self._lines:
            return
        self._check()
        for name, blob in self._blobs.items():
            self._store.put(name, blob)
        key = f"{SEGMENTS}/{self._number + 1:08d}.jsonl"
        data = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in self._lines).encode()
        # One that is there already is our own, whose answer was lost or which was cut short by a signal.
        if not self._store.create(key, data) and self._store.get(key) != data:
            raise BusyError(f"{self._store.uri}/{key} was written by another process", remedy="follow that one")
        self._number += 1
        self._lines, self._blobs = [], {}
        self._segments[key] = data
        if len(self._segments) == MERGED_SEGMENTS:
            self._merge(key)

    def _merge(self, last: str) -> None:
        """Put the rows of all segments of this process into the last one. Rows that stand twice count once."""
        self._store.put(last, b"".join(self._segments.values()))
        for key in self._segments:
            if key != last:
                self._store.delete(key)
        self._segments = {}

    def __enter__(self) -> RowLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        except StagelineError as second:
            if error is None:
                raise
            error.add_note(f"the last {len(self._lines)} rows could not be kept: {second.message}")


def key_of_row(row: Row) -> RowKey:
    """(id, mode) of a row. DataError for a row without an id."""
    name, mode = row.get("id"), row.get("mode", "")
    if not isinstance(name, str) or not name or not isinstance(mode, str):
        raise DataError(f"a row has the id {name!r} and the mode {mode!r}; both are texts", remedy="name every sample")
    return name, mode


def as_json(value: Any) -> Any:
    """A cell as JSON: numbers of numpy as plain ones, a number that is not finite as None."""
    if hasattr(value, "item") and not isinstance(value, (int, float, str)):
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return value


def rows_to_csv(rows: Sequence[Row]) -> bytes:
    """One line per row; the columns are all keys in the order of their first appearance, None is an empty cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return csv_text(columns, ({key: _cell(value) for key, value in row.items()} for row in rows)).encode()


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
