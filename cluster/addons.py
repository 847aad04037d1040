"""What runs on the cluster itself: names, volumes and the training operator with its webhooks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import yaml

from cluster import storage
from cluster.control_plane import kubectl
from cluster.errors import ClusterError
from cluster.network import HEAD
from cluster.process import wait_until
from cluster.state import State, write_text

MANIFESTS = Path(__file__).parent / "manifests"
OPERATOR_IMAGE = "ghcr.io/kubeflow/training-v1/training-operator"
"""The name in upstream's manifests, which ours takes the place of."""

TRIAL = {
    "apiVersion": "kubeflow.org/v1",
    "kind": "PyTorchJob",
    "metadata": {"name": "trial", "namespace": "default"},
    "spec": {
        "pytorchReplicaSpecs": {
            "Worker": {"template": {"spec": {"containers": [{"name": "pytorch", "image": "none"}]}}},
        }
    },
}
"""A job that is only asked about (dry run): it passes once the operator's webhook answers."""


def apply(state: State, images: dict[str, str]) -> None:
    """Apply everything; what is there and equal stays. images: name to reference, of CoreDNS and the operator."""
    kubectl(state, "apply", "--server-side", "-f", str(MANIFESTS / "storage-class.yaml"))
    storage.make(state)
    documents = list(yaml.safe_load_all((MANIFESTS / "dns.yaml").read_text()))
    for document in documents:
        if document["kind"] == "Deployment":
            document["spec"]["template"]["spec"]["containers"][0]["image"] = images["coredns"]
    kubectl(state, "apply", "--server-side", "-f", "-", text=yaml.safe_dump_all(documents))
    overlay = operator(state, images["training-operator"])
    kubectl(state, "apply", "--server-side", "--force-conflicts", "-k", overlay)


def operator(state: State, image: str) -> Path:
    """A kustomization over upstream's own manifests that puts our image in; kustomize wants a relative path."""
    name, _, digest = image.partition("@")
    folder = state.run / "training-operator"
    upstream = (state.parts / "training-operator").resolve() / "overlays" / "standalone"
    container = "/spec/template/spec/containers/0/readinessProbe"
    patch = [
        # Upstream looks after 10 s, then every 15 s: half a minute of waiting for a program that is ready in two.
        {"op": "replace", "path": f"{container}/initialDelaySeconds", "value": 1},
        {"op": "replace", "path": f"{container}/periodSeconds", "value": 2},
        # Tests take node-2 away; jobs are looked after all the same.
        {"op": "add", "path": "/spec/template/spec/nodeSelector", "value": {"kubernetes.io/hostname": HEAD.name}},
    ]
    document = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(upstream, folder.resolve())],
        "images": [{"name": OPERATOR_IMAGE, "newName": name, "digest": digest}],
        "patches": [{"target": {"kind": "Deployment"}, "patch": json.dumps(patch)}],
    }
    write_text(folder / "kustomization.yaml", yaml.safe_dump(document))
    return folder


def is_ready(state: State) -> bool:
    """Whether names are answered and the operator's webhook lets a good job pass."""
    ready = "jsonpath={.status.readyReplicas}"
    if kubectl(state, "-n", "kube-system", "get", "deployment", "coredns", "-o", ready, check=False).strip() != "1":
        return False
    try:
        kubectl(state, "create", "--dry-run=server", "-f", "-", text=json.dumps(TRIAL), seconds=15)
    except ClusterError:
        return False
    return True


def wait_ready(state: State) -> None:
    """Wait until the addons work; in vain, the events say why."""

    def advice() -> str:
        pods = kubectl(state, "get", "pods", "-A", "-o", "wide", check=False)
        return pods + kubectl(state, "get", "events", "-A", "--sort-by=.lastTimestamp", check=False)[-3000:]

    wait_until(lambda: is_ready(state), "CoreDNS and the operator's webhook", seconds=180, every=0.5, advice=advice)
