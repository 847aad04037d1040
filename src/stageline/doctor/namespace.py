"""What a stage's pods need in their namespace: admission, claim, Secrets, queue, classes, devices.

Admission is not guessed at: the job and the pod that `jobs` renders are sent to the API server as dry runs.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from stageline.config import ClusterConfig
from stageline.config.syntax import quantity_value
from stageline.doctor.line import Check, Line, ok, unknown, wrong
from stageline.doctor.mounted import claims_line, secrets_line
from stageline.doctor.network import policy_line
from stageline.errors import ClusterUnavailableError, StagelineError
from stageline.jobs.cluster.render.pytorchjob import render_job
from stageline.jobs.job import Job
from stageline.kube.client import Api
from stageline.kube.keys import (
    ACCOUNTS,
    JOBS,
    LABEL_SECURITY,
    LEASES,
    NAMESPACES,
    NODES,
    PODS,
    PRIORITIES,
    QUEUES,
    RUNTIMES,
    label,
)
from stageline.kube.refusals import AbsentError, is_silent_webhook

NAMESPACED = frozenset(
    {"job admission", "pod security", "service account", "claim", "secrets", "queue", "network policy"}
)
"""Lines about what lies in the namespace."""
PLACEHOLDER = "image.invalid/none:none"
"""Stands in dry runs where no image is set; nobody pulls it."""
OWN_LINES = ("serviceAccountName", "priorityClassName", "runtimeClassName")
"""Fields of a pod whose faults have lines of their own: left out where its security is asked about."""


def namespace_checks(api: Api, cluster: ClusterConfig, nodes: int) -> list[Check]:
    """nodes: pods of the largest stage."""
    trial = _trial(nodes)
    manifest = render_job(trial, cluster if cluster.image else cluster.model_copy(update={"image": PLACEHOLDER}))
    checks: list[tuple[str, Callable[[str], Line]]] = [
        ("namespace", lambda name: _namespace(name, api)),
        ("job admission", lambda name: _job_admission(name, api, manifest)),
        ("pod security", lambda name: _pod_admission(name, api, manifest)),
        ("service account", lambda name: _account(name, api, cluster.service_account)),
        ("claim", lambda name: claims_line(name, api, cluster, nodes)),
        ("secrets", lambda name: secrets_line(name, api, cluster)),
        ("queue", lambda name: _queue(name, api, cluster.queue)),
        ("classes", lambda name: _classes(name, api, cluster)),
        ("network policy", lambda name: policy_line(name, api, trial, cluster)),
        ("accelerators", lambda name: _accelerators(name, api, cluster, nodes)),
    ]
    return [Check(name, lambda name=name, call=call: call(name)) for name, call in checks]  # type: ignore[misc]


def _trial(nodes: int) -> Job:
    name = f"stageline-doctor-{uuid.uuid4().hex[:8]}"
    return Job(name=name, arguments=("trial",), run="doctor", item="doctor", fingerprint="none", nodes=nodes)


def _namespace(name: str, api: Api) -> Line:
    """By a dry run that the launcher may make too: few may read namespaces."""
    try:
        api.create(LEASES, {"metadata": {"name": f"stageline-doctor-{uuid.uuid4().hex[:8]}"}}, dry_run=True)
    except StagelineError as error:
        if error.code == "E_NAMESPACE":
            return wrong(name, f"there is no namespace {api.namespace!r}", f"kubectl create namespace {api.namespace}")
        if error.code == "E_FORBIDDEN":
            return unknown(name, f"nothing may be created in {api.namespace!r}, see `rights`", error.remedy)
        raise
    return ok(name, f"{api.namespace!r} exists")


def _job_admission(name: str, api: Api, manifest: dict[str, Any]) -> Line:
    try:
        api.create(JOBS, manifest, dry_run=True)
    except ClusterUnavailableError as error:
        if not is_silent_webhook(error):
            raise
        remedy = "kubectl get deployments --all-namespaces -l control-plane=kubeflow-training-operator"
        return wrong(name, error.message, remedy)
    except StagelineError as error:
        if error.code == "E_CRD":
            return unknown(name, "there is no such kind, see `pytorchjob`")
        raise
    return ok(name, "the API server, its webhooks included, takes the job that would be sent")


def _pod_admission(name: str, api: Api, manifest: dict[str, Any]) -> Line:
    template = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    metadata = {"name": manifest["metadata"]["name"], "namespace": api.namespace, **template["metadata"]}
    spec = {key: value for key, value in template["spec"].items() if key not in OWN_LINES}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**spec, "restartPolicy": "Never"}}
    level = _level(api)
    try:
        api.create(PODS, pod, dry_run=True)
    except StagelineError as error:
        if error.code == "E_POD_SECURITY":
            remedy = f"kubectl label namespace {api.namespace} {LABEL_SECURITY}=baseline --overwrite"
            return wrong(name, error.message, f"take out what it names (cluster.*), or {remedy}")
        if error.code == "E_FORBIDDEN" and "may not create pods" in error.message:
            return unknown(name, f"we may not create pods, not even as a dry run; {level}", error.remedy)
        raise
    return ok(name, f"the API server takes the pod of a stage; {level}")


def _level(api: Api) -> str:
    """The level a namespace enforces, in words."""
    try:
        level = label(api.get(NAMESPACES, api.namespace), LABEL_SECURITY)
    except StagelineError:
        return "the namespace's level can't be seen from here"
    return f"the namespace enforces {level or 'no level of its own'!r}"


def _account(name: str, api: Api, account: str) -> Line:
    try:
        api.get(ACCOUNTS, account)
    except AbsentError:
        text = f"there is no service account {account!r} for training pods"
        return wrong(name, text, f"kubectl -n {api.namespace} create serviceaccount {account}")
    return ok(name, f"{account!r} exists")


def _queue(name: str, api: Api, queue: str) -> Line:
    if not queue:
        return ok(name, "none is asked for: pods start at once")
    if not api.is_served(QUEUES):
        return wrong(
            name, f"cluster.queue is {queue!r}, but Kueue is not installed", "install Kueue, or set cluster.queue=''"
        )
    try:
        found = api.get(QUEUES, queue)
    except AbsentError:
        remedy = f"kubectl -n {api.namespace} get localqueues; set cluster.queue to one of them"
        return wrong(name, f"there is no LocalQueue {queue!r} in {api.namespace!r}", remedy)
    conditions = found.get("status", {}).get("conditions", [])
    stopped = [c for c in conditions if c.get("type") == "Active" and c.get("status") == "False"]
    if stopped:
        describe = f"kubectl -n {api.namespace} describe localqueue {queue}"
        return wrong(name, f"LocalQueue {queue!r} is not active: {stopped[0].get('message', '')}", describe)
    return ok(name, f"LocalQueue {queue!r} exists")


def _classes(name: str, api: Api, cluster: ClusterConfig) -> Line:
    both = (
        (PRIORITIES, "priority_class", cluster.priority_class),
        (RUNTIMES, "runtime_class", cluster.runtime_class),
    )
    wanted = [entry for entry in both if entry[2]]
    for resource, field, value in wanted:
        try:
            api.get(resource, value)
        except AbsentError:
            plural = resource.partition(".")[0]
            return wrong(
                name,
                f"there is no {plural[:-2]} {value!r}",
                f"kubectl get {plural}; set cluster.{field} to one of them",
            )
    return ok(
        name,
        ", ".join(value for *_, value in wanted) + " exist" if wanted else "no priority or runtime class is asked for",
    )


def _accelerators(name: str, api: Api, cluster: ClusterConfig, nodes: int) -> Line:
    """Devices that pods ask for, against what nodes have; MIG slices are resources of their own."""
    wanted = {key: int(quantity_value(n)) for key, n in cluster.resources.limits.items() if "/" in key}
    if not wanted:
        return ok(name, "none is asked for: stages run on CPUs")
    found = [node for node in api.list(NODES)["items"] if _fits(node, cluster.node_selector)]
    have = {
        key: [int(quantity_value(n["status"].get("allocatable", {}).get(key, "0"))) for n in found] for key in wanted
    }
    for key, count in wanted.items():
        pods = sum(number // count for number in have[key]) if count else nodes
        if pods < nodes:
            others = sorted({k for n in found for k in n["status"].get("allocatable", {}) if "/" in k})
            text = f"{nodes} pod(s) want {count} {key} each; {len(found)} fitting node(s) have {have[key]}"
            return wrong(name, text, f"cluster.resources.limits: nodes offer {', '.join(others) or 'no devices'}")
    total = ", ".join(f"{sum(numbers)} {key}" for key, numbers in have.items())
    return ok(name, f"{total} on {len(found)} node(s); how many are free now only the scheduler knows")


def _fits(node: Mapping[str, Any], selector: Mapping[str, str]) -> bool:
    labels = node["metadata"].get("labels") or {}
    return not node["spec"].get("unschedulable") and all(labels.get(key) == value for key, value in selector.items())
