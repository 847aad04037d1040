"""The store is asked without keeping signals waiting, and a cancelled launcher does not wait for it."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from stageline.errors import StoreError, StoreUnavailableError
from stageline.jobs.cluster.follow import results
from stageline.jobs.cluster.follow.results import ask_store


def test_the_answer_and_the_error_come_through():
    assert ask_store(lambda: 7, lambda: False) == 7
    assert ask_store(lambda: None, lambda: False) is None

    def refuse():
        raise StoreError("no")

    with pytest.raises(StoreError, match="no"):
        ask_store(refuse, lambda: False)


def test_a_signal_is_handled_while_the_store_hangs_and_then_nobody_waits(monkeypatch):
    monkeypatch.setattr(results, "LOOK_SECONDS", 0.4)
    hangs, handled = threading.Event(), []
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(time.monotonic()))
    start = time.monotonic()
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
    try:
        with pytest.raises(StoreUnavailableError):
            ask_store(lambda: hangs.wait(30), lambda: bool(handled))
    finally:
        signal.signal(signal.SIGUSR1, before)
        hangs.set()
    assert handled[0] - start < 1
    assert time.monotonic() - start < 5
