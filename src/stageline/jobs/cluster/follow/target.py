"""What following a job needs to know of it, and what the store tells of its result."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from stageline.errors import InterruptedRunError, StoreUnavailableError
from stageline.jobs.job import Job, Verdict

if TYPE_CHECKING:
    from stageline.config import ClusterConfig


Answer = TypeVar("Answer")
LOOK_SECONDS = 2.0
"""A cancelled launcher asks no longer than this."""


class Probe(Protocol):
    """What the store says about a job's result."""

    def finished(self) -> bool:
        """Whether the final result is committed."""

    def progress(self) -> int:
        """The newest committed step, -1 if there is none."""


def ask_store(question: Callable[[], Answer], is_cancelled: Callable[[], bool]) -> Answer:
    """The store's answer, asked from another thread: a store that hangs must not keep signals from this one.

    Raises StoreUnavailableError where somebody cancelled meanwhile and there is no answer yet.
    """
    answers: queue.SimpleQueue[tuple[Answer | None, BaseException | None]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put((question(), None))
        except BaseException as error:  # noqa: BLE001  # raised where it was asked for
            answers.put((None, error))

    threading.Thread(target=ask, name="store", daemon=True).start()
    while True:
        try:
            answer, error = answers.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            if is_cancelled():
                raise StoreUnavailableError("the store did not answer before the job was cancelled") from None
            continue
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]  # None only where the question's answer is


@dataclass(frozen=True)
class Followed:
    """What is followed. live: the job as it was started or adopted.  launcher: our holder's name.

    is_cancelled: whether somebody asked us to delete it.
    """

    job: Job
    cluster: ClusterConfig
    probe: Probe
    say: Callable[[str], None]
    live: dict[str, Any]
    launcher: str
    is_cancelled: Callable[[], bool]

    @property
    def uid(self) -> str:
        return str(self.live["metadata"]["uid"])


def interrupted(sentence: str, remedy: str) -> Verdict:
    """The verdict on a job that was asked to stop, or left running."""
    return Verdict.of(InterruptedRunError(sentence, remedy=remedy))
