"""Signals as requests to stop: caught while something runs, told once, and given back to whoever had them before.

Standard library only: processes between a launcher and its ranks start with nothing else. What a request means (finish
the step, pass it on, raise) is its catcher's own affair.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

REPEAT_SECONDS = 1.0
"""A signal that comes again within this time is the same request: `timeout`, torchrun and container runtimes send it
twice."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""A kubelet or launcher, Ctrl-C, a terminal that closes."""


def signal_word(number: int) -> str:
    """What people call a signal: Ctrl-C, else its name."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


class CaughtSignals:
    """Catches signals from entering to leaving it, and then gives them back to their former handlers.

    on_signal: called in the main thread, wherever that is, with the number of each request; may raise.
    numbers: the signals to catch.
    repeat_seconds: within this time after a request the same number again is no new one; 0 takes every one as new.
    any_number: within `repeat_seconds` another number is no new request either.
    ignored_afterwards: once there was a request, ignore these signals after leaving: the process is on its way out.

    Handlers belong to the main thread: entered in another one, it catches nothing.
    """

    def __init__(
        self,
        on_signal: Callable[[int], None] = lambda number: None,  # noqa: ARG005
        numbers: Iterable[int] = STOP_SIGNALS,
        *,
        repeat_seconds: float = 0.0,
        any_number: bool = False,
        ignored_afterwards: bool = False,
    ) -> None:
        self.count = 0
        self.first = 0
        self._on_signal = on_signal
        self._numbers = tuple(numbers)
        self._repeat_seconds = repeat_seconds
        self._any_number = any_number
        self._ignored_afterwards = ignored_afterwards
        self._told: dict[int, float] = {}
        self._former: dict[int, Any] = {}

    @property
    def first_name(self) -> str:
        """Name of the first request's signal, "" while there was none."""
        return signal.Signals(self.first).name if self.first else ""

    def _take(self, number: int, frame: object) -> None:
        del frame
        now = time.monotonic()
        key = 0 if self._any_number else number
        if key in self._told and now - self._told[key] < self._repeat_seconds:
            return
        self._told[key] = now
        self.count += 1
        self.first = self.first or number
        self._on_signal(number)

    def catch(self) -> None:
        """Catch them to the end of the process, without ever leaving."""
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                self._former[number] = signal.signal(number, self._take)

    def __enter__(self) -> CaughtSignals:
        self.catch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ignored = self._ignored_afterwards and self.count > 0
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_IGN if ignored else handler)
        self._former.clear()


def ignore_signals(numbers: Iterable[int]) -> None:
    """Ignore signals to the end of this process, or until somebody handles them. For the main thread."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
