"""A job on a cluster: started, or adopted where it runs already, followed, cancelled. One job whatever is killed when.

The name is the identity, the fingerprint says whether what runs is what is wanted (`adoption`), a Lease says who
follows it (`job_lease`). Nothing is created before the Lease is ours, and a creation whose answer is lost is looked up.
The job's NetworkPolicy is there before the job, and goes with it (`job_policy`).
"""

from __future__ import annotations

import os
import queue
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from stageline.config.syntax import OWN_PREFIX
from stageline.errors import ClusterUnavailableError, InterruptedRunError, StagelineError
from stageline.jobs.cluster.follow.adoption import adoption_patch, decide
from stageline.jobs.cluster.follow.deletion import Cancellation, JobDeletion, was_moved
from stageline.jobs.cluster.follow.follower import FollowedJob, Follower, Message
from stageline.jobs.cluster.follow.job_lease import Holder, JobLease, this_holder
from stageline.jobs.cluster.follow.job_policy import JobPolicy
from stageline.jobs.cluster.follow.permission import refuse_without_permission
from stageline.jobs.cluster.follow.results import JobResult, ask_store
from stageline.jobs.cluster.render.pytorchjob import render_job, stamp
from stageline.jobs.environment import carried_environment
from stageline.jobs.job import Job, Verdict
from stageline.kube.client import Api
from stageline.kube.keys import (
    ANNOTATION_LAUNCHER,
    ANNOTATION_NONCE,
    JOBS,
    LABEL_KFP_POD,
    OWN_LABELS,
    PODS,
    annotation,
    label,
)
from stageline.kube.refusals import AbsentError, ConflictError, ExistsError

if TYPE_CHECKING:
    from stageline.config import ClusterConfig

Say = Callable[[str], None]

LOOKUP_SECONDS = 60.0
"""How long a creation without an answer is looked up before the launcher gives up."""
DELETE_SECONDS = 10.0


