"""Whether a job succeeded, asked of the API server: for whoever does not reach the store that holds its result."""

from __future__ import annotations

from stageline.config import ClusterConfig
from stageline.jobs.cluster.follow.adoption import outcome
from stageline.kube.client import Api
from stageline.kube.keys import ANNOTATION_FINGERPRINT, JOBS, annotation
from stageline.kube.refusals import AbsentError


class JobProbe:
    """The entry ends a pod with 0 only once its result is committed, so that a job that succeeded has one."""

    def __init__(self, name: str, fingerprint: str, cluster: ClusterConfig) -> None:
        self._name = name
        self._fingerprint = fingerprint
        self._cluster = cluster
        self._api: Api | None = None

    def finished(self) -> bool:
        """Whether the job of that name and fingerprint succeeded."""
        self._api = self._api or Api.connect(self._cluster.namespace, self._cluster.context)
        try:
            job = self._api.get(JOBS, self._name)
        except AbsentError:
            return False
        return outcome(job) == "Succeeded" and annotation(job, ANNOTATION_FINGERPRINT) == self._fingerprint

    def progress(self) -> int:
        """Nobody here can know."""
        return -1
