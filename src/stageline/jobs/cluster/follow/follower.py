"""Following a job: three watches and the logs of its pods in one loop, each change said once, and one verdict.

Success is what the store holds, never a condition: the operator's words decide only when to look. Everything that may
end the job from here (restart budget, time to start, deadline, a silent node) is judged in `observed` and `budget`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from stageline.config import ClusterConfig
from stageline.errors import ClusterError, ClusterUnavailableError, InterruptedRunError, StagelineError
from stageline.jobs.cluster.explain.describe import pod_node
from stageline.jobs.cluster.explain.silent_nodes import node_lost_error, node_state
from stageline.jobs.cluster.follow.adoption import lost_to, outcome
from stageline.jobs.cluster.follow.logs import LogFollower
from stageline.jobs.cluster.follow.observed import ObservedJob
from stageline.jobs.cluster.follow.results import JobResult, ask_store
from stageline.jobs.job import Job, Verdict
from stageline.kube.client import Api
from stageline.kube.keys import ANNOTATION_PODS_SEEN, ANNOTATION_SPEC, EVENTS, JOBS, LABEL_JOB, NODES, PODS
from stageline.kube.refusals import AbsentError, ConflictError
from stageline.kube.watches import Watch
from stageline.telemetry import FailureRecord

Message = tuple[str, Any]
"""What threads tell the loop: (`job` | `pod` | `event`, Change), (`cancelled`, moved), (`lost` | `error`, error)."""

PATIENCE_SECONDS = 300.0
"""How long a job is followed blindly while no API server answers: longer than a restart or an upgrade takes."""
TICK_SECONDS = 0.5
DRAIN_SECONDS = 10.0
"""For the last log lines of pods that ended."""
STORE_SECONDS = 5.0
"""For the store to show the final result of a job that succeeded."""
UNNOTICED_SECONDS = 20.0
"""For the operator to notice that all pods succeeded, before the store is asked without it."""


@dataclass(frozen=True)
class FollowedJob:
    """A job and what following it takes.

    job: as it was asked for.
    cluster: the section `cluster` of its item.
    result: what lies in the store of its result.
    say: told what happens to it, one sentence each.
    live: the job's object, as it was created or adopted.
    launcher: name of our holder of its Lease.
    is_cancelled: whether somebody asked us to delete it.
    keep_policy: told which pods live, since the job's NetworkPolicy must outlive them.
    """

    job: Job
    cluster: ClusterConfig
    result: JobResult
    say: Callable[[str], None]
    live: dict[str, Any]
    launcher: str
    is_cancelled: Callable[[], bool]
    keep_policy: Callable[[Iterable[Mapping[str, Any]]], None]

    @property
    def uid(self) -> str:
        return str(self.live["metadata"]["uid"])


def interrupted(sentence: str, remedy: str) -> Verdict:
    """The verdict on a job that was asked to stop, or left running."""
    return Verdict.of(InterruptedRunError(sentence, remedy=remedy))


class Follower:
    """Follows one job to its end; `run` once, from the thread that signals interrupt.

    api: the job's API server and namespace.
    task: the job.
    messages: what other threads tell this one.
    on_line: gets every line of every pod as it comes.
    """

    def __init__(
        self, api: Api, task: FollowedJob, messages: queue.SimpleQueue[Message], on_line: Callable[[str], None]
    ) -> None:
        self._api = api
        self._task = task
        self._messages = messages
        self.observed = ObservedJob(task.job, task.cluster, task.live)
        self._silence = ""
        self._cancelled = False
        self._hurry = False
        self._written = ""
        self._succeeded_since: float | None = None
        name = task.job.name
        space: dict[str, Any] = {"patience_seconds": PATIENCE_SECONDS, "say": self._server_silent}
        self._watches = {
            "job": Watch(api, JOBS, fields=f"metadata.name={name}", **space),
            "pod": Watch(api, PODS, labels=f"{LABEL_JOB}={name}", **space),
            "event": Watch(api, EVENTS, fields="type=Warning", **space),
        }
        self._logs = LogFollower(api, on_line, prefixed=task.job.nodes > 1, say=task.say)

    def run(self) -> Verdict:
        """Until the job ended, was cancelled, or may not go on."""
        for source, watch in self._watches.items():
            threading.Thread(target=self._pump, args=(source, watch), name=f"watch-{source}", daemon=True).start()
        try:
            return self._loop()
        except StagelineError as error:
            return Verdict.of(error)
        finally:
            for watch in self._watches.values():
                watch.stop()
            self._logs.close()

    def _pump(self, source: str, watch: Watch) -> None:
        """In a thread: a watch's changes as words."""
        try:
            for change in watch.changes():
                self._messages.put((source, change))
        except StagelineError as error:
            if source == "event" and isinstance(error, ClusterError):
                self._messages.put(("note", f"events cannot be read, so less can be explained: {error.message}"))
            else:
                self._messages.put(("error", error))
        except Exception as error:  # noqa: BLE001  # a fault of ours must end the following, not hang it
            self._messages.put(("error", ClusterError(f"watching {source}s failed: {type(error).__name__}: {error}")))

    def _server_silent(self, text: str) -> None:
        if text and not self._silence:
            self._messages.put(("note", f"{text}; trying for {PATIENCE_SECONDS:.0f} s, the job runs on meanwhile"))
        elif not text and self._silence:
            self._messages.put(("note", "the API server answers again"))
        self._silence = text

    def _loop(self) -> Verdict:
        next_tick = 0.0
        while True:
            with suppress(queue.Empty):
                verdict = self._take(*self._messages.get(timeout=TICK_SECONDS))
                if verdict:
                    return verdict
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + TICK_SECONDS
                verdict = self._tick()
                if verdict:
                    return verdict

    def _take(self, source: str, value: Any) -> Verdict | None:
        """One word; a verdict if it ends the following."""
        say = self._task.say
        if source == "note":
            say(value)
        elif source in ("error", "lost"):
            raise value
        elif source == "hurry":
            self._hurry = True
        elif source == "cancelled":
            return self._take_cancelled(moved=value)
        elif value.kind == "synced":
            self.observed.synced.add(source)
        elif source == "event":
            for text in self.observed.take_event(value.object):
                say(text)
        elif source == "pod":
            self._take_pod(value.kind, value.object)
        elif source == "job" and value.object["metadata"]["uid"] == self._task.uid:
            return self._take_job(value.kind, value.object)
        return None

    def _take_cancelled(self, *, moved: bool) -> Verdict | None:
        if moved:
            self._task.say("this launcher's pod is being moved: the job is left running for the next one to follow")
            return interrupted("the launcher's pod was moved to another node; the job runs on", "start it again")
        self._task.say("the job is deleted; its pods commit and end")
        self._cancelled = True
        return None

    def _take_job(self, kind: str, job: dict[str, Any]) -> Verdict | None:
        if kind == "deleted":
            self.observed.is_gone = True
            return None
        taken = lost_to(job, self._task.launcher)
        if taken:
            raise taken
        for text in self.observed.take_job(job):
            self._task.say(text)
        return None

    def _take_pod(self, kind: str, pod: dict[str, Any]) -> None:
        if not self.observed.is_ours(pod):
            return
        if kind == "deleted":
            self._logs.ended(pod)
        else:
            self._logs.update(pod)
        is_new = kind != "deleted" and self.observed.is_new(pod)
        step = self._progress() if is_new else -1
        for text in self.observed.take_pod(kind, pod, step):
            self._task.say(text)

    def _progress(self) -> int:
        try:
            return ask_store(self._task.result.progress, self._task.is_cancelled)
        except StagelineError as error:
            self._task.say(f"the store did not answer: {error.message}")
            return self.observed.seen_pods.step

    def _tick(self) -> Verdict | None:
        """What time brings: limits, the end, notes kept on the job."""
        if self._cancelled or self.observed.is_gone:
            return self._after_deletion()
        if {"job", "pod"} - self.observed.synced:
            return None
        ended = outcome(self.observed.job)
        if ended:
            return self._conclude(ended)
        self._task.keep_policy(self.observed.living_pods())
        self._keep_notes()
        now = time.time()
        error = self.observed.over_limit(now) or self._silent_node(now)
        if error:
            return self._end(error)
        return self._unnoticed_success()

    def _silent_node(self, now: float) -> StagelineError | None:
        for text in self.observed.silence(now):
            self._task.say(text)
        pods = self.observed.lost_pods
        if not pods or self.observed.silent_seconds < self._task.cluster.node_lost_seconds:
            return None
        state = "unknown: this account may not read nodes"
        with suppress(StagelineError):
            state = node_state(self._api.get(NODES, pod_node(pods[0]), seconds=5.0))
        return node_lost_error(pods, self.observed.silent_seconds, self._api.namespace, state)

    def _unnoticed_success(self) -> Verdict | None:
        """All pods done and the result in the store, but no word from the operator: it is down; do not wait for it."""
        if not self.observed.all_succeeded:
            self._succeeded_since = None
            return None
        self._succeeded_since = self._succeeded_since or time.monotonic()
        if time.monotonic() - self._succeeded_since < UNNOTICED_SECONDS:
            return None
        return self._conclude("Succeeded")

    def _keep_notes(self) -> None:
        """Write what a later launcher must know into the job's annotations, when it changed."""
        notes = {ANNOTATION_PODS_SEEN: self.observed.seen_pods.text(), ANNOTATION_SPEC: self.observed.submitted}
        text = str(notes)
        if text == self._written or "uid" not in self.observed.job.get("metadata", {}):
            return
        metadata = self.observed.job["metadata"]
        change = {"metadata": {"resourceVersion": metadata["resourceVersion"], "annotations": notes}}
        try:
            self._api.patch(JOBS, self._task.job.name, change)
            self._written = text
        except (ConflictError, AbsentError, ClusterUnavailableError):
            return  # a newer version of the job is on its way to us; the next tick writes again

    def _end(self, error: StagelineError) -> Verdict:
        """Delete the job and give `error` as its end; unless the result came into the store meanwhile."""
        if self._finished():
            return self._conclude("Succeeded")
        self._task.say(f"ending the job: {error.message}")
        with suppress(AbsentError, ConflictError):
            self._api.delete(JOBS, self._task.job.name, uid=self._task.uid)
        self._logs.drain(1.0)
        return Verdict.of(self.observed.place(FailureRecord.of(error)))

    def _finished(self) -> bool:
        try:
            return ask_store(self._task.result.finished, self._task.is_cancelled)
        except StagelineError as error:
            self._task.say(f"the store did not answer: {error.message}")
            return False

    def _conclude(self, ended: str) -> Verdict:
        """The verdict on a job that the operator, or its pods, call ended."""
        self._logs.drain(DRAIN_SECONDS)
        self._drain_messages()
        end = time.monotonic() + (STORE_SECONDS if ended == "Succeeded" else 2.0)
        while not self._finished():
            if time.monotonic() > end:
                return self._failed(ended)
            time.sleep(TICK_SECONDS)
        if ended == "Failed":
            self._task.say("the job counts as failed, but its result is committed in the store")
        return Verdict(0)

    def _failed(self, ended: str) -> Verdict:
        return Verdict.of(self.observed.failure(ended, self._nodes()))

    def _nodes(self) -> list[Mapping[str, Any]] | None:
        names = {pod_node(pod) for pod in self.observed.every_pod()} - {""}
        found: list[Mapping[str, Any]] = []
        try:
            for name in sorted(names)[:20]:
                with suppress(AbsentError):
                    found.append(self._api.get(NODES, name, seconds=5.0))
        except StagelineError:
            return None
        return found

    def _drain_messages(self) -> None:
        """Take in what the watches have still to tell about how pods ended."""
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            try:
                source, value = self._messages.get(timeout=0.2)
            except queue.Empty:
                return
            if source in ("pod", "event", "note"):
                self._take(source, value)

    def _after_deletion(self) -> Verdict | None:
        """The job is deleted, by us or by somebody: wait for its pods to end, their last lines and their commit."""
        self._cancelled = self._cancelled or self._task.is_cancelled()
        limit = self._task.cluster.grace_for(self._task.job.shutdown_timeout_seconds) + DRAIN_SECONDS
        waiting = (
            self.observed.living_pods() and not self._hurry and self.observed.deleted_for(time.monotonic()) < limit
        )
        if waiting:
            return None
        self._logs.drain(1.0)
        if self._finished():
            return Verdict(0)
        if self._cancelled:
            return interrupted(f"{self._task.job.name} was stopped and its job deleted", "run again to continue")
        error = ClusterError(
            f"the job {self._task.job.name!r} was deleted by somebody else while it ran",
            remedy="start it again to continue from the last checkpoint",
            code="E_JOB_DELETED",
        )
        return Verdict.of(error)