class ClusterJob:
    """One job and its launcher. `start`, then `follow` once; `cancel` at any time, also from a signal handler."""

    def __init__(
        self,
        job: Job,
        cluster: ClusterConfig,
        result: JobResult,
        say: Say,
        *,
        api: Api | None = None,
        holder: Holder | None = None,
    ) -> None:
        self.job = job
        self.cluster = cluster
        self.result = result
        self.say = say
        self.api = api or Api.connect(cluster.namespace, cluster.context)
        self.holder = holder or this_holder(self.api.namespace)
        self.live: dict[str, Any] = {}
        self.manifest = render_job(job, cluster)
        self.manifest["metadata"]["namespace"] = self.api.namespace
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._uid = ""
        self._asked = ""
        self._gate = threading.Lock()
        self._sent = threading.Event()
        self._sent.set()
        self._cancellation = Cancellation(self._fire)
        self._job_policy = JobPolicy(self.api, job, cluster, self.holder.owner, say, self._is_cancelled)
        self._job_lease = JobLease(self.api, job.name, self.holder, self._labels(), self._lost)

    def _labels(self) -> dict[str, str]:
        labels = self.manifest["metadata"]["labels"]
        return {key: labels[key] for key in labels if key in OWN_LABELS or key.startswith(OWN_PREFIX)}

    def _is_cancelled(self) -> bool:
        return bool(self._cancellation.requested)

    def _lost(self, error: StagelineError) -> None:
        self._messages.put(("lost", error))

    def start(self) -> None:
        """Make the job run, or find it running, or find its result there (then `follow` says so at once)."""
        try:
            self._job_lease.acquire(self.say, self._is_cancelled)
            while not self._step():
                self._refuse_cancelled()
        except BaseException as error:
            cancelled = self._is_cancelled()
            if cancelled:
                self._cancellation.done.wait(DELETE_SECONDS)
            self._close()
            if cancelled and isinstance(error, StagelineError):
                raise self._interrupted() from error
            raise

    def _step(self) -> bool:
        """One look at what is there and one answer to it; whether the job runs now (or need not)."""
        live = self._read()
        decision = decide(live, self.manifest, finished=ask_store(self.result.finished, self._is_cancelled))
        where = f"{self.api.namespace}/{self.job.name}"
        if decision.action == "nothing":
            if live is None:
                self._job_policy.clear()
            self.say(f"job {where} need not start: {decision.why}")
            return True
        if live is None:
            self._deletion().await_pods()
            return self._create()
        if decision.action == "adopt":
            return self._adopt(live)
        self.say(f"job {where} is replaced: {decision.why}" if decision.action == "replace" else decision.why)
        if decision.action == "replace":
            with suppress(AbsentError, ConflictError):
                self.api.delete(JOBS, self.job.name, uid=live["metadata"]["uid"])
        self._deletion().await_job(live["metadata"]["uid"])
        return False

    def _deletion(self) -> JobDeletion:
        grace = self.cluster.grace_for(self.job.shutdown_timeout_seconds)
        return JobDeletion(self.api, self.job.name, grace, self.say, self._refuse_cancelled)

    def _read(self) -> dict[str, Any] | None:
        try:
            return self.api.get(JOBS, self.job.name)
        except AbsentError:
            return None

    def _refuse_cancelled(self) -> None:
        if self._cancellation.requested:
            self._cancellation.done.wait(DELETE_SECONDS)
            raise self._interrupted()

    def _interrupted(self) -> InterruptedRunError:
        words = f"stopped by {self._asked}" if self._asked else "asked to stop"
        return InterruptedRunError(f"{self.job.name} was {words}", remedy="run again to continue")

    def _begin(self) -> None:
        """From here on a cancellation waits until it is known what to delete. Raises where it came before."""
        with self._gate:
            if not self._cancellation.requested:
                self._sent.clear()
                return
        self._refuse_cancelled()

    def _create(self) -> bool:
        refuse_without_permission(self.api)
        if self.holder.pod and not self.holder.owner:
            self.say(
                f"the job lives in namespace {self.api.namespace!r} and this pod in {self.holder.pod_namespace!r}: "
                "deleting this pod will not end the job"
            )
        nonce = uuid.uuid4().hex
        seconds = self.cluster.deadline_seconds
        manifest = stamp(
            self.manifest,
            owner=dict(self.holder.owner) if self.holder.owner else None,
            deadline=time.time() + seconds if seconds else None,
            kfp_run_id=self._kfp_run_id(),
            carried=carried_environment(os.environ),
        )
        manifest["metadata"]["annotations"] |= {ANNOTATION_LAUNCHER: self.holder.name, ANNOTATION_NONCE: nonce}
        live = self._create_behind_policy(manifest, nonce)
        if live is None:
            return False
        self._take(live)
        nodes = f"{self.job.nodes} pods" if self.job.nodes > 1 else "one pod"
        self.say(f"submitted job {self.api.namespace}/{self.job.name}: {nodes}, image {self.cluster.image}")
        return True

    def _create_behind_policy(self, manifest: dict[str, Any], nonce: str) -> dict[str, Any] | None:
        """Create the NetworkPolicy, then the job; without the job no policy is left."""
        self._job_policy.make()
        live = None
        try:
            self._begin()
            try:
                live = self._create_once(manifest, nonce)
            finally:
                self._sent.set()
        except ClusterUnavailableError:
            raise  # there may be a job
        except BaseException:
            self._job_policy.withdraw()
            raise
        if live is None:
            self._job_policy.withdraw()
        return live

    def _create_once(self, manifest: dict[str, Any], nonce: str) -> dict[str, Any] | None:
        """Create the job; None where another one is there by now.

        Without an answer nobody knows whether it was created. The same request again settles it: either it goes
        through now, or a job is there, whose nonce tells whose it is.
        """
        end = time.monotonic() + LOOKUP_SECONDS
        while True:
            try:
                live = self.api.create(JOBS, manifest)
            except ExistsError:
                found = self._read()
                if found is None:
                    continue
                if annotation(found, ANNOTATION_NONCE) != nonce:
                    return None
                live = found
            except ClusterUnavailableError as error:
                if time.monotonic() > end or self._cancellation.requested:
                    raise
                self.say(f"{error.message}; looking up what became of the job")
                time.sleep(1.0)
                continue
            self._uid = live["metadata"]["uid"]
            return live

    def _adopt(self, live: dict[str, Any]) -> bool:
        self._begin()
        try:
            patched = self.api.patch(
                JOBS, self.job.name, adoption_patch(live, launcher=self.holder.name, owner=self.holder.owner)
            )
            self._uid = patched["metadata"]["uid"]
        except (ConflictError, AbsentError):
            return False
        finally:
            self._sent.set()
        self._take(patched)
        since = live["metadata"].get("creationTimestamp")
        self.say(f"job {self.api.namespace}/{self.job.name} runs since {since} with the same fingerprint: following it")
        return True

    def _take(self, live: dict[str, Any]) -> None:
        self.live = live
        self._job_policy.give(live)  # also if the job is being deleted already: the policy is collected with it
        self._job_lease.belong_to(live)
        self._refuse_cancelled()

    def _kfp_run_id(self) -> str:
        """KFP's run id off our own pod's label; "" where it cannot be read."""
        if not self.holder.pod:
            return ""
        with suppress(StagelineError):
            pod = self.api.get(PODS, self.holder.pod, namespace=self.holder.pod_namespace)
            return label(pod, LABEL_KFP_POD)
        return ""

    def follow(self, on_line: Callable[[str], None]) -> Verdict:
        """Hand every line of every pod to `on_line` as it comes; say what happens; return the verdict at the end."""
        try:
            if not self.live:
                return Verdict(0)
            task = (self.job, self.cluster, self.result, self.say, self.live, self.holder.name, self._is_cancelled)
            followed = FollowedJob(*task, self._job_policy.keep)
            return Follower(self.api, followed, self._messages, on_line).run()
        finally:
            self._close()

    def detach(self) -> None:
        """Leave the job running with nobody following it; an annotation says so, and whoever comes next adopts it."""
        self._close()
        if self._uid:
            with suppress(StagelineError):
                notes = {"metadata": {"uid": self._uid, "annotations": {ANNOTATION_LAUNCHER: "detached"}}}
                self.api.patch(JOBS, self.job.name, notes)

    def _close(self) -> None:
        self._cancellation.close()
        self._job_lease.release()

    def cancel(self, asked: str = "") -> None:
        """Delete the job now, its pods commit and end; unless our own pod is only being moved. For signal handlers.

        Again: `follow` no longer waits for the pods to end. asked: what made somebody cancel it, for messages.
        """
        self._asked = self._asked or asked
        self._cancellation.request()
        if self._cancellation.requested > 1:
            self._messages.put(("hurry", None))

    def _set_free(self) -> None:
        """Let the job outlive our pod: it would be collected with it before the next launcher adopts it."""
        change = adoption_patch(self.live, launcher=self.holder.name, owner=None)["metadata"]
        self.api.patch(JOBS, self.job.name, {"metadata": {key: change[key] for key in ("uid", "ownerReferences")}})

    def _fire(self) -> None:
        """In the cancellation's thread: wait for a request in flight, then delete what it made."""
        with self._gate:
            pass
        self._sent.wait(DELETE_SECONDS)
        if not self._uid:  # perhaps made by a request whose answer never came
            with suppress(StagelineError):
                found = self._read()
                if found is not None and annotation(found, ANNOTATION_LAUNCHER) == self.holder.name:
                    self._uid = found["metadata"]["uid"]
        if not self._uid:
            self._messages.put(("cancelled", False))
            return
        if was_moved(self.api, self.holder):
            with suppress(StagelineError):
                self._set_free()
            self._messages.put(("cancelled", True))
            return
        end = time.monotonic() + DELETE_SECONDS
        while True:
            try:
                self.api.delete(JOBS, self.job.name, uid=self._uid, seconds=5.0)
            except (AbsentError, ConflictError):
                break
            except ClusterUnavailableError as error:
                if time.monotonic() > end:
                    self._messages.put(("error", error))
                    return
                time.sleep(0.1)
                continue
            except StagelineError as error:
                self._messages.put(("error", error))
                return
            break
        self._job_lease.belong_to(None)
        self._messages.put(("cancelled", False))


def start_on_cluster(
    job: Job,
    cluster: ClusterConfig,
    result: JobResult,
    say: Say,
    *,
    announce: Callable[[ClusterJob], None] = lambda started: None,  # noqa: ARG005
) -> ClusterJob:
    """Start or adopt a job. announce: told of it before anything is sent, so that a signal meanwhile can cancel it.

    Raises PlanError, BusyError, ClusterError or ClusterUnavailableError; then nothing half-made is left.
    """
    started = ClusterJob(job, cluster, result, say)
    announce(started)
    started.start()
    return started
