"""Whether a job's result is there: what the store tells, or the API server where nobody reaches the store."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from stageline.config import ClusterConfig
from stageline.errors import StoreUnavailableError
from stageline.jobs.cluster.follow.adoption import outcome
from stageline.kube.client import Api
from stageline.kube.keys import ANNOTATION_FINGERPRINT, JOBS, annotation
from stageline.kube.refusals import AbsentError

Answer = TypeVar("Answer")
LOOK_SECONDS = 2.0
"""A cancelled launcher asks no longer than this."""


class JobResult(Protocol):
    """What lies in the store of a job's result; whoever starts the job says where to look."""

    def finished(self) -> bool:
        """Whether the final result is committed."""

    def progress(self) -> int:
        """The newest committed step, -1 if there is none."""


def ask_store(question: Callable[[], Answer], is_cancelled: Callable[[], bool]) -> Answer:
    """The store's answer, asked from another thread: a store that hangs must not keep signals from this one.

    question: asks the store; what it raises is raised here.
    is_cancelled: whether the job was cancelled meanwhile.
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


class SucceededJob:
    """A `JobResult` asked of the API server, for whoever does not reach the store.

    The entry ends a pod with 0 only once its result is committed, so that a job that succeeded has one.
    """

    def __init__(self, name: str, fingerprint: str, cluster: ClusterConfig) -> None:
        self._name = name
        self._fingerprint = fingerprint
        self._cluster = cluster
        self._api: Api | None = None

    def finished(self) -> bool:
        """Whether the job of that name and fingerprint succeeded."""
        self._api = self._api or Api.connect(self._cluster.namespace, self._cluster.context)
        try:
            job = self._api.get(JOBS, self._name)
        except AbsentError:
            return False
        return outcome(job) == "Succeeded" and annotation(job, ANNOTATION_FINGERPRINT) == self._fingerprint

    def progress(self) -> int:
        """-1: committed steps are seen in the store only."""
        return -1
