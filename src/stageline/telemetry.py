"""What a running stage says about itself: metric names with their units, events, `/metrics`, failure records.

Torch-free, because plan, launch, report and the pipeline read what is written here. Every metric name stands in
`METRICS` and nowhere else; dashboards and rules are checked against that table. Stores come in as `EventStore`, the
part of `stageline.store.Store` that is needed, since this module lies below it.

Events are JSON lines with at least `time` (seconds since 1970, UTC) and `event`. On a local disk they are appended to
`events.jsonl`; an object store has no append, so there each flush is a segment `events-00000001.jsonl`. A line
`{"event": "resumed", "step": N}` makes every earlier line with a later step void: that work was lost and done again.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from stageline.errors import EXIT_FAULT, StagelineError

EVENTS_FILE = "events.jsonl"
FAILURE_FILE = "failure.json"
_FAILURE_NAME = re.compile(r"^failure(-rank-\d+)?\.json$")
FAILURE_DIR_VARIABLE = "STAGELINE_FAILURE_DIR"
"""Environment variable: a local folder in which a stage process also leaves its failure record, for the process that
started it; the only place while the stage directory belongs to somebody else (a busy lease, another identity)."""
FLUSH_SECONDS = 10.0
"""Age at which buffered events become a segment on an object store; chosen so that a request is made rarely and a
lost process loses little of the curve."""


@dataclass(frozen=True)
class Metric:
    """One metric: full name ending in its unit, kind, help text, whether it has the label `part`."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    by_part: bool = False


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("stageline_finished_steps", "gauge", "Optimizer steps finished, those before a resume included."),
        Metric("stageline_planned_steps", "gauge", "Optimizer steps of the whole stage."),
        Metric("stageline_remaining_seconds", "gauge", "Expected seconds until the last step."),
        Metric("stageline_step_duration_seconds", "histogram", "Wall time of one optimizer step."),
        Metric("stageline_data_wait_seconds", "histogram", "Part of a step spent waiting for the data loader."),
        Metric("stageline_samples_total", "counter", "Training samples consumed by all ranks."),
        Metric("stageline_loss_value", "gauge", "Training loss per sample or token; parts by label.", by_part=True),
        Metric("stageline_validation_value", "gauge", "Validation metrics by label.", by_part=True),
        Metric("stageline_best_value", "gauge", "Best value so far of the stage's declared metric."),
        Metric("stageline_gradient_norm", "gauge", "Norm of the whole gradient before clipping."),
        Metric("stageline_learning_rate", "gauge", "Learning rate of a group with factor 1."),
        Metric("stageline_bad_steps_total", "counter", "Steps skipped because loss or gradient was not finite."),
        Metric("stageline_last_step_timestamp_seconds", "gauge", "When the last step ended, seconds since 1970."),
        Metric("stageline_last_checkpoint_timestamp_seconds", "gauge", "When the last checkpoint was committed."),
        Metric("stageline_last_checkpoint_steps", "gauge", "Step of the last committed checkpoint."),
        Metric("stageline_checkpoint_write_seconds", "histogram", "Writing and committing one checkpoint."),
        Metric("stageline_checkpoint_blocked_seconds", "histogram", "Part of a save during which the loop waited."),
        Metric("stageline_device_memory_peak_bytes", "gauge", "Peak of allocated device memory; 0 on a CPU."),
    )
}


class EventStore(Protocol):
    """What this module needs of a store."""

    def put(self, key: str, data: bytes) -> None: ...
    def get(self, key: str) -> bytes: ...
    def exists(self, key: str) -> bool: ...
    def list(self, prefix: str = "") -> Iterable[Any]: ...
    def delete(self, key: str) -> None: ...
    def local_path(self, key: str = "") -> Path | None: ...


