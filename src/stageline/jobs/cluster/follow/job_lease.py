"""What ties a job to its launcher: a Lease that says who follows it, and the pod that the job goes with.

Of two launchers of one job the one with the Lease goes on. Its holder is named so that another can tell whether it is
dead: a pod by its uid, a process by its marks on the same machine; of other machines only the Lease's age tells.

No Lease is deleted from here: whoever may delete Leases may delete the locks of controllers. It is given back by an
update and belongs to its job, with which Kubernetes collects it; where no job came it belongs to nothing that is there,
and is collected too.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from stageline.config.bounds import read_json
from stageline.errors import BusyError, ClusterError, ClusterUnavailableError, InterruptedRunError, StagelineError
from stageline.kube.client import Api, own_namespace
from stageline.kube.keys import ANNOTATION_HOLDER, API_VERSION, KIND, LEASES, PODS, annotation
from stageline.kube.refusals import AbsentError, ConflictError, ExistsError
from stageline.store.holder import is_dead, this_process

TTL_SECONDS = 30
LONGEST_TTL_SECONDS = 300.0
"""A Lease that says more counts as if it said this, chosen here: no launcher asks for more, none waits for years."""
RENEWALS_PER_TTL = 3
SKEW_SECONDS = 10.0
"""How far the clocks of two launchers may be apart: chosen here."""
LOOK_SECONDS = 1.0
KFP_CONTAINER = "main"
"""The container of a KFP step's pod in which the launcher runs."""


@dataclass(frozen=True)
class Holder:
    """Who we are. name: `<pod>/<uid>` or `<host>/<process>-<nonce>`.  owner: the ownerReference to our pod, if any."""

    name: str
    marks: Mapping[str, Any]
    owner: Mapping[str, Any] | None = None
    pod: str = ""
    pod_namespace: str = ""


def this_holder(namespace: str, environ: Mapping[str, str] = os.environ) -> Holder:
    """This launcher. In a KFP step its pod owns the job, if the job lives in the pod's own namespace."""
    pod, uid = environ.get("KFP_POD_NAME", ""), environ.get("KFP_POD_UID", "")
    nonce = uuid.uuid4().hex[:8]
    if not (pod and uid):
        marks = this_process()
        return Holder(f"{socket.gethostname()}/{marks['pid']}-{nonce}", marks)
    where = own_namespace()
    owner = reference("v1", "Pod", pod, uid)
    marks = {**this_process(), "pod": pod, "uid": uid, "namespace": where}
    return Holder(f"{pod}/{uid}/{nonce}", marks, owner if where == namespace else None, pod, where)


def lease_state(
    lease: Mapping[str, Any], me: str, *, now: float, alive: bool | None, still_seconds: float, renewed: bool
) -> Literal["ours", "free", "busy", "wait"]:
    """What a Lease that is there means to us. Pure.

    now: wall clock.  alive: whether the holder lives, None if nobody knows.  still_seconds: how long we have looked at
    it without seeing it renewed.  renewed: whether we saw it renewed.
    """
    spec = lease.get("spec") or {}
    holder = spec.get("holderIdentity") or ""
    ttl = min(float(spec.get("leaseDurationSeconds") or TTL_SECONDS), LONGEST_TTL_SECONDS)
    if holder == me:
        return "ours"
    age = now - _seconds(str(spec.get("renewTime") or ""))
    if not holder or alive is False or age > ttl + SKEW_SECONDS or still_seconds > ttl:
        return "free"
    return "busy" if renewed or (alive and age < ttl) else "wait"


def is_launcher_running(pod: Mapping[str, Any], uid: str) -> bool | None:
    """Whether the launcher in the pod of that uid still runs; None while the pod is being stopped. Pure."""
    status = pod.get("status") or {}
    containers: list[Mapping[str, Any]] = status.get("containerStatuses") or []
    main: Mapping[str, Any] = next((c for c in containers if c.get("name") == KFP_CONTAINER), {})
    if pod["metadata"]["uid"] != uid or status.get("phase") in ("Succeeded", "Failed"):
        return False
    if "terminated" in (main.get("state") or {}):  # its other containers take a few seconds more
        return False
    return None if pod["metadata"].get("deletionTimestamp") else True


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def reference(version: str, kind: str, name: str, uid: str) -> dict[str, Any]:
    """An ownerReference that neither controls nor holds back its owner."""
    shown = {"apiVersion": version, "kind": kind, "name": name, "uid": uid}
    return {**shown, "controller": False, "blockOwnerDeletion": False}


