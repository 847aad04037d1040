"""A followed job as the watches have told it so far: what changed, in words, and what its state means. No requests."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stageline.errors import ClusterError, StagelineError
from stageline.jobs.cluster.explain.describe import (
    LONGEST_TEXT,
    condition,
    describe_event,
    describe_job,
    describe_pod,
    ending,
    job_failure,
    pod_index,
    pod_label,
    pod_node,
    pod_phase,
    timestamp,
)
from stageline.jobs.cluster.explain.diagnosis import diagnose
from stageline.jobs.cluster.explain.silent_nodes import SilentPods
from stageline.jobs.cluster.follow.adoption import executed_parts, is_suspended, spec_digest
from stageline.jobs.cluster.follow.budget import (
    SeenPods,
    StartClock,
    deadline_error,
    over_budget,
    pending_error,
    read_deadline,
)
from stageline.jobs.job import Job
from stageline.kube.keys import ANNOTATION_DEADLINE, ANNOTATION_PODS_SEEN, ANNOTATION_SPEC, annotation
from stageline.printing import one_line
from stageline.telemetry import FailureRecord

if TYPE_CHECKING:
    from stageline.config import ClusterConfig

GONE_PODS = 32
"""Ended pods kept to explain an end."""
NOTED_EVENTS = 200
OPERATOR_ECHOES = frozenset({"PyTorchJobFailed", "PyTorchJobRestarting", "PyTorchJobSucceeded"})
"""Reasons of events that repeat what the job's and pods' own states say."""


class ObservedJob:
    """One job, its pods and events, as far as the watches told of them. `take_*` yield what is worth saying.

    job: as it was asked for.
    cluster: the section `cluster` of its item: limits and budgets.
    live: the job's object when following began.
    """

    def __init__(self, job: Job, cluster: ClusterConfig, live: dict[str, Any]) -> None:
        self._wanted = job
        self._cluster = cluster
        self.job = live
        self.pods: dict[str, dict[str, Any]] = {}
        self.gone_pods: deque[dict[str, Any]] = deque(maxlen=GONE_PODS)
        self.events: deque[dict[str, Any]] = deque(maxlen=NOTED_EVENTS)
        self.synced: set[str] = set()
        self.is_gone = False
        self.seen_pods = SeenPods.read(annotation(live, ANNOTATION_PODS_SEEN))
        self.submitted = annotation(live, ANNOTATION_SPEC) or spec_digest(live)
        self.lost_pods: list[Mapping[str, Any]] = []
        self.silent_seconds = 0.0
        self._executed_parts = executed_parts(live)
        self._edited = self.submitted
        self._bad_deadline = ""
        self._clock = StartClock(ran=condition(live, "Running") != {})
        self._created = timestamp(live["metadata"].get("creationTimestamp")) or time.time()
        self._silent = SilentPods()
        self._state = ""
        self._texts: dict[str, str] = {}
        self._said: set[tuple[str, str, str]] = set()
        self._silent_said: set[str] = set()
        self._deleted_at: float | None = None

    def take_job(self, job: dict[str, Any]) -> Iterator[str]:
        self.job = job
        if is_suspended(job):  # a queue that took the pods back will give others: no restart of theirs
            self.seen_pods = SeenPods(self.seen_pods.step)
        text = describe_job(job)
        if text and text != self._state:
            yield text
        self._state = text
        deadline = annotation(job, ANNOTATION_DEADLINE)
        if deadline and read_deadline(deadline) is None and deadline != self._bad_deadline:
            self._bad_deadline = deadline
            yield f"the job's annotation of its deadline is no time, and counts as none: {one_line(deadline, 80)}"
        digest = spec_digest(job)
        if digest != self._edited:
            self._edited = digest
            now = executed_parts(job)
            keys = sorted(key for key in {*now, *self._executed_parts} if now.get(key) != self._executed_parts.get(key))
            what = ", ".join(keys) or "what it was submitted with"
            yield (
                f"the job was edited while it runs ({what}): pods started from now on get the new settings, and the "
                "entry refuses a gang that does not agree; delete the job and start again to change it"
            )

    def is_ours(self, pod: Mapping[str, Any]) -> bool:
        """Whether a pod belongs to this very job, not to one of the same name before."""
        owners = pod["metadata"].get("ownerReferences") or []
        return any(owner.get("uid") == self.job["metadata"]["uid"] for owner in owners)

    def is_new(self, pod: Mapping[str, Any]) -> bool:
        return not self.seen_pods.knows(pod_index(pod), pod["metadata"]["uid"])

    def take_pod(self, kind: str, pod: dict[str, Any], step: int) -> Iterator[str]:
        """step: the newest committed one, if the pod is new."""
        uid, label = pod["metadata"]["uid"], pod_label(pod)
        if kind == "deleted":
            self.pods.pop(uid, None)
            self.gone_pods.append(pod)
            before = self._texts.pop(uid, "")
            if pod_phase(pod) == "Failed" and not before.startswith("ended"):
                yield f"{label}: {describe_pod(pod)}"
            if not self.is_gone:
                yield f"{label}: gone"
            return
        self.pods[uid] = pod
        if self.is_new(pod):
            first = not self.seen_pods.pods.get(pod_index(pod))
            self.seen_pods = self.seen_pods.with_pod(pod_index(pod), uid, step)
            if not first:
                since = f" since step {self.seen_pods.step}" if self.seen_pods.step >= 0 else ""
                used = f"{self.seen_pods.restarts} of {self._cluster.restart_budget} restarts used{since}"
                yield f"{label}: started again ({used})"
        text = describe_pod(pod)
        if text != self._texts.get(uid):
            self._texts[uid] = text
            yield f"{label}: {text}"

    def take_event(self, event: dict[str, Any]) -> Iterator[str]:
        """Warnings about this job and its pods, each once however often it is repeated."""
        about = event.get("involvedObject") or {}
        name = str(about.get("name") or "")
        mine = about.get("uid") == self.job["metadata"]["uid"]
        if not mine:
            if not name.startswith(f"{self._wanted.name}-worker-") or about.get("kind") != "Pod":
                return
            when = timestamp(event.get("lastTimestamp") or event.get("eventTime")) or time.time()
            if when < self._created - 1:
                return
        self.events.append(event)
        if event.get("reason") in OPERATOR_ECHOES:
            return
        key = (str(about.get("uid")), str(event.get("reason")), str(event.get("message")))
        if key not in self._said:
            self._said.add(key)
            yield describe_event(event)

    def every_pod(self) -> list[dict[str, Any]]:
        """Those that are there and the last that were."""
        return [*self.pods.values(), *self.gone_pods]

    def living_pods(self) -> list[dict[str, Any]]:
        return [pod for pod in self.pods.values() if pod_phase(pod) in ("Pending", "Running")]

    @property
    def all_succeeded(self) -> bool:
        done = [pod for pod in self.pods.values() if pod_phase(pod) == "Succeeded"]
        return len(done) >= self._wanted.nodes

    def deleted_for(self, now: float) -> float:
        """Seconds since this was first asked."""
        self._deleted_at = self._deleted_at or now
        return now - self._deleted_at

    def over_limit(self, now: float) -> StagelineError | None:
        """The error of a limit that is passed. now: wall clock."""
        why = next((f"{pod_label(pod)} {ending(pod)}" for pod in reversed(self.gone_pods)), "")
        error: StagelineError | None = over_budget(self.seen_pods, self._cluster.restart_budget, why)
        if error:
            found = self._diagnose(None, failed=True)
            if found:
                error.message, error.remedy = f"{error.message}; {found.sentence}", found.remedy or error.remedy
            return error
        return self._over_deadline(now) or self._over_start(now)

    def _over_deadline(self, now: float) -> StagelineError | None:
        deadline = read_deadline(annotation(self.job, ANNOTATION_DEADLINE))
        if deadline is None:
            return None
        # The entry ends running pods at the deadline itself, with a commit and a record of its own.
        running = any(pod_phase(pod) == "Running" for pod in self.pods.values())
        margin = self._cluster.grace_for(self._wanted.shutdown_timeout_seconds) if running else 0
        past = now - deadline
        return deadline_error(past) if past > margin else None

    def _over_start(self, now: float) -> StagelineError | None:
        up = [pod for pod in self.pods.values() if pod_phase(pod) in ("Running", "Succeeded")]
        self._clock.update(
            running=len(up) >= self._wanted.nodes, suspended=is_suspended(self.job), created=self._created, now=now
        )
        limit = self._cluster.pending_seconds
        if not self._clock.is_over(limit, now):
            return None
        found = self._diagnose(None)
        states = sorted(f"{pod_label(pod)} {describe_pod(pod)}" for pod in self.pods.values() if pod not in up)
        cause = found.sentence if found else "; ".join(states[:5]) or "no pod was made"
        return pending_error(len(up), self._wanted.nodes, limit, cause, found.remedy if found else "")

    def silence(self, now: float) -> Iterator[str]:
        """Look for silent nodes; `lost_pods` and `silent_seconds` are those of the one silent longest."""
        found = self._silent.update(self.pods.values(), now)
        self.lost_pods = [pod for pod, _ in found]
        self.silent_seconds = found[0][1] if found else 0.0
        nodes = {pod_node(pod) for pod in self.lost_pods}
        before, self._silent_said = self._silent_said, nodes
        for node in sorted(nodes - before):
            limit = self._cluster.node_lost_seconds
            yield f"node {node} does not answer; if it stays so the step is ended after {limit} s"
        for node in sorted(before - nodes):
            yield f"node {node} answers again, or its pods are gone"

    def _diagnose(self, nodes: list[Mapping[str, Any]] | None, *, failed: bool = False) -> Any:
        pods = list(self.gone_pods) + list(self.pods.values()) if failed else list(self.pods.values())
        return diagnose(self.job, pods, list(self.events), nodes)

    def place(self, record: FailureRecord) -> FailureRecord:
        """The record with the pod and node that a failure belongs to, as far as they are known."""
        pods = self.lost_pods or list(self.gone_pods)[-1:] or list(self.pods.values())[:1]
        return replace(record, pod=str(pods[0]["metadata"]["name"]), node=pod_node(pods[0])) if pods else record

    def failure(self, ended: str, nodes: list[Mapping[str, Any]] | None) -> FailureRecord:
        """The record of a job without a result: the first cause among the pods' own, else a diagnosis.

        ended: the operator's word, `Succeeded` or `Failed`.
        nodes: those of its pods, None where they may not be read.
        """
        if ended == "Succeeded":
            return FailureRecord.of(
                ClusterError(
                    f"the job {self._wanted.name!r} succeeded, but its final result is not in the store",
                    remedy="do the pods write where this launcher reads? compare root and cluster.storage",
                    code="E_NO_RESULT",
                )
            )
        every = self.every_pod()
        cause = job_failure(every)
        if cause:
            return cause
        found = self._diagnose(nodes, failed=True)
        if found:
            return self.place(replace(found, time=time.time())).redacted()
        message = one_line(condition(self.job, "Failed").get("message") or "no reason given", LONGEST_TEXT)
        ends = "; ".join(f"{pod_label(pod)} {ending(pod)}" for pod in every if pod_phase(pod) == "Failed")
        error = ClusterError(
            f"the job {self._wanted.name!r} failed: {ends or message}",
            remedy="the last lines of its log tell more",
            code="E_JOB_FAILED",
        )
        return self.place(FailureRecord.of(error))
