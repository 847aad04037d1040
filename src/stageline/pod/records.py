"""Where a pod says why it ended: its termination message, which the kubelet shows, and a record in the store."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from stageline.errors import StagelineError
from stageline.jobs.environment import MESSAGE_VARIABLE
from stageline.pod.settings import Pod
from stageline.store import Store, open_store
from stageline.telemetry import FailureRecord

MESSAGE_FILE = "/dev/termination-log"
MESSAGE_BYTES = 4096
"""The kubelet cuts what is longer."""


def job_store(pod: Pod) -> Store | None:
    """`runs/<run>/jobs/<item>` below the root; None where the config names no root that others can see."""
    root = pod.config.get("root")
    if not isinstance(root, str) or pod.verb == "trial":
        return None
    store = open_store(root)
    return None if store.in_process else store.child("runs", pod.run, "jobs", pod.item)


def record_name(pod: Pod) -> str:
    return f"failure-node-{pod.index}.json"


def leave_record(pod: Pod, store: Store | None, record: FailureRecord) -> str:
    """Write the record to both places; returns what went wrong with that, "" if nothing did."""
    full = replace(record, pod=pod.name, node=pod.node, uid=pod.uid)
    trouble = []
    path = Path(os.environ.get(MESSAGE_VARIABLE, MESSAGE_FILE))
    if MESSAGE_VARIABLE in os.environ or path.exists():
        try:
            path.write_bytes(shorten(full))
        except OSError as error:
            trouble.append(str(error))
    if store is not None:
        try:
            store.put(record_name(pod), full.to_bytes())
        except (StagelineError, OSError) as error:
            trouble.append(str(error))
    return "; ".join(trouble)


def clear_record(pod: Pod, store: Store | None) -> None:
    """Remove what an earlier attempt of this node left, once the work is done."""
    if store is not None:
        with suppress(StagelineError, OSError):
            store.delete(record_name(pod))


def shorten(record: FailureRecord, limit_bytes: int = MESSAGE_BYTES) -> bytes:
    """The record as JSON of at most `limit_bytes`: older log lines go first, then ends of the longest texts."""
    plain = record.to_json() | {"log_tail": [line[:300] for line in record.log_tail]}
    while len(data := json.dumps(plain, ensure_ascii=False).encode()) > limit_bytes:
        if plain["log_tail"]:
            del plain["log_tail"][0]
            continue
        texts = [key for key, value in plain.items() if isinstance(value, str) and len(value) > 40]
        if not texts:
            return data[:limit_bytes]
        longest = max(texts, key=lambda key: len(plain[key]))
        plain[longest] = plain[longest][: max(30, len(plain[longest]) * 3 // 4)] + "…"
    return data
