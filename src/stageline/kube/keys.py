"""Names by which Kubernetes objects are found and understood: resources, labels, annotations, and what reads them.

The one home of such names. `config` refuses those that are ours in a user's labels and annotations, so their prefixes
stand there, in the layer below. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stageline.config.syntax import MANAGER_KEY, NAME_KEY, OPERATOR_PREFIX, OWN_PREFIX, QUEUE_KEY

Plain = Mapping[str, Any]
"""An object as the API server gives it."""

KUBEFLOW, KUEUE, NETWORKING = "kubeflow.org", "kueue.x-k8s.io", "networking.k8s.io"
"""API groups of the training-operator, of the queues, and of NetworkPolicies."""
API_VERSION, KIND = f"{KUBEFLOW}/v1", "PyTorchJob"
CONTAINER = "pytorch"
"""Of a job's pods: the training-operator insists on this name."""

JOBS = f"pytorchjobs.{KUBEFLOW}/v1"
PODS = "pods/v1"
EVENTS = "events/v1"
LEASES = "leases.coordination.k8s.io/v1"
POLICIES = f"networkpolicies.{NETWORKING}/v1"
NODES = "nodes/v1"
NAMESPACES = "namespaces/v1"
CLAIMS, SECRETS, CONFIG_MAPS = "persistentvolumeclaims/v1", "secrets/v1", "configmaps/v1"
ACCOUNTS, QUEUES = "serviceaccounts/v1", f"localqueues.{KUEUE}/v1beta1"
PRIORITIES, RUNTIMES = "priorityclasses.scheduling.k8s.io/v1", "runtimeclasses.node.k8s.io/v1"
"""Resources as `kube.client` names them: `plural[.group]/version`."""

MANAGER = "stageline"
OWN_LABELS = {NAME_KEY: "stageline", MANAGER_KEY: MANAGER}
"""On every job of ours, its pods, its NetworkPolicy and its Lease."""
SELECTOR = ",".join(f"{key}={value}" for key, value in OWN_LABELS.items())
"""Finds every job of ours."""
LABEL_RUN, LABEL_STAGE = f"{OWN_PREFIX}run", f"{OWN_PREFIX}stage"
LABEL_FAMILY, LABEL_VARIANT = f"{OWN_PREFIX}family", f"{OWN_PREFIX}variant"
LABEL_QUEUE = QUEUE_KEY
"""Of a job: the Kueue queue it waits in."""
LABEL_KFP_RUN = f"{OWN_PREFIX}kfp-run-id"
IDENTITY_LABELS = (LABEL_RUN, LABEL_STAGE, LABEL_VARIANT)
"""What makes two jobs of one name the same."""
LABEL_JOB = f"{OPERATOR_PREFIX}job-name"
LABEL_REPLICA_TYPE, LABEL_REPLICA_INDEX = f"{OPERATOR_PREFIX}replica-type", f"{OPERATOR_PREFIX}replica-index"
"""Which worker of which job a pod is, as the training-operator says."""
LABEL_KFP_POD = "pipeline/runid"
"""KFP's run id on the pods of its steps."""
LABEL_NAMESPACE = "kubernetes.io/metadata.name"
"""A namespace's own name, which the API server sets on it."""
LABEL_SECURITY = "pod-security.kubernetes.io/enforce"

ANNOTATION_FINGERPRINT = f"{OWN_PREFIX}fingerprint"
ANNOTATION_DEADLINE = f"{OWN_PREFIX}deadline"
ANNOTATION_LAUNCHER = f"{OWN_PREFIX}launcher"
"""Holder of the Lease that follows this job."""
ANNOTATION_NONCE = f"{OWN_PREFIX}nonce"
"""Which attempt created it, so that a creation whose answer got lost is known again."""
ANNOTATION_PODS_SEEN = f"{OWN_PREFIX}pods"
"""Uids of the pods seen since the last committed checkpoint."""
ANNOTATION_SPEC = f"{OWN_PREFIX}spec"
"""What was submitted, as a digest, so that an edit is noticed by a later launcher too."""
ANNOTATION_HOLDER = f"{OWN_PREFIX}holder"
"""Of a Lease: marks by which another launcher can tell whether the holder lives."""
NO_DISRUPTION = {"karpenter.sh/do-not-disrupt": "true"}
"""Annotation of pods that an autoscaler should leave where they are."""


def label(item: Plain, key: str) -> str:
    """A label's value, "" where it is not set."""
    return str((item["metadata"].get("labels") or {}).get(key, ""))


def annotation(item: Plain, key: str) -> str:
    """An annotation's value, "" where it is not set."""
    return str((item["metadata"].get("annotations") or {}).get(key, ""))


def is_ours(item: Plain) -> bool:
    """Whether stageline made an object."""
    return label(item, MANAGER_KEY) == MANAGER
