"""The state of a job, its pods and their events in plain words, and what pods left as their last words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime

from stageline.config.bounds import read_json
from stageline.jobs.cluster.follow.adoption import is_suspended
from stageline.kube.keys import CONTAINER, LABEL_QUEUE, LABEL_REPLICA_INDEX, LABEL_REPLICA_TYPE, Plain, label
from stageline.printing import one_line
from stageline.telemetry import TRY_AGAIN, FailureRecord, first_cause

DISRUPTIONS = {
    "EvictionByEvictionAPI": "evicted (a drain, or somebody's request)",
    "PreemptionByScheduler": "preempted by a pod of higher priority",
    "DeletionByTaintManager": "evicted because its node is not ready",
    "DeletionByPodGC": "collected because its node is gone",
    "TerminationByKubelet": "ended by its node (shutdown, or too little memory or disk)",
}
SHORT_TEXT = 300
"""Characters that are shown of a text of others within a sentence."""
LONGEST_TEXT = 2_000
"""Of what Kubernetes says in an event or a status; such texts are at most a KiB where they follow its rules."""
_PULL = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})


def pod_label(pod: Plain) -> str:
    """`worker-0`."""
    kind, index = label(pod, LABEL_REPLICA_TYPE), pod_index(pod)
    return f"{kind}-{index}" if kind and index else str(pod["metadata"]["name"])


def pod_index(pod: Plain) -> str:
    """The replica's number as text."""
    return label(pod, LABEL_REPLICA_INDEX)


def pod_phase(pod: Plain) -> str:
    return str((pod.get("status") or {}).get("phase") or "Pending")


def pod_node(pod: Plain) -> str:
    return str((pod.get("spec") or {}).get("nodeName") or "")


def condition(item: Plain, kind: str) -> Plain:
    """A condition of a job, pod or node; {} where it is not set."""
    for one in (item.get("status") or {}).get("conditions") or []:
        if one.get("type") == kind:
            return dict(one)
    return {}