def micro_time(seconds: float) -> str:
    """A wall-clock time as Kubernetes writes a MicroTime."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class JobLease:
    """The Lease of one job, renewed by a thread.

    api: the job's API server and namespace.
    name: of the job, and of the Lease.
    holder: who we are.
    labels: of the Lease.
    on_lost: called from that thread once somebody else has it.
    ttl_seconds: how long it counts without being renewed.
    """

    def __init__(
        self,
        api: Api,
        name: str,
        holder: Holder,
        labels: Mapping[str, str],
        on_lost: Callable[[StagelineError], None],
        *,
        ttl_seconds: int = TTL_SECONDS,
    ) -> None:
        self._api = api
        self._name = name
        self._holder = holder
        self._labels = dict(labels)
        self._on_lost = on_lost
        self._ttl_seconds = ttl_seconds
        self._lease: dict[str, Any] = {}
        self._owner = holder.owner
        self._heir: Mapping[str, Any] = reference("v1", "Pod", name, str(uuid.uuid4()))
        """Owner of the Lease once it is given back: a job that was there, else a pod that never was."""
        self._ended = threading.Event()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, say: Callable[[str], None], is_cancelled: Callable[[], bool]) -> None:
        """Take the Lease and keep it renewed; BusyError where a living launcher has it.

        Where nobody can tell whether the holder lives, looks on for at most the Lease's length.
        """
        first, since = "", time.monotonic()
        while True:
            if is_cancelled():
                raise InterruptedRunError(f"{self._name} was asked to stop", remedy="run again to continue")
            found = self._read()
            if found is None:
                if self._create():
                    break
                continue
            spec = found.get("spec") or {}
            renewal = f"{spec.get('holderIdentity')} {spec.get('renewTime')}"
            if not first:
                first = renewal
            verdict = lease_state(
                found,
                self._holder.name,
                now=time.time(),
                alive=self._is_alive(found),
                still_seconds=time.monotonic() - since,
                renewed=renewal != first,
            )
            if verdict == "busy":
                raise self._busy(found)
            if verdict in ("free", "ours"):
                if self._replace(found):
                    break
                continue
            if time.monotonic() - since < LOOK_SECONDS:
                say(f"waiting up to {self._ttl_seconds} s to see whether launcher {spec.get('holderIdentity')} lives")
            self._ended.wait(LOOK_SECONDS)
        self._thread = threading.Thread(target=self._keep, name="job-lease", daemon=True)
        self._thread.start()

    def _read(self) -> dict[str, Any] | None:
        try:
            return self._api.get(LEASES, self._name)
        except AbsentError:
            return None

    def belong_to(self, job: Mapping[str, Any] | None) -> None:
        """Have the Lease collected with this job from now on; None: the job goes, and the Lease outlives it."""
        if job is None:
            self._owner = self._holder.owner
        else:
            metadata = job["metadata"]
            self._owner = self._heir = reference(API_VERSION, KIND, metadata["name"], metadata["uid"])
        self._woken.set()

    def _manifest(
        self, before: Mapping[str, Any] | None, owner: Mapping[str, Any] | None, holder: str
    ) -> dict[str, Any]:
        now = micro_time(time.time())
        spec = (before or {}).get("spec") or {}
        same = spec.get("holderIdentity") == holder
        metadata: dict[str, Any] = {
            "name": self._name,
            "namespace": self._api.namespace,
            "labels": self._labels,
            "annotations": {ANNOTATION_HOLDER: json.dumps(self._holder.marks)},
            "ownerReferences": [dict(owner)] if owner else [],
        }
        if before:
            metadata |= {key: before["metadata"][key] for key in ("resourceVersion", "uid")}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": self._ttl_seconds,
                "acquireTime": spec.get("acquireTime") if same else now,
                "renewTime": now,
                "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (0 if same or not before else 1),
            },
        }

    def _create(self) -> bool:
        with suppress(ExistsError):
            self._lease = self._api.create(LEASES, self._manifest(None, self._owner, self._holder.name))
            return True
        return False

    def _replace(self, found: Mapping[str, Any]) -> bool:
        with suppress(ConflictError, AbsentError):
            self._lease = self._api.replace(LEASES, self._manifest(found, self._owner, self._holder.name))
            return True
        return False

    def _is_alive(self, lease: Mapping[str, Any]) -> bool | None:
        """Whether a Lease's holder lives; None if nobody knows."""
        try:
            marks = read_json(annotation(lease, ANNOTATION_HOLDER))
            if is_dead(marks):
                return False
            if "uid" not in marks:
                return True if marks["host"] == self._holder.marks["host"] else None
            if marks["namespace"] == self._api.namespace:
                return is_launcher_running(self._api.get(PODS, marks["pod"]), str(marks["uid"]))
        except AbsentError:
            return False
        except (KeyError, ValueError, TypeError, ClusterError):
            return None
        return None

    def _busy(self, found: Mapping[str, Any]) -> BusyError:
        spec = found["spec"]
        return BusyError(
            f"the job {self._name!r} is followed by another launcher, {spec.get('holderIdentity')!r} "
            f"(last sign of life {spec.get('renewTime')})",
            remedy=f"stop that launcher and start again; or look on: stageline job logs {self._name}",
            code="E_TWO_LAUNCHERS",
        )

    def _keep(self) -> None:
        while True:
            self._woken.wait(self._ttl_seconds / RENEWALS_PER_TTL)
            self._woken.clear()
            if self._ended.is_set():
                return
            try:
                if self._replace(self._lease):
                    continue
                found = self._read()  # our own renewal whose answer got lost, a collected Lease, or another launcher
                if found is None:  # collected with its job, which somebody deleted
                    self._owner = self._holder.owner
                    self._create()
                elif (found.get("spec") or {}).get("holderIdentity") == self._holder.name:
                    self._replace(found)
                else:
                    self._on_lost(self._busy(found))
                    return
            except ClusterUnavailableError:
                continue  # whoever takes it meanwhile is noticed at the next renewal
            except StagelineError as error:
                self._on_lost(error)
                return

    def release(self) -> None:
        """Give the Lease back, if it is still ours: it has no holder from then on; never fails."""
        self._ended.set()
        self._woken.set()
        if self._thread is None:
            return
        self._thread.join(timeout=5.0)
        if self._lease:
            with suppress(StagelineError):
                self._api.replace(LEASES, self._manifest(self._lease, self._heir, ""), seconds=5.0)
