"""A job as a PyTorchJob of the training-operator (kubeflow.org/v1): a pure function from values to one plain mapping.

Workers only, so that no init container of the operator breaks the pod security level `restricted`; no `elasticPolicy`,
which would call a job succeeded as soon as one worker is. torchrun finds its peers by `PET_*` variables of ours. What
is only known when a job is submitted (owner, deadline, KFP's run id) is added by `stamp`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from stageline.config import ClusterConfig
from stageline.errors import ConfigError, Faults
from stageline.jobs.cluster.render.pod_template import mounts_of, volumes_of
from stageline.jobs.environment import (
    POD_FIELDS,
    PORT,
    QUIET,
    JobEnvironment,
    config_to_text,
    deadline_environment,
    storage_environment,
    write_environment,
)
from stageline.jobs.job import Job
from stageline.jobs.placement import image_faults, root_faults
from stageline.kube.keys import (
    ANNOTATION_DEADLINE,
    ANNOTATION_FINGERPRINT,
    API_VERSION,
    CONTAINER,
    KIND,
    LABEL_FAMILY,
    LABEL_JOB,
    LABEL_KFP_RUN,
    LABEL_QUEUE,
    LABEL_RUN,
    LABEL_STAGE,
    LABEL_VARIANT,
    NO_DISRUPTION,
    OWN_LABELS,
)

ENTRY = "stageline-entry"
USER_FIELDS = ("runAsUser", "runAsGroup", "fsGroup")
"""Of a pod's security context: `cluster.run_as_user` sets all three, or none."""
LARGEST_CONFIG_BYTES = 100_000
"""Of the config that travels: Linux takes no single variable above 128 KiB."""
LARGEST_JOB_BYTES = 1_000_000
"""Of the rendered job as JSON: etcd takes no request above 1.5 MiB, and the operator adds to it."""


def render_job(job: Job, cluster: ClusterConfig) -> dict[str, Any]:
    """The PyTorchJob of a job, as plain data. ConfigError with everything that is missing for it."""
    check_job(job, cluster)
    labels = {**cluster.labels, **own_labels(job)}
    annotations = {**cluster.annotations, ANNOTATION_FINGERPRINT: job.fingerprint}
    metadata: dict[str, Any] = {"name": job.name}
    if cluster.namespace:
        metadata["namespace"] = cluster.namespace
    queue = {LABEL_QUEUE: cluster.queue} if cluster.queue else {}
    metadata |= {"labels": {**labels, **queue}, "annotations": annotations}
    policy: dict[str, Any] = {"cleanPodPolicy": "Running"}
    if cluster.ttl_seconds is not None:
        policy["ttlSecondsAfterFinished"] = cluster.ttl_seconds
    worker = {
        "replicas": job.nodes,
        "restartPolicy": "ExitCode",
        "template": {
            "metadata": {
                "labels": dict(labels),
                "annotations": {**annotations, **NO_DISRUPTION},
            },
            "spec": _pod(job, cluster),
        },
    }
    # Without nprocPerNode the operator adds PET_NPROC_PER_NODE=auto behind ours, one rank per CPU.
    spec = {
        "nprocPerNode": str(job.processes),
        "runPolicy": policy,
        "pytorchReplicaSpecs": {"Worker": worker},
    }
    rendered = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
    size = len(json.dumps(rendered, ensure_ascii=False).encode())
    if size > LARGEST_JOB_BYTES:
        raise ConfigError(
            f"job {job.name!r} has {size} bytes as an object, a cluster takes {LARGEST_JOB_BYTES} (LARGEST_JOB_BYTES)",
            remedy="shorten cluster.env, cluster.labels, cluster.annotations or cluster.mounts",
        )
    return rendered


def check_job(job: Job, cluster: ClusterConfig) -> None:
    """ConfigError with everything that keeps a job from running as pods."""
    faults = Faults(ConfigError, f"job {job.name!r}", "set these keys in the config, or behind the command")
    faults.extend(image_faults(cluster))
    if job.arguments[:1] != ("trial",):
        faults.extend(root_faults(str(job.config.get("root", ".")), cluster.storage))
    if metrics_port(job) == PORT:
        faults.add(f"trainer.metrics_port {PORT} is where ranks meet, and whoever reads metrics would reach them there")
    size = len(config_to_text(pod_config(job)).encode())
    if size > LARGEST_CONFIG_BYTES:
        faults.add(f"the config has {size} bytes, and a pod takes {LARGEST_CONFIG_BYTES}: keep long lists in a file")
    faults.raise_if_any()


def own_labels(job: Job) -> dict[str, str]:
    """What every job of ours, and its pods, can be found by."""
    labels = {
        **OWN_LABELS,
        LABEL_RUN: job.run,
        LABEL_STAGE: job.item,
        LABEL_FAMILY: job.family,
        LABEL_VARIANT: job.variant,
    }
    return {key: label_value(value) for key, value in labels.items() if value}


def label_value(text: str) -> str:
    """A text as a label's value: what may not stand there becomes a hyphen, and a hash keeps two texts apart."""
    if len(text) <= 63 and re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", text):
        return text
    head = re.sub(r"[^-A-Za-z0-9_.]", "-", text).strip("-_.")[:54] or "x"
    return f"{head}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def pod_config(job: Job) -> dict[str, Any]:
    """The config a pod gets: the run's own without `cluster`, which says where pods run, not what they do."""
    plain = {key: value for key, value in job.config.items() if key != "cluster"}
    overrides = plain.get("stage_overrides")
    if isinstance(overrides, Mapping):
        plain["stage_overrides"] = {
            stage: {key: value for key, value in own.items() if key.partition(".")[0] != "cluster"}
            for stage, own in overrides.items()
            if isinstance(own, Mapping)
        }
    return plain


