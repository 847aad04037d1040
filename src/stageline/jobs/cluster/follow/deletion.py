"""Deleting a job: asked for by a signal handler, and awaited until its pods are gone too.

A handler must be fast, and a launcher whose own pod is only being moved leaves the job alone. A new gang must not meet
the old one's pods.

The job's object goes at once, its pods live on through their grace and may still write; one on a node that went silent
stays until somebody frees it, which is told after a stated time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from stageline.errors import ClusterError, NodeLostError, StagelineError
from stageline.jobs.cluster.explain.describe import pod_label, pod_node
from stageline.jobs.cluster.follow.job_lease import Holder
from stageline.kube.client import Api
from stageline.kube.keys import JOBS, LABEL_JOB, PODS
from stageline.kube.refusals import AbsentError

MARGIN_SECONDS = 60.0
"""Past their grace, before old pods count as stuck: the kubelet and the collector need a few seconds."""
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class JobDeletion:
    """Waits until a deleted job and its pods are gone.

    api: the job's API server and namespace.
    name: of the job.
    grace_seconds: how long its pods may take to end.
    say: told once for which pods it waits.
    check: called while waiting; raises where waiting was cancelled.
    """

    api: Api
    name: str
    grace_seconds: float
    say: Callable[[str], None]
    check: Callable[[], None]

    def await_job(self, uid: str) -> None:
        """Until the deleted job of that uid and the pods it has now are gone."""
        pods = {pod["metadata"]["uid"] for pod in self._pods()}
        end = time.monotonic() + self.grace_seconds + MARGIN_SECONDS
        while self._is_there(uid):
            self.check()
            if time.monotonic() > end:
                raise self._held()
            time.sleep(POLL_SECONDS)
        self.await_pods(pods)

    def await_pods(self, uids: set[str] | None = None) -> None:
        """Until these pods, or all of the job's name, are gone."""
        limit = self.grace_seconds + MARGIN_SECONDS
        end = time.monotonic() + limit
        said = False
        while left := [pod for pod in self._pods() if uids is None or pod["metadata"]["uid"] in uids]:
            self.check()
            names = ", ".join(f"{pod_label(pod)} on {pod_node(pod) or 'no node'}" for pod in left)
            if not said:
                self.say(f"waiting for the pods of the job before to end: {names}")
                said = True
            if time.monotonic() > end:
                raise self._stuck(left, names, limit)
            time.sleep(POLL_SECONDS)

    def _is_there(self, uid: str) -> bool:
        try:
            return bool(self.api.get(JOBS, self.name)["metadata"]["uid"] == uid)
        except AbsentError:
            return False

    def _pods(self) -> list[dict[str, Any]]:
        return list(self.api.list(PODS, labels=f"{LABEL_JOB}={self.name}").get("items") or [])

    def _held(self) -> StagelineError:
        return ClusterError(
            f"the job {self.name!r} was deleted and is still there: something holds it by a finalizer",
            remedy=f"kubectl -n {self.api.namespace} get pytorchjob {self.name} -o yaml shows metadata.finalizers",
            code="E_OLD_JOB",
        )

    def _stuck(self, pods: list[dict[str, Any]], names: str, limit: float) -> StagelineError:
        first = pods[0]["metadata"]["name"]
        return NodeLostError(
            f"the pods of the job before are still there after {limit:.0f} s ({names}); while they are, "
            "a new job could write beside them",
            remedy="if their node is gone for good: "
            f"kubectl -n {self.api.namespace} delete pod {first} --force --grace-period=0",
            code="E_OLD_PODS",
        )


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
