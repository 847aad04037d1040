"""Signals as requests: what counts as one, who is told, and who has them back afterwards."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from stageline.signals import STOP_SIGNALS, CaughtSignals, ignore_signals

HOUR = 3600.0


@pytest.fixture(autouse=True)
def former():
    """Handlers of this test's own, so that none of pytest's is touched."""
    told: list[int] = []
    before = {number: signal.signal(number, lambda *told_of: told.append(told_of[0])) for number in STOP_SIGNALS}
    yield told
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def test_every_signal_is_a_request_and_the_former_handlers_come_back(former):
    told: list[int] = []
    with CaughtSignals(told.append) as caught:
        assert (caught.count, caught.first_name) == (0, "")
        send(signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    assert told == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    assert (caught.count, caught.first_name) == (4, "SIGTERM")
    send(signal.SIGTERM)
    assert former == [signal.SIGTERM]


def test_a_repetition_is_the_same_request_but_another_number_is_another():
    told: list[int] = []
    with CaughtSignals(told.append, repeat_seconds=HOUR) as caught:
        send(signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM)
    assert told == [signal.SIGTERM, signal.SIGINT]
    assert caught.count == 2


def test_a_repetition_by_any_number_is_the_same_request():
    told: list[int] = []
    with CaughtSignals(told.append, repeat_seconds=HOUR, any_number=True):
        send(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    assert told == [signal.SIGINT]


def test_only_the_numbers_asked_for_are_caught(former):
    with CaughtSignals(numbers=(signal.SIGTERM,)) as caught:
        send(signal.SIGINT)
    assert (caught.count, former) == (0, [signal.SIGINT])


def test_what_the_handler_raises_reaches_the_code_and_the_former_handlers_are_back(former):
    def refuse(number: int) -> None:
        raise LookupError(number)

    with pytest.raises(LookupError), CaughtSignals(refuse):
        send(signal.SIGTERM)
    send(signal.SIGTERM)
    assert former == [signal.SIGTERM]


def test_a_process_on_its_way_out_ignores_later_signals(former):
    with CaughtSignals(ignored_afterwards=True):
        send(signal.SIGTERM)
    send(signal.SIGTERM, signal.SIGINT)
    assert former == []


def test_without_a_request_nothing_is_ignored_afterwards(former):
    with CaughtSignals(ignored_afterwards=True):
        pass
    send(signal.SIGINT)
    assert former == [signal.SIGINT]


def test_nested_catchers_give_back_to_each_other(former):
    outer: list[int] = []
    with CaughtSignals(outer.append):
        with CaughtSignals() as inner:
            send(signal.SIGTERM)
        send(signal.SIGINT)
    assert (inner.first_name, outer, former) == ("SIGTERM", [signal.SIGINT], [])


def test_another_thread_than_the_main_one_catches_nothing(former):
    def work() -> None:
        with CaughtSignals():
            send(signal.SIGTERM)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert former == [signal.SIGTERM]


def test_ignored_signals_reach_nobody(former):
    ignore_signals((signal.SIGINT,))
    send(signal.SIGINT)
    assert former == []
