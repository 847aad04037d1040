"""The log of a pod in the store: numbered objects, `<seq>.log`, written every few seconds and at the end.

A pod's own log is gone with the pod. A store that fails must not end the training: lines wait in memory, the oldest go
when there are too many, and the next object says how many are missing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from stageline.errors import StagelineError
from stageline.store import Store
from stageline.telemetry import redact

FLUSH_SECONDS = 10.0
FLUSH_BYTES = 1 << 18
KEPT_BYTES = 4 << 20
"""Lines that wait for a store that does not answer."""
CLOSE_SECONDS = 10.0
"""How long the end of a pod waits for its last lines to be written."""


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