def metrics_port(job: Job) -> int:
    """The port on which the pods of a job serve /metrics; 0 for none: only training does."""
    if job.arguments[:1] != ("train",):
        return 0
    plain = job.config.get("trainer") or {}
    own = (job.config.get("stage_overrides") or {}).get(job.item) or {}
    section = own.get("trainer") or {}
    found = own.get("trainer.metrics_port", section.get("metrics_port", plain.get("metrics_port", 0)))
    return int(found)


def _is_free(job: Job) -> bool:
    """Whether a stage finds its data and parents by itself: what its pods compute is not known before."""
    return job.arguments[:1] == ("train",) and not any(word.startswith("--data=") for word in job.arguments)


def _environment(job: Job, cluster: ClusterConfig) -> list[dict[str, Any]]:
    told = JobEnvironment(
        job=job.name,
        item=job.item,
        fingerprint="" if _is_free(job) else job.fingerprint,
        image=cluster.image,
        nodes=job.nodes,
        processes=job.processes,
        shutdown_timeout_seconds=job.shutdown_timeout_seconds,
        config=pod_config(job),
    )
    plain = {
        "HOME": "/tmp",  # noqa: S108  # the one writable folder of the container
        **QUIET,
        "GLOO_SOCKET_IFNAME": "eth0",
        **storage_environment(cluster.storage),
        **cluster.env,
        **job.environment,
        **write_environment(told),
    }
    return [
        *_variables(plain),
        *(
            {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
            for name, path in POD_FIELDS.items()
        ),
    ]


def _variables(plain: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in plain.items()]


def _pod(job: Job, cluster: ClusterConfig) -> dict[str, Any]:
    user = {} if cluster.run_as_user is None else dict.fromkeys(USER_FIELDS, cluster.run_as_user)
    resources = cluster.resources_for(job.item)
    ports = [{"name": "pytorchjob-port", "containerPort": PORT, "protocol": "TCP"}]
    metrics = metrics_port(job)
    if metrics:
        ports.append({"name": "metrics", "containerPort": metrics, "protocol": "TCP"})
    container = {
        "name": CONTAINER,
        "image": cluster.image,
        "imagePullPolicy": cluster.image_pull_policy,
        "command": [ENTRY, *job.arguments],
        "env": _environment(job, cluster),
        "ports": ports,
        "resources": {
            key: dict(amounts)
            for key, amounts in (("requests", resources.requests), ("limits", resources.limits))
            if amounts
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts_of(cluster),
    }
    pod: dict[str, Any] = {
        "serviceAccountName": cluster.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": cluster.grace_for(job.shutdown_timeout_seconds),
        "securityContext": {
            "runAsNonRoot": True,
            **user,
            "fsGroupChangePolicy": cluster.fs_group_change_policy,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes_of(cluster),
        **_placement(job, cluster),
    }
    return {key: value for key, value in pod.items() if value not in ("", [], {})}


def _placement(job: Job, cluster: ClusterConfig) -> dict[str, Any]:
    """Where pods go, and what they put up with there."""
    tolerations = [
        {
            "key": f"node.kubernetes.io/{taint}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": cluster.node_toleration_seconds,
        }
        for taint in ("not-ready", "unreachable")
    ]
    placement = {
        "imagePullSecrets": [{"name": name} for name in cluster.pull_secrets],
        "nodeSelector": dict(cluster.node_selector),
        "affinity": copy.deepcopy(cluster.affinity),
        "tolerations": [*copy.deepcopy(list(cluster.tolerations)), *tolerations],
        "priorityClassName": cluster.priority_class,
        "runtimeClassName": cluster.runtime_class,
        "schedulerName": cluster.scheduler_name,
    }
    if job.nodes > 1 and cluster.spread != "off":
        required = cluster.spread == "require"
        constraint: dict[str, Any] = {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule" if required else "ScheduleAnyway",
            "labelSelector": {"matchLabels": {LABEL_JOB: job.name}},
        }
        if required:  # a dead node counts as an empty one otherwise, and nothing is scheduled any more
            constraint["nodeTaintsPolicy"] = "Honor"
        placement["topologySpreadConstraints"] = [constraint]
    return placement


def stamp(
    manifest: Mapping[str, Any],
    *,
    owner: Mapping[str, Any] | None,
    deadline: float | None,
    kfp_run_id: str = "",
    carried: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A copy of a rendered job with what is known at submission only.

    owner: {name, uid} of the pod that goes with the job.  deadline: unix seconds.  kfp_run_id: a label, no identity.
    carried: variables of whoever submits that its pods get, too.
    """
    job: dict[str, Any] = copy.deepcopy(dict(manifest))
    template = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    if owner is not None:
        reference = {"apiVersion": "v1", "kind": "Pod", **owner, "controller": False, "blockOwnerDeletion": False}
        job["metadata"]["ownerReferences"] = [reference]
    if deadline is not None:
        text = f"{deadline:.0f}"
        job["metadata"]["annotations"][ANNOTATION_DEADLINE] = text
        template["spec"]["containers"][0]["env"] += _variables(deadline_environment(deadline))
    template["spec"]["containers"][0]["env"] += _variables(carried or {})
    if kfp_run_id:
        job["metadata"]["labels"][LABEL_KFP_RUN] = label_value(kfp_run_id)
        template["metadata"]["labels"][LABEL_KFP_RUN] = label_value(kfp_run_id)
    return job