def finite_json(value: Any) -> Any:
    """The value with `nan` and infinities as text, since JSON has no word for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    return value


class EventLog:
    """Appends events of one stage; one writer at a time, the holder of the stage's lease.

    store: the stage directory, or one above it with `prefix`.  had_lines: whether there were events before.
    """

    def __init__(self, store: EventStore, prefix: str = "") -> None:
        self._store = store
        self._prefix = f"{prefix}/" if prefix else ""
        self._path = store.local_path(self._prefix + EVENTS_FILE)
        self._pending: list[str] = []
        self._flushed_at = time.monotonic()
        self._segment = 0
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _drop_torn_line(self._path)
            self.had_lines = self._path.exists() and self._path.stat().st_size > 0
        else:
            self._segment = max((number for number, _ in _segments(store, self._prefix)), default=0)
            self.had_lines = self._segment > 0

    def emit(self, event: str, **fields: Any) -> dict[str, Any]:
        """Append one line. fields: JSON values; credentials in texts are redacted. Returns the event."""
        line: dict[str, Any] = {"time": round(time.time(), 3), "event": event, **redact(finite_json(fields))}
        self._pending.append(json.dumps(line, ensure_ascii=False))
        if self._path is not None or time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()
        return line

    def flush(self) -> None:
        """Write what is buffered."""
        if not self._pending:
            return
        block = "\n".join(self._pending) + "\n"
        self._pending.clear()
        self._flushed_at = time.monotonic()
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(block)
            return
        self._segment += 1
        self._store.put(f"{self._prefix}events-{self._segment:08d}.jsonl", block.encode())

    def close(self) -> None:
        self.flush()


def _drop_torn_line(path: Path) -> None:
    """Cut a last line without its newline: the writer died in the middle of it."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def _segments(store: EventStore, prefix: str) -> Iterator[tuple[int, str]]:
    pattern = re.compile(rf"^{re.escape(prefix)}events-(\d{{8}})\.jsonl$")
    for info in store.list(prefix.rstrip("/")):
        match = pattern.match(info.key)
        if match:
            yield int(match[1]), info.key


def read_events(store: EventStore, prefix: str = "") -> list[dict[str, Any]]:
    """The events of a stage directory in order, without void lines; [] where there are none yet."""
    head = f"{prefix}/" if prefix else ""
    if store.exists(head + EVENTS_FILE):
        blocks = [store.get(head + EVENTS_FILE)]
    elif store.local_path() is not None:
        blocks = []
    else:
        blocks = [store.get(key) for _, key in sorted(_segments(store, head))]
    return parse_events(block.decode("utf-8", errors="replace") for block in blocks)


def parse_events(blocks: Iterable[str]) -> list[dict[str, Any]]:
    """Texts of JSON lines -> events without void ones. A torn last line of a block is no event."""
    events: list[dict[str, Any]] = []
    for block in blocks:
        for line in block.split("\n")[:-1]:
            try:
                event = json.loads(line)
            except ValueError as error:
                raise StagelineError(f"an event line is not JSON: {line[:80]!r}") from error
            if event.get("event") == "resumed":
                step = event.get("step", 0)
                events = [e for e in events if not isinstance(e.get("step"), int) or e["step"] <= step]
            events.append(event)
    return events


class MetricsEndpoint:
    """`/metrics` of one stage process for Prometheus.

    port: 0 serves nothing. A port that is taken costs the endpoint and a warning line, never the run.
    """

    def __init__(self, port: int, *, family: str, stage: str, address: str = "0.0.0.0") -> None:  # noqa: S104  # scraped
        self.warning = ""
        self.port = 0
        self._labels = {"family": family, "stage": stage}
        self._values: dict[str, Any] = {}
        self._server: Any = None
        if not port:
            return
        import prometheus_client as prometheus  # 0.1 s, only where served

        registry = prometheus.CollectorRegistry()
        kinds: dict[str, Any] = {
            "gauge": prometheus.Gauge,
            "counter": prometheus.Counter,
            "histogram": prometheus.Histogram,
        }
        try:
            self._server, _ = prometheus.start_http_server(port, addr=address, registry=registry)
        except OSError as error:
            self.warning = f"port {port} for /metrics cannot be had ({error}); the stage runs without the endpoint"
            return
        self.port = port
        for metric in METRICS.values():
            labels = ["family", "stage", *(["part"] if metric.by_part else [])]
            self._values[metric.name] = kinds[metric.kind](metric.name, metric.text, labels, registry=registry)

    def record(self, name: str, value: float, part: str | None = None) -> None:
        """Set a gauge, add to a counter or observe in a histogram, as the table says."""
        metric = METRICS[name]
        if name not in self._values:
            return
        child = self._values[name].labels(**self._labels, **({"part": part or "total"} if metric.by_part else {}))
        if metric.kind == "gauge":
            child.set(value)
        elif metric.kind == "counter":
            child.inc(value)
        else:
            child.observe(value)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"(?i)(^|[_.-])(secret([_-]key)?|(auth|access|api|hf|hub|refresh)[_-]?token|password|passwd|passphrase|credentials?|api[_-]?key|access[_-]?key(_id)?|private[_-]?key)$"
    r"|secret[_-]?access|session[_-]?token"
)
_SECRET_TEXT = (
    (re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"), HIDDEN),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
    (re.compile(r"\b(?:hf_|ghp_|gho_|glpat-|xox[bp]-)[A-Za-z0-9_-]{8,}"), HIDDEN),
    (re.compile(r"(?i)(\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}"), rf"\1{HIDDEN}"),
    (
        re.compile(r"(?i)([?&](?:X-Amz-(?:Signature|Credential|Security-Token)|signature|sig|token)=)[^&\s\"']+"),
        rf"\1{HIDDEN}",
    ),
    (
        re.compile(
            r"(?i)\b([a-z0-9_.-]*(?:secret(?:[_-](?:access[_-])?key)?|(?:auth|access|session|security|api|hf|hub|refresh)[_-]token|password|passwd|api[_-]?key|access[_-]key(?:[_-]id)?))"
            r"([\"']?\s*[=:]\s*[\"']?)(?!\*\*\*)[^\s\"',;]+"
        ),
        rf"\1\2{HIDDEN}",
    ),
)
_MIN_SECRET = 8
"""Shorter values of secret-looking variables are not searched for in texts: they would blot out ordinary words."""


def redact(value: Any) -> Any:
    """The value with credentials as `***`: known forms, secret-looking keys, and values of secret-looking variables."""
    if isinstance(value, str):
        for name, secret in os.environ.items():
            if len(secret) >= _MIN_SECRET and _SECRET_NAME.search(name):
                value = value.replace(secret, HIDDEN)
        for pattern, replacement in _SECRET_TEXT:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(item, str) and item and _SECRET_NAME.search(str(key)) else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact(item) for item in value]
    return value


