"""Pods and jobs as an API server shows them, for every test that looks at some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Plain = dict[str, Any]


def container_status(state: Mapping[str, Any], *, ready: bool = False, **fields: Any) -> Plain:
    """The trainer's container. state: {"running": {}}, {"waiting": {...}} or {"terminated": {...}}."""
    return {"name": "pytorch", "ready": ready, "state": dict(state), **fields}


RUNNING = container_status({"running": {}}, ready=True)


def worker_pod(
    phase: str = "Running",
    *,
    index: int = 0,
    uid: str = "",
    node: str = "n1",
    conditions: Sequence[Mapping[str, Any]] = (),
    containers: Sequence[Mapping[str, Any]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    **status: Any,
) -> Plain:
    """A worker of `octa-film`; without `containers`, its own runs where the phase says so."""
    usual = [RUNNING] if phase == "Running" else []
    labels = {
        "training.kubeflow.org/replica-type": "worker",
        "training.kubeflow.org/replica-index": str(index),
    }
    named = {"name": f"octa-film-worker-{index}", "uid": uid or f"u{index}", "labels": labels}
    statuses = usual if containers is None else list(containers)
    return {
        "metadata": {**named, **(metadata or {})},
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase, "conditions": list(conditions), "containerStatuses": statuses, **status},
    }


def live_job(
    *,
    container: Mapping[str, Any] | None = None,
    conditions: Sequence[Mapping[str, Any]] = (),
    **metadata: Any,
) -> Plain:
    """The job `octa-film` of two workers. container: what each of them executes."""
    own = {"name": "pytorch", **(container or {"image": "i"})}
    worker = {"replicas": 2, "template": {"spec": {"containers": [own]}}}
    return {
        "metadata": {"name": "octa-film", "namespace": "train", "uid": "job-1", **metadata},
        "spec": {"pytorchReplicaSpecs": {"Worker": worker}},
        "status": {"conditions": list(conditions)},
    }
