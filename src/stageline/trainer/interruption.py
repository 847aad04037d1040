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
from types import TracebackType

from stageline.signals import REPEAT_SECONDS, CaughtSignals, ignore_signals, signal_word
from stageline.telemetry import asked_by


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
        self._caught = CaughtSignals(self._note, (signal.SIGTERM, signal.SIGINT))
        self._timer: threading.Timer | None = None

    def __enter__(self) -> StopRequest:
        self._caught.catch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        self._caught.__exit__(kind, error, trace)

    def _note(self, number: int) -> None:
        self.signal_name = asked_by(signal_word(number))
        if number == signal.SIGINT:
            ignore_signals((signal.SIGINT,))
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
