"""What a pod leaves behind: its log and its failure record in the store, and its termination message.

A pod's own log is gone with the pod, so it is stored as numbered objects, `<seq>.log`, every few seconds and at last.
A store that fails must not end the training: lines wait in memory, the oldest go when there are too many, and the next
object says how many are missing. The termination message is what the kubelet shows of the record.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from stageline.errors import StagelineError
from stageline.jobs.environment import MESSAGE_VARIABLE
from stageline.pod.settings import Pod
from stageline.store import Store, open_store
from stageline.telemetry import FailureRecord, redact

MESSAGE_FILE = "/dev/termination-log"
MESSAGE_BYTES = 4096
"""The kubelet cuts what is longer."""
FLUSH_SECONDS = 10.0
FLUSH_BYTES = 1 << 18
KEPT_BYTES = 4 << 20
"""Lines that wait for a store that does not answer."""
CLOSE_SECONDS = 10.0
"""How long the end of a pod waits for its last lines to be written."""


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


class LogSegments:
    """Takes lines from any thread and writes them from its own.

    store: the folder of this pod.  on_trouble: told once when writing fails, and once when it works again.
    """

    def __init__(
        self, store: Store, on_trouble: Callable[[str], None], *, flush_seconds: float = FLUSH_SECONDS
    ) -> None:
        self._store = store
        self._on_trouble = on_trouble
        self._flush_seconds = flush_seconds
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._sequence = 0
        self._failing = False
        self._mutex = threading.Lock()
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._keep, name="log-segments", daemon=True)
        self._thread.start()

    def add(self, line: str) -> None:
        """One line, without its newline."""
        data = redact(line).encode("utf-8", errors="replace") + b"\n"
        with self._mutex:
            self._lines.append(data)
            self._bytes += len(data)
            while self._bytes > KEPT_BYTES:
                self._bytes -= len(self._lines.popleft())
                self._dropped += 1
            if self._bytes > FLUSH_BYTES and not self._failing:
                self._wake.set()

    def close(self, limit_seconds: float = CLOSE_SECONDS) -> None:
        """Write what is left, as far as the store takes it in time."""
        self._ended = True
        self._wake.set()
        self._thread.join(limit_seconds)

    def _keep(self) -> None:
        while True:
            self._wake.wait(self._flush_seconds)
            self._wake.clear()
            ended = self._ended
            self._flush()
            if ended:
                return

    def _flush(self) -> None:
        with self._mutex:
            if not self._lines and not self._dropped:
                return
            lines, dropped = list(self._lines), self._dropped
            self._lines.clear()
            self._bytes, self._dropped = 0, 0
        gap = f"[stageline-entry] {dropped} lines are missing here: the store did not take them\n".encode()
        try:
            self._store.put(f"{self._sequence + 1:08d}.log", (gap if dropped else b"") + b"".join(lines))
        except (StagelineError, OSError) as error:
            self._put_back(lines, dropped)
            self._tell(failing=True, text=f"the log cannot be stored, the stage goes on: {error}")
            return
        self._sequence += 1
        self._tell(failing=False, text="the log is stored again")

    def _put_back(self, lines: list[bytes], dropped: int) -> None:
        with self._mutex:
            self._lines.extendleft(reversed(lines))
            self._bytes += sum(map(len, lines))
            self._dropped += dropped

    def _tell(self, *, failing: bool, text: str) -> None:
        if failing != self._failing:
            self._failing = failing
            self._on_trouble(f"{text} ({time.strftime('%H:%M:%S')})")
