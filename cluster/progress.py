"""What is being done and how long it took, for a person who waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

HEARTBEAT_SECONDS = 20
"""Chosen here: a step that is silent for longer looks stuck."""


def say(text: str) -> None:
    """One line, at once, also through a pipe."""
    print(text, flush=True)


@contextmanager
def timed(what: str, *, usual: str = "", quiet_seconds: float = 0.0) -> Iterator[None]:
    """Say what begins, that it still goes on, and how long it took.

    usual: how long it takes elsewhere, for the reader.  quiet_seconds: say nothing of a step that is done by then.
    """
    started = time.monotonic()
    done = threading.Event()
    hint = f" (usually {usual})" if usual else ""

    def tell() -> None:
        if done.wait(quiet_seconds):
            return
        say(f"  {what} ...{hint}")
        while not done.wait(HEARTBEAT_SECONDS):
            say(f"  {what} ... {time.monotonic() - started:.0f} s so far{hint}")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    failed = True
    try:
        yield
        failed = False
    finally:
        done.set()
        teller.join()
        took = time.monotonic() - started
        if failed or took >= quiet_seconds:
            say(f"  {what}: {'failed after ' if failed else ''}{took:.1f} s")
