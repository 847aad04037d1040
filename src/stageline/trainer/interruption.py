"""Being asked to stop: SIGTERM and SIGINT set a flag, nothing more; the loop asks for it once per step.

A collective inside a signal handler hangs the ranks that were not signalled, so the flag travels in the sums that
the ranks exchange anyway. Soon after the first SIGINT the system's own handler is back: the next one ends the process
at once, even inside a call that never returns to Python.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from types import FrameType, TracebackType

REPEAT_SECONDS = 1.0
"""A signal that comes again within this time is the same request: `timeout` and container runtimes send it twice."""


def _let_sigint_end_the_process() -> None:
    """Python sets dispositions in the main thread only, which may be the one that hangs: ask the system itself."""
    if sys.platform.startswith(("linux", "darwin")):
        ctypes.CDLL(None).signal(int(signal.SIGINT), int(signal.SIG_DFL))


class StopRequest:
    """Whether this process was asked to stop; a context that installs the handlers and restores the old ones.

    max_seconds: also ask to stop after that long; None never does. Handlers can only be had in the main thread;
    elsewhere the clock alone counts.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self.signal_name = ""
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._max_seconds = max_seconds
        self._former: dict[int, object] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned
        self._former.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal_name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._timer = threading.Timer(REPEAT_SECONDS, _let_sigint_end_the_process)
            self._timer.daemon = True
            self._timer.start()

    @property
    def reason(self) -> str:
        """Why to stop; empty while there is no reason."""
        if self.signal_name:
            return self.signal_name
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return f"trainer.max_seconds={self._max_seconds:g}"
        return ""
