"""Things handed to a thread that may be slow: putting never waits, and what did not get through is counted.

For what lies beside a training and may neither end nor delay it: trackers, pictures.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Handover(Generic[T]):
    """A bounded queue and the thread at its other end.

    name: of the thread.  work: run there, over the items as they come, until there are no more; it must not raise.
    length: items that may wait.
    """

    def __init__(self, name: str, work: Callable[[Iterator[T]], None], *, length: int) -> None:
        self._queue: queue.Queue[T | None] = queue.Queue(length)
        self._lost = 0
        self._thread = threading.Thread(target=lambda: work(self._items()), name=name, daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Hand an item on, or count it as lost where too many wait; returns at once."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._lost += 1

    def close(self, seconds: float) -> int:
        """Wait for what is queued, at most about twice `seconds`. Returns how many items did not get through."""
        ends = 1
        try:
            self._queue.put(None, timeout=seconds)
        except queue.Full:
            ends = 0
        self._thread.join(seconds)
        return self._lost + (self._queue.qsize() - ends if self._thread.is_alive() else 0)

    def _items(self) -> Iterator[T]:
        while (item := self._queue.get()) is not None:
            yield item
