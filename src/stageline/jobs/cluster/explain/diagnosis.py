"""Why a job does not run, or how it ended, in one sentence with a remedy: from what the API server shows of it. Pure.

The first cause is looked for: a container's own end before pods that were refused, those before what pods wait for.
None where nothing is wrong. What a stage's process says of itself (its failure record) is better and asked first, by
the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from stageline.errors import EXIT_INTERRUPTED, ClusterError, NodeLostError, OutOfMemoryError, StepFailedError
from stageline.jobs.cluster.explain.describe import (
    condition,
    disruption,
    is_silent,
    pod_label,
    pod_node,
    pod_phase,
    timestamp,
    unreadable_record,
)
from stageline.jobs.cluster.explain.signatures import (
    IMAGE,
    LAST_LINES,
    MOUNT,
    REFUSED,
    STARTING,
    UNSCHEDULABLE,
    Signature,
    match,
)
from stageline.kube.keys import CONTAINER, LABEL_QUEUE, Plain, label
from stageline.printing import one_line
from stageline.telemetry import FailureRecord

TRY_AGAIN_REMEDY = "start it again to continue from the last checkpoint"
_WAITING_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_WAITING_START = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff")
_SIGNALS = {
    132: ("SIGILL", "the program uses an instruction this processor lacks; choose other nodes or another image"),
    134: ("SIGABRT", "NCCL and CUDA end so when a device or a link fails: look at the last lines of the log"),
    135: ("SIGBUS", "shared memory ran out: raise cluster.shared_memory"),
    137: ("SIGKILL", "it did not end within cluster.grace_seconds, or its node ran out of memory"),
    139: ("SIGSEGV", "a fault in native code: look at the last lines of the log"),
    143: ("SIGTERM", TRY_AGAIN_REMEDY),
}


def _found(kind: str, sentence: str, remedy: str, exit_code: int = ClusterError.exit_code) -> FailureRecord:
    """A diagnosis. exit_code: below 128 something must be mended, from 128 on the same job may succeed later."""
    return FailureRecord(kind, sentence, remedy, exit_code)


def diagnose(
    job: Plain | None, pods: Sequence[Plain], events: Sequence[Plain], nodes: Sequence[Plain] | None = None
) -> FailureRecord | None:
    """The first cause of what is wrong with a job, or None.

    job: the PyTorchJob, None where it is gone.  pods: its own, those that ended among them.  events: about it and its
    pods.  nodes: None where they may not be read.
    """
    looks: list[Callable[[], Iterator[FailureRecord]]] = [
        lambda: _ended(pods, permanent=True),
        lambda: _refused(job, pods, events),
        lambda: _thrown_out(pods),
        lambda: _lost(pods, nodes),
        lambda: _ended(pods, permanent=False),
        lambda: _waiting(pods, events),
        lambda: _unschedulable(pods),
        lambda: _untouched(job, pods),
    ]
    for look in looks:
        found = next(look(), None)
        if found is not None:
            return found
    return None


def _say(found: tuple[Signature, str, str], pod: Plain | None = None, before: str = "", **words: str) -> FailureRecord:
    """A signature's diagnosis; what it leaves open in {{braces}} is filled from the pod."""
    entry, sentence, remedy = found
    filled = {"pod": str(pod["metadata"]["name"]) if pod else "", **words}
    for key, value in filled.items():
        sentence, remedy = sentence.replace(f"{{{key}}}", value), remedy.replace(f"{{{key}}}", value)
    where = f"{pod_label(pod)}: " if pod else ""
    return _found(entry.kind, f"{where}{before}{_tidy(sentence)}", remedy, entry.exit_code)


def _tidy(text: str) -> str:
    return one_line(" ".join(text.split()), 600)


def _status(pod: Plain) -> Plain:
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        if status.get("name") == CONTAINER:
            return dict(status)
    return {}


