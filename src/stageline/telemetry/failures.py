"""Failure records: what a stage process that ended badly leaves for whoever started it.

Every rank leaves its own; the reader tells the first cause from what followed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stageline.errors import EXIT_FAULT, StagelineError
from stageline.telemetry.events import EventStore
from stageline.telemetry.redaction import finite_json, redact

FAILURE_FILE = "failure.json"
_FAILURE_NAME = re.compile(r"^failure(-rank-\d+)?\.json$")
FAILURE_DIR_VARIABLE = "STAGELINE_FAILURE_DIR"
"""Environment variable: a local folder in which a stage process also leaves its failure record, for the process that
started it; the only place while the stage directory belongs to somebody else (a busy lease, another identity)."""


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
    return first_cause(records)


def first_cause(records: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The record among several that decides, in the order of `read_failure`; None among none."""

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
