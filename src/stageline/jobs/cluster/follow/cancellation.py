"""Ending a job from a signal handler: fast, once, and only if the launcher's own pod is not merely being moved."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress

from stageline.errors import StagelineError
from stageline.jobs.cluster.follow.job_lease import Holder
from stageline.kube.client import Api
from stageline.kube.keys import PODS

MOVED_SECONDS = 0.3
"""How long a SIGTERM waits for the own pod's conditions: a KFP step has about one second in all."""


def was_moved(api: Api, holder: Holder) -> bool:
    """Whether our own pod is being drained, evicted or preempted, so that a retried step will adopt the job.

    Asked when SIGTERM comes rather than watched: the condition is written before the signal is sent, so one GET cannot
    be behind as a watch can, and it costs milliseconds. No answer in time, or no pod: False, and the job is deleted.
    """
    if not holder.pod:
        return False
    try:
        pod = api.get(PODS, holder.pod, namespace=holder.pod_namespace, seconds=MOVED_SECONDS)
    except StagelineError:
        return False
    return any(
        condition.get("type") == "DisruptionTarget" and condition.get("status") == "True"
        for condition in (pod.get("status") or {}).get("conditions") or []
    )


class Cancellation:
    """Runs `fire` in a thread of its own as soon as `request` is called, which a signal handler may do.

    A pipe and nothing else: locks and events must not be touched by a handler that may have interrupted their holder.
    """

    def __init__(self, fire: Callable[[], None]) -> None:
        self.requested = 0
        self.done = threading.Event()
        self._fire = fire
        self._reader, self._writer = os.pipe()
        threading.Thread(target=self._wait, name="cancellation", daemon=True).start()

    def request(self) -> None:
        self.requested += 1
        with suppress(OSError):
            os.write(self._writer, b"x")

    def _wait(self) -> None:
        word = os.read(self._reader, 1)
        try:
            if word == b"x":
                self._fire()
        finally:
            self.done.set()
            os.close(self._reader)

    def close(self) -> None:
        """End the thread of a job that nobody will cancel any more."""
        writer, self._writer = self._writer, -1
        if writer >= 0:
            with suppress(OSError):
                os.write(writer, b".")
            os.close(writer)
