"""Jobs of ours as rows: which run and stage, how far, since when. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stageline.jobs.cluster.explain.describe import condition, describe_pod, pod_phase, timestamp
from stageline.jobs.cluster.follow.adoption import is_suspended, outcome
from stageline.jobs.cluster.follow.budget import SeenPods
from stageline.kube.keys import (
    ANNOTATION_FINGERPRINT,
    ANNOTATION_LAUNCHER,
    ANNOTATION_PODS_SEEN,
    LABEL_JOB,
    LABEL_RUN,
    LABEL_STAGE,
    LABEL_VARIANT,
    Plain,
    annotation,
    label,
)


@dataclass(frozen=True)
class Row:
    """One job. running, wanted: pods.  restarts: since the newest checkpoint.  launcher: who follows it, if anybody."""

    name: str
    run: str
    stage: str
    variant: str
    state: str
    running: int
    wanted: int
    restarts: int
    age_seconds: float
    fingerprint: str
    launcher: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def list_rows(jobs: Sequence[Plain], pods: Sequence[Plain], *, now: float | None = None) -> list[Row]:
    """One row per job, by run and age. pods: of all of them."""
    now = time.time() if now is None else now
    by_job: dict[str, list[Plain]] = {}
    for pod in pods:
        by_job.setdefault(str(label(pod, LABEL_JOB)), []).append(pod)
    rows = [_row(job, by_job.get(str(job["metadata"]["name"]), []), now) for job in jobs]
    return sorted(rows, key=lambda row: (row.run, -row.age_seconds, row.name))


def _row(job: Plain, pods: Sequence[Plain], now: float) -> Row:
    metadata = job["metadata"]
    worker = (job.get("spec") or {}).get("pytorchReplicaSpecs", {}).get("Worker", {})
    return Row(
        name=str(metadata["name"]),
        run=label(job, LABEL_RUN),
        stage=label(job, LABEL_STAGE),
        variant=label(job, LABEL_VARIANT),
        state=job_state(job, pods),
        running=sum(pod_phase(pod) == "Running" for pod in pods),
        wanted=int(worker.get("replicas") or 1),
        restarts=SeenPods.read(annotation(job, ANNOTATION_PODS_SEEN)).restarts,
        age_seconds=round(now - (timestamp(metadata.get("creationTimestamp")) or now), 1),
        fingerprint=annotation(job, ANNOTATION_FINGERPRINT),
        launcher=annotation(job, ANNOTATION_LAUNCHER),
    )


def job_state(job: Plain, pods: Sequence[Plain]) -> str:
    """One word or a few: succeeded, failed, ending, queued, running, starting, waiting for a node, …."""
    ended = outcome(job)
    if job["metadata"].get("deletionTimestamp"):
        return "ending"
    if ended:
        return ended.lower()
    if is_suspended(job):
        return "queued"
    if pods and all(pod_phase(pod) == "Running" for pod in pods):
        return "running"
    waiting = [describe_pod(pod) for pod in pods if pod_phase(pod) == "Pending"]
    if waiting:
        return waiting[0].partition(":")[0]
    return "restarting" if condition(job, "Restarting").get("status") == "True" else "created"
