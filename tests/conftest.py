"""Shared by all tests: one torch thread, offline, no settings that happen to lie in the shell, the same examples."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
KEPT = ("STAGELINE_TEST_", "STAGELINE_CLUSTER_")
for name in [name for name in os.environ if name.startswith(("AWS_", "STAGELINE_")) and not name.startswith(KEPT)]:
    del os.environ[name]

# A shell's background job ignores Ctrl-C, and so would what tests start and stop by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadlines: a busy machine would fail tests. Derived examples: a failure is the same for everybody.
settings.register_profile("stageline", max_examples=50, deadline=None, derandomize=True, database=None)
settings.load_profile("stageline")


# Half a million objects of torch and kfp come and stay: looking through them again and again is a tenth of the time.
gc.disable()


def pytest_collection_finish() -> None:
    """What was imported so far is never garbage; also, forked processes then share its pages."""
    gc.freeze()
    gc.set_threshold(50_000)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that make whole runs come first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.path.parent.name != "pipeline")


class Logged(logging.Handler):
    """What loggers say while a test runs, by the names of pytest's own `caplog`.

    That one is off (`-p no:logging`): six times for every test it hangs a handler on each of torch's fifty loggers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    @property
    def text(self) -> str:
        return "\n".join(map(self.format, self.records))

    @contextmanager
    def at_level(self, level: int | str, logger: str = "") -> Iterator[None]:
        """Listen to a logger, all by default, from this level on."""
        chosen = logging.getLogger(logger)
        before = chosen.level
        chosen.setLevel(level)
        try:
            yield
        finally:
            chosen.setLevel(before)


@pytest.fixture
def caplog() -> Iterator[Logged]:
    """Warnings of all loggers, and what `at_level` asks for."""
    root, handler = logging.getLogger(), Logged()
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Two torch threads on a busy machine can be 80 times slower than one."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
