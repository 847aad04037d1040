"""Events of a stage: JSON lines with at least `time` (seconds since 1970, UTC) and `event`.

On a local disk they are appended to `events.jsonl`; an object store has no append, so there each flush is a segment
`events-00000001.jsonl`. A line `{"event": "resumed", "step": N}` makes every earlier line with a later step void: that
work was lost and done again. So does a validation with an earlier one of the same step. Stores come in as `EventStore`,
the part of `stageline.store.Store` that is needed, since this package lies below it.

What a stage tells: started, resumed, seeded (a parent was loaded), validation_checked (tried before the first step),
step (loss, parts, learning_rate, gradient_norm), skipped (loss or gradient not finite), validation (metrics, counts,
is_best), checkpoint (uri, digest), warning, interrupted, failed, finished.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from stageline.errors import StagelineError
from stageline.printing import escaped_values, one_line
from stageline.telemetry.redaction import finite_json, redact

EVENTS_FILE = "events.jsonl"
FLUSH_SECONDS = 10.0
"""Age at which buffered events become a segment on an object store; chosen so that a request is made rarely and a
lost process loses little of the curve."""


class EventFolder(Protocol):
    """What this module needs of a folder on local disk."""

    def append(self, key: str, data: bytes) -> None: ...


class EventStore(Protocol):
    """What this module needs of a store."""

    def put(self, key: str, data: bytes) -> None: ...
    def get(self, key: str) -> bytes: ...
    def exists(self, key: str) -> bool: ...
    def files(self, prefix: str = "") -> Iterable[Any]: ...
    def delete(self, key: str) -> None: ...
    @property
    def local(self) -> EventFolder | None: ...


class EventLog:
    """Appends events of one stage; one writer at a time, the holder of the stage's lease.

    store: the stage directory, or one above it with `prefix`.  had_lines: whether there were events before.
    """

    def __init__(self, store: EventStore, prefix: str = "") -> None:
        self._store = store
        self._prefix = f"{prefix}/" if prefix else ""
        self._local = store.local
        self._pending: list[str] = []
        self._flushed_at = time.monotonic()
        self._segment = 0
        if self._local is not None:
            self.had_lines = _drop_torn_line(store, self._prefix + EVENTS_FILE)
        else:
            self._segment = max((number for number, _ in _segments(store, self._prefix)), default=0)
            self.had_lines = self._segment > 0

    def emit(self, event: str, **fields: Any) -> dict[str, Any]:
        """Append one line. fields: JSON values; their texts are redacted and made visible. Returns the event."""
        told = escaped_values(redact(finite_json(fields)))
        line: dict[str, Any] = {"time": round(time.time(), 3), "event": event, **told}
        self._pending.append(json.dumps(line, ensure_ascii=False))
        if self._local is not None or time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()
        return line

    def flush(self) -> None:
        """Write what is buffered."""
        if not self._pending:
            return
        block = "\n".join(self._pending) + "\n"
        self._pending.clear()
        self._flushed_at = time.monotonic()
        if self._local is not None:
            self._local.append(self._prefix + EVENTS_FILE, block.encode())
            return
        self._segment += 1
        self._store.put(f"{self._prefix}events-{self._segment:08d}.jsonl", block.encode())

    def close(self) -> None:
        self.flush()


def _drop_torn_line(store: EventStore, key: str) -> bool:
    """Cut a last line without its newline: the writer died in the middle of it. Returns whether lines are left."""
    if not store.exists(key):
        return False
    data = store.get(key)
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        store.put(key, whole)
    return bool(whole)


def _segments(store: EventStore, prefix: str) -> Iterator[tuple[int, str]]:
    pattern = re.compile(rf"^{re.escape(prefix)}events-(\d{{8}})\.jsonl$")
    for info in store.files(prefix.rstrip("/")):
        match = pattern.match(info.key)
        if match:
            yield int(match[1]), info.key


def read_events(store: EventStore, prefix: str = "") -> list[dict[str, Any]]:
    """The events of a stage directory in order, without void lines; [] where there are none yet."""
    head = f"{prefix}/" if prefix else ""
    if store.exists(head + EVENTS_FILE):
        blocks = [store.get(head + EVENTS_FILE)]
    elif store.local is not None:
        blocks = []
    else:
        blocks = [store.get(key) for _, key in sorted(_segments(store, head))]
    return parse_events(block.decode("utf-8", errors="replace") for block in blocks)


def _read_event(line: str) -> dict[str, Any]:
    """One line, its texts as they may be shown; StagelineError for one that is no event."""
    from stageline.config.bounds import read_json  # with all settings: who writes events needs none

    try:
        event = read_json(line)
    except ValueError as error:
        raise StagelineError(f"an event line is not JSON: {one_line(line, 80)}") from error
    is_event = isinstance(event, dict) and isinstance(event.get("event"), str)
    if not is_event or not _is_time(event.get("time", 0.0)) or not isinstance(event.get("step"), int | None):
        raise StagelineError(f"a line is no event with a time and a step: {one_line(line, 80)}")
    found: dict[str, Any] = escaped_values(event)
    return found


def _is_time(value: Any) -> bool:
    """Whether a value is seconds since 1970 that a calendar has."""
    return type(value) in (int, float) and 0 <= value < 1e11


def parse_events(blocks: Iterable[str]) -> list[dict[str, Any]]:
    """Texts of JSON lines -> events without void ones. A torn last line of a block is no event.

    What is void is told from behind, so that lines that make others void cost no more than any.
    """
    events: list[dict[str, Any]] = []
    validated: set[Any] = set()
    last_step = math.inf
    for event in reversed([_read_event(line) for block in blocks for line in block.split("\n")[:-1]]):
        step = event.get("step")
        is_void = step is not None and step > last_step
        if event["event"] == "resumed":
            last_step = min(last_step, step or 0)
        if event["event"] == "validation":
            is_void = is_void or step in validated
            validated.add(step)
        if not is_void:
            events.append(event)
    return events[::-1]