def timestamp(text: str | None) -> float | None:
    """Seconds of the wall clock of a time as Kubernetes writes it."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None


def disruption(pod: Plain) -> str:
    """Why a pod is being taken away, "" if it is not or nobody says."""
    target = condition(pod, "DisruptionTarget")
    if target.get("status") != "True":
        return ""
    reason = str(target.get("reason") or "")
    return DISRUPTIONS.get(reason, reason or "disrupted")


def is_silent(pod: Plain) -> bool:
    """Whether a pod looks as one whose node does not answer: declared not ready by somebody else than its kubelet.

    The node controller clears `Ready` of a lost node's pods and leaves the containers' own states as the kubelet last
    reported them; a kubelet never reports that contradiction.
    """
    status = pod.get("status") or {}
    if status.get("reason") in ("NodeLost", "NodeUnreachable"):
        return True
    containers = status.get("containerStatuses") or []
    up = bool(containers) and all(c.get("ready") and "running" in (c.get("state") or {}) for c in containers)
    return up and condition(pod, "Ready").get("status") == "False" and not (pod.get("spec") or {}).get("readinessGates")


def describe_pod(pod: Plain) -> str:
    """What a pod does now, without its name: one text per state, so that equal texts mean nothing happened."""
    status = pod.get("status") or {}
    node = pod_node(pod)
    on = f" on {node}" if node else ""
    phase = pod_phase(pod)
    if phase == "Succeeded":
        return f"done{on}"
    if phase == "Failed":
        return f"ended{on}: {ending(pod)}"
    if pod["metadata"].get("deletionTimestamp"):
        why = disruption(pod)
        return f"is being stopped{on}" + (f": {why}" if why else "")
    if is_silent(pod):
        return f"its node {node} does not answer"
    if phase == "Running":
        return f"runs{on}"
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason") or ""
        if reason in _PULL:
            return f"cannot get its image {container.get('image') or ''}{on}"
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            message = one_line(waiting.get("message") or "no reason given", LONGEST_TEXT)
            return f"cannot start{on}: {reason}: {message}"
    return f"starts{on} (volumes, image)" if node else "waits for a node"


def ending(pod: Plain) -> str:
    """How a pod ended: exit code, reason, and its own sentence if it left one."""
    status = pod.get("status") or {}
    why = disruption(pod) or str(status.get("reason") or "")
    record = pod_failure(pod)
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated")
        if ended:
            reason = ended.get("reason") or ""
            note = f" ({reason})" if reason and reason not in ("Error", "Completed") else ""
            said = one_line(record.sentence, LONGEST_TEXT) if record else unreadable_record(pod)
            own = f": {said}" if said else ""
            return f"exit code {ended.get('exitCode')}{note}" + (f", {why}" if why else "") + own
    return why or "nobody says how"


def pod_failure(pod: Plain) -> FailureRecord | None:
    """The failure record in a pod's termination message, None where it left none; with the pod's name and node.

    What happened is the pod's word, what to do about it ours. A record without a time gets that of its container's end.
    """
    for ended in _ends(pod):
        record = _read_record(ended)
        if isinstance(record, FailureRecord):
            time = record.time or timestamp(ended.get("finishedAt")) or 0.0
            own = record.with_own_remedy()
            return replace(own, time=time, pod=str(pod["metadata"]["name"]), node=pod_node(pod))
    return None


def unreadable_record(pod: Plain) -> str:
    """What is wrong with a termination message that looks like a record and is none, "" where there is no such one."""
    found = (_read_record(ended) for ended in _ends(pod))
    return next((text for text in found if isinstance(text, str) and text), "")


def _ends(pod: Plain) -> Iterator[Plain]:
    """How its container ended, this time and the time before; what others put beside it has no say."""
    own = [c for c in (pod.get("status") or {}).get("containerStatuses") or [] if c.get("name", CONTAINER) == CONTAINER]
    for container in own:
        for state in (container.get("state") or {}, container.get("lastState") or {}):
            if state.get("terminated"):
                yield state["terminated"]


def _read_record(ended: Plain) -> FailureRecord | str | None:
    """The record of a container's end, a sentence where it is none, None where the message is none of a record's form.

    A container that ended well has no failure, whatever it says; one that ended by itself has the code of its record.
    """
    message = str(ended.get("message") or "")
    if not message.lstrip().startswith("{"):
        return None  # the last lines of a log
    code = ended.get("exitCode")
    try:
        plain = read_json(message)
        record = FailureRecord.from_json(plain)
        absent = [name for name in ("exit_code", "sentence") if not plain.get(name)]
        fault = f"{' and '.join(absent)} missing" if absent else ""
    except ValueError as error:
        fault = str(error)
    if not fault and code != record.exit_code and not (type(code) is int and code >= TRY_AGAIN):
        fault = f"exit_code {record.exit_code}, and the container ended with {code}"
    if fault:
        return f"unreadable record: {one_line(fault, SHORT_TEXT)}; found {one_line(message, SHORT_TEXT)}"
    return record


def job_failure(pods: Iterable[Plain]) -> FailureRecord | None:
    """The record of the pod that ended a gang, None where no pod left one; `telemetry.first_cause` says which."""
    return first_cause(record for pod in pods if (record := pod_failure(pod)) is not None)


def describe_job(job: Plain) -> str:
    """What the operator says of a job, "" while it says nothing new."""
    if is_suspended(job):
        queue = label(job, LABEL_QUEUE)
        return f"waits in queue {queue}" if queue else "is suspended"
    for kind, text in (
        ("Succeeded", "the job succeeded"),
        ("Failed", "the job failed"),
        ("Restarting", "the pods are started again"),
        ("Running", "the job runs"),
    ):
        found = condition(job, kind)
        if found.get("status") == "True":
            return text
    return ""


def describe_event(event: Plain) -> str:
    """`worker-1: FailedScheduling: 0/2 nodes are available`; the object's name where it is not a pod."""
    about = event.get("involvedObject") or {}
    name = str(about.get("name") or "")
    if about.get("kind") == "Pod":
        name = "-".join(name.split("-")[-2:])
    message = one_line(str(event.get("message") or "").strip(), LONGEST_TEXT)
    return f"{one_line(name, SHORT_TEXT)}: {one_line(event.get('reason'), SHORT_TEXT)}: {message}"