def _end_of(pod: Plain) -> Plain | None:
    status = _status(pod)
    for state in (status.get("state") or {}, status.get("lastState") or {}):
        if state.get("terminated") and state["terminated"].get("exitCode") != 0:
            return dict(state["terminated"])
    return None


def _ended(pods: Sequence[Plain], *, permanent: bool) -> Iterator[FailureRecord]:
    """Containers that ended badly, the earliest first. permanent: by a fault of theirs, else stopped or killed."""
    found = [
        (timestamp(end.get("finishedAt")) or 0.0, pod_label(pod), pod, end) for pod in pods if (end := _end_of(pod))
    ]
    for _, _, pod, end in sorted(found, key=lambda entry: entry[:2]):
        code, reason = int(end.get("exitCode") or 1), str(end.get("reason") or "")
        text = str(end.get("message") or "")
        is_start = reason in ("StartError", "ContainerCannotRun")
        is_memory = reason == "OOMKilled"
        if permanent != (is_start or is_memory or code < 128):
            continue
        if is_start:
            start = match(text, STARTING)
            yield _say(start, pod) if start else _found("entrypoint", f"{pod_label(pod)} cannot start", "")
        elif is_memory:
            yield _memory(pod)
        else:
            yield _by_code(pod, code, text)


def _memory(pod: Plain) -> FailureRecord:
    limits = next((c.get("resources") or {} for c in (pod.get("spec") or {}).get("containers") or []), {}).get("limits")
    limit = (limits or {}).get("memory")
    of = f"its limit of {limit}" if limit else f"the memory of node {pod_node(pod)}"
    return _found(
        OutOfMemoryError.kind,
        f"{pod_label(pod)} was killed because it needed more than {of}",
        "raise cluster.resources.limits.memory; /dev/shm counts too (cluster.shared_memory); or lower "
        "trainer.batch_size or trainer.num_workers",
        OutOfMemoryError.exit_code,
    )


def _by_code(pod: Plain, code: int, text: str) -> FailureRecord:
    """By the exit code, and the last lines of the log where the program left no record."""
    label = pod_label(pod)
    unreadable = unreadable_record(pod)
    known = None if unreadable else match(text, LAST_LINES)
    if known:
        return _say(known, pod)
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    tail = f"; {unreadable}" if unreadable else f"; its last line: {_tidy(last)}" if last else ""
    if code >= 128:
        name, remedy = _SIGNALS.get(code, (f"signal {code - 128}", TRY_AGAIN_REMEDY))
        gone = disruption(pod)
        why = f", {gone}" if gone else ""
        return _found("killed", f"{label} ended with exit code {code} ({name}){why}{tail}", remedy, code)
    kind = StepFailedError.kind
    return _found(
        kind, f"{label} ended with exit code {code}{tail}", "the lines before that in its log tell more", code
    )


def _refused(job: Plain | None, pods: Sequence[Plain], events: Sequence[Plain]) -> Iterator[FailureRecord]:
    """Pods that were never created: the job's status stays silent about them."""
    wanted = _replicas(job)
    if len([pod for pod in pods if pod_phase(pod) != "Failed"]) >= wanted:
        return
    for event in _newest_first(events):
        if event.get("reason") != "FailedCreatePod" or "already exists" in str(event.get("message")):
            continue
        found = match(str(event.get("message")), REFUSED)
        if found:
            there = f"only {len(pods)} of {wanted} pods are there: " if pods else ""
            yield _say(found, before=there)


def _replicas(job: Plain | None) -> int:
    worker = ((job or {}).get("spec") or {}).get("pytorchReplicaSpecs", {}).get("Worker", {})
    return int(worker.get("replicas") or 1)


def _newest_first(events: Sequence[Plain]) -> list[Plain]:
    return sorted(events, key=_time_of, reverse=True)


