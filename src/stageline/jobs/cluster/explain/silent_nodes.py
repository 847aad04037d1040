"""Nodes that went silent under a stage's pods: noticed from the pods alone, named with what frees them. Pure.

A role that may not read nodes sees it from the pods: declared not ready by the node controller, marked by the taint
manager, or still terminating after their grace. Times are of this process: since when it was seen so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stageline.errors import NodeLostError
from stageline.jobs.cluster.explain.describe import condition, is_silent, pod_label, pod_node, pod_phase, timestamp

OVERDUE_SECONDS = 15.0
"""Past its deletion time before a terminating pod counts as stuck: a kubelet that lives needs a few seconds."""


def is_stuck(pod: Mapping[str, Any], now: float) -> bool:
    """Whether a pod should have ended by now and its node does not say so. now: wall clock."""
    end = timestamp(pod["metadata"].get("deletionTimestamp"))  # already includes the grace
    running = pod_phase(pod) in ("Pending", "Running")
    return end is not None and now > end + OVERDUE_SECONDS and running and bool(pod_node(pod))


class SilentPods:
    """Since when pods have been silent, by uid."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def update(self, pods: Iterable[Mapping[str, Any]], now: float) -> list[tuple[Mapping[str, Any], float]]:
        """(pod, silent for how many seconds) of every pod whose node does not answer, the longest first."""
        found = {}
        for pod in pods:
            uid = pod["metadata"]["uid"]
            since = self._since.get(uid)
            tainted = condition(pod, "DisruptionTarget").get("reason") == "DeletionByTaintManager"
            # A pod that somebody else deleted may well be not ready: it is silent once it is overdue.
            expected = not pod["metadata"].get("deletionTimestamp") or tainted or since is not None
            if is_stuck(pod, now) or (expected and is_silent(pod)):
                found[uid] = (pod, now if since is None else since)
        self._since = {uid: since for uid, (_, since) in found.items()}
        return sorted(((pod, now - since) for pod, since in found.values()), key=lambda entry: -entry[1])


def node_lost_error(pods: list[Mapping[str, Any]], seconds: float, namespace: str, state: str) -> NodeLostError:
    """The error naming node, pods and the command. state: what the API says of the node, or "unknown"."""
    node = pod_node(pods[0])
    names = ", ".join(pod_label(pod) for pod in pods if pod_node(pod) == node)
    full = " ".join(str(pod["metadata"]["name"]) for pod in pods if pod_node(pod) == node)
    return NodeLostError(
        f"node {node!r} has been silent for {seconds:.0f} s (its state: {state}), and with it {names}: "
        f"the job was ended, so that nothing waits for it",
        remedy=f"if the node is off for good: kubectl -n {namespace} delete pod {full} --force --grace-period=0, or "
        f"kubectl taint node {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute; then start again",
        code="E_NODE_LOST",
    )


def node_state(node: Mapping[str, Any]) -> str:
    """`Ready Unknown since 10:02: Kubelet stopped posting node status.`"""
    ready = condition(node, "Ready")
    if not ready:
        return "unknown"
    return f"Ready {ready.get('status')} since {ready.get('lastTransitionTime')}: {ready.get('message')}"