def failure_record(error: BaseException, rank: int = 0, log_tail: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON form of an error: kind, sentence, remedy, exit code, rank, log tail."""
    if isinstance(error, StagelineError):
        record = error.record()
    else:
        sentence = f"{type(error).__name__}: {error}".strip()
        record = {"kind": "fault", "code": "", "sentence": sentence, "remedy": "", "exit_code": EXIT_FAULT}
    record |= {"rank": rank, "time": round(time.time(), 3), "log_tail": list(log_tail)[-50:]}
    redacted: dict[str, Any] = redact(finite_json(record))
    return redacted


def write_failure(
    target: EventStore | Path, error: BaseException, *, rank: int = 0, log_tail: Sequence[str] = ()
) -> dict[str, Any]:
    """Leave the failure record of one rank in a stage directory (store) or a local folder; returns it.

    Every rank writes a file of its own; `read_failure` tells the first cause from what followed.
    """
    record = failure_record(error, rank, log_tail)
    data = (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()
    name = FAILURE_FILE if rank == 0 else f"failure-rank-{rank}.json"
    if isinstance(target, Path):
        target.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    else:
        target.put(name, data)
    return record


def read_failure(target: EventStore | Path, num_ranks: int = 0) -> dict[str, Any] | None:
    """The record of the first cause among the ranks' records; None where nobody left one.

    A fault that has to be mended (exit code below 128) outranks an interruption, that one a lost peer; then the
    earliest counts. num_ranks: 0 looks at every record there is.
    """
    records = [json.loads(data) for data in _failure_files(target)]
    if num_ranks:
        records = [record for record in records if record.get("rank", 0) < num_ranks]

    def order(record: Mapping[str, Any]) -> tuple[int, float]:
        lost = record.get("kind") == "peer_lost"
        return 2 if lost else int(record.get("exit_code", 1) >= 128), float(record.get("time", 0.0))

    return min(records, key=order, default=None)


def _failure_files(target: EventStore | Path) -> list[bytes]:
    folder = target if isinstance(target, Path) else target.local_path()
    if folder is not None:
        return [path.read_bytes() for path in sorted(folder.glob("failure*.json"))]
    assert not isinstance(target, Path)
    return [target.get(info.key) for info in target.list() if _FAILURE_NAME.match(info.key)]


def clear_failures(target: EventStore | Path) -> None:
    """Remove the records of an earlier attempt."""
    folder = target if isinstance(target, Path) else target.local_path()
    if folder is not None:
        for path in folder.glob("failure*.json"):
            path.unlink(missing_ok=True)
        return
    assert not isinstance(target, Path)
    for info in list(target.list()):
        if _FAILURE_NAME.match(info.key):
            target.delete(info.key)