def _time_of(event: Plain) -> float:
    return timestamp(event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp")) or 0.0


def _thrown_out(pods: Sequence[Plain]) -> Iterator[FailureRecord]:
    """Pods that the kubelet would not keep or take."""
    for pod in pods:
        status = pod.get("status") or {}
        reason, message = str(status.get("reason") or ""), _tidy(str(status.get("message") or ""))
        label, node = pod_label(pod), pod_node(pod)
        if reason == "Evicted" and "emptydir" in message.lower():
            remedy = "raise cluster.shared_memory (volume shm) or cluster.scratch (volume tmp)"
            yield _found("evicted", f"{label} was evicted from node {node}: {message}", remedy)
        elif reason == "Evicted":
            remedy = (
                f"ask for what it needs under cluster.resources.requests, so that its node has it; {TRY_AGAIN_REMEDY}"
            )
            yield _found("evicted", f"{label} was evicted from node {node}: {message}", remedy, EXIT_INTERRUPTED)
        elif reason.startswith("OutOf") or reason in ("UnexpectedAdmissionError", "NodeAffinity", "NodePorts"):
            sentence = f"node {node} would not take {label} after all: {reason}: {message or 'no reason given'}"
            yield _found("unschedulable", sentence, TRY_AGAIN_REMEDY, EXIT_INTERRUPTED)
        elif reason in ("Shutdown", "NodeShutdown", "Terminated") and pod_phase(pod) == "Failed":
            yield _found(
                "evicted", f"{label} ended with its node {node}: {message}", TRY_AGAIN_REMEDY, EXIT_INTERRUPTED
            )


def _lost(pods: Sequence[Plain], nodes: Sequence[Plain] | None) -> Iterator[FailureRecord]:
    """Pods on nodes that do not answer, and pods that something takes away."""
    ready = {str(n["metadata"]["name"]): condition(n, "Ready").get("status") == "True" for n in nodes or ()}
    for pod in pods:
        node = pod_node(pod)
        if node and pod_phase(pod) in ("Pending", "Running") and (is_silent(pod) or ready.get(node) is False):
            name = pod["metadata"]["name"]
            yield _found(
                NodeLostError.kind,
                f"node {node} of {pod_label(pod)} does not answer",
                f"if it is off for good: kubectl delete pod {name} --force --grace-period=0; then start again",
                NodeLostError.exit_code,
            )
    for pod in pods:
        why = disruption(pod)
        if why:
            yield _found("evicted", f"{pod_label(pod)} was {why}", TRY_AGAIN_REMEDY, EXIT_INTERRUPTED)


def _waiting(pods: Sequence[Plain], events: Sequence[Plain]) -> Iterator[FailureRecord]:
    """Pods that have a node and do not start."""
    for pod in pods:
        status = _status(pod)
        waiting = (status.get("state") or {}).get("waiting") or {}
        reason, text = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
        own = [event for event in _newest_first(events) if _is_about(event, pod) and event.get("type") == "Warning"]
        told = " ".join([text, *(str(e.get("message")) for e in own if e.get("reason") in ("Failed", "BackOff"))])
        if reason in _WAITING_IMAGE:
            found = match(f"{reason} {told}", IMAGE)
            assert found is not None
            image = next((str(c.get("image")) for c in (pod.get("spec") or {}).get("containers") or []), "")
            yield _say(found, pod, image=f"{str(image or status.get('image'))!r}")
        elif reason in _WAITING_START:
            found = match(text, MOUNT[-1:]) or match(text, STARTING)
            if found:
                yield _say(found, pod)
        elif pod_phase(pod) == "Pending" and pod_node(pod):
            yield from _creating(pod, own)


def _creating(pod: Plain, own: Sequence[Plain]) -> Iterator[FailureRecord]:
    """A pod between its node's choice and its container's start."""
    for event in own:
        reason, message = event.get("reason"), str(event.get("message"))
        if reason in ("FailedMount", "FailedAttachVolume"):
            found = match(message, MOUNT)
            if found:
                yield _say(found, pod)
        elif reason == "FailedCreatePodSandBox":
            yield _found(
                "node",
                f"{pod_label(pod)}: node {pod_node(pod)} cannot set up the pod: {_tidy(message)}",
                "the node's network or container runtime is ill: ask whoever runs the cluster",
                141,
            )


def _is_about(event: Plain, pod: Plain) -> bool:
    about = event.get("involvedObject") or {}
    same = about.get("name") == pod["metadata"]["name"]
    return about.get("kind") == "Pod" and same and about.get("uid") in (None, pod["metadata"].get("uid"))


def _unschedulable(pods: Sequence[Plain]) -> Iterator[FailureRecord]:
    """Pods without a node."""
    for pod in pods:
        scheduled = condition(pod, "PodScheduled")
        if scheduled.get("status") != "False":
            continue
        text = str(scheduled.get("message") or "").partition(" preemption:")[0]
        if scheduled.get("reason") == "SchedulingGated":
            gates = ", ".join(str(g.get("name")) for g in (pod.get("spec") or {}).get("schedulingGates") or [])
            yield _found("queue", f"{pod_label(pod)} is held back by {gates or 'a gate'}", "wait for its queue", 141)
            continue
        found = match(text, UNSCHEDULABLE)
        if found:
            yield _say(found, pod)
            continue
        reasons = list(_scarcities(text))
        sentence = "; ".join(what for what, _ in reasons) or _tidy(text) or "no node takes it"
        remedy = "; ".join(dict.fromkeys(how for _, how in reasons)) or "kubectl describe nodes tells what they have"
        yield _found("unschedulable", f"no node takes {pod_label(pod)}: {sentence}", remedy)


def _scarcities(text: str) -> Iterator[tuple[str, str]]:
    """(what the nodes lack, what to do) of a scheduler's message, `0/4 nodes are available: 3 Insufficient cpu, …`."""
    for count, name in re.findall(r"(\d+) Insufficient ([\w./-]+?)[.,]?(?:\s|$)", text):
        yield f"{count} have too little {name} free", f"ask for less {name} (cluster.resources), or wait for other work"
    if found := re.search(r"(\d+) node\(s\) didn't match Pod's node affinity/selector", text):
        yield f"{found[1]} do not match its selector", "change cluster.node_selector or cluster.affinity"
    for count, taint in re.findall(
        r"(\d+) node\(s\) had untolerated taint(?:\(s\)|s)? ?\{?([^},.]*(?:\.[^},.]+)*)\}?", text
    ):
        yield f"{count} are tainted {taint.strip(': ')}", "tolerate it (cluster.tolerations), or use other nodes"
    if found := re.search(r"(\d+) node\(s\) didn't match pod topology spread constraints", text):
        yield f"{found[1]} have a pod of this stage already", "cluster.spread=prefer lets pods share a node"
    if found := re.search(r"(\d+) node\(s\) were unschedulable", text):
        yield f"{found[1]} are cordoned", "kubectl uncordon them, or use other nodes"


def _untouched(job: Plain | None, pods: Sequence[Plain]) -> Iterator[FailureRecord]:
    """Jobs that wait for somebody else's word."""
    if job is None or pods:
        return
    queue = label(job, LABEL_QUEUE)
    if condition(job, "Suspended").get("status") == "True" or (job.get("spec") or {}).get("runPolicy", {}).get(
        "suspend"
    ):
        where = f"waits in the queue {queue!r}" if queue else "is suspended"
        remedy = f"kubectl describe localqueue {queue}" if queue else "set spec.runPolicy.suspend to false"
        yield _found("queue", f"the job {where}", remedy, 141)
    elif not (job.get("status") or {}).get("conditions"):
        yield _found(
            "operator",
            "nobody has taken up the job: the training-operator does not run, or does not watch this namespace",
            "kubectl get deployments --all-namespaces | grep training-operator",
            141,
        )
