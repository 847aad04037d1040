"""Without a cluster: no kubeconfig, a broken one, another context, nobody listening. Requests need a cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import yaml

from stageline.errors import ClusterError, ClusterUnavailableError
from stageline.kube.client import Api
from stageline.kube.keys import JOBS, LEASES, NODES, PODS


@pytest.fixture(autouse=True)
def outside_a_cluster(monkeypatch, tmp_path):
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def kubeconfig(tmp_path, server="https://127.0.0.1:1", **context):
    path = tmp_path / "config"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": [{"name": "c", "cluster": {"server": server, "insecure-skip-tls-verify": True}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [
                    {"name": "here", "context": {"cluster": "c", "user": "u", **context}},
                    {"name": "there", "context": {"cluster": "c", "user": "u", "namespace": "far"}},
                ],
            }
        )
    )
    return str(path)


@pytest.mark.parametrize("content", [None, "", "a: [", "- 1", "text"], ids=["none", "empty", "yaml", "list", "text"])
def test_an_unusable_kubeconfig_is_named_with_the_remedy(tmp_path, content):
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ClusterError, match="no cluster to talk to") as caught:
        Api.connect(kubeconfig=str(path))
    assert str(path) in caught.value.message
    assert "KUBECONFIG" in caught.value.remedy


def test_an_unknown_context_is_refused(tmp_path):
    with pytest.raises(ClusterError, match="nowhere"):
        Api.connect(context="nowhere", kubeconfig=kubeconfig(tmp_path))


def test_the_namespace_is_the_one_given_else_the_contexts_else_default(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path, namespace="near"))
    assert Api.connect().namespace == "near"
    assert Api.connect(context="there").namespace == "far"
    assert Api.connect("mine").namespace == "mine"
    assert Api.connect(kubeconfig=kubeconfig(tmp_path)).namespace == "default"


def test_a_pod_without_a_token_is_told_so(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    with pytest.raises(ClusterError, match="service account token") as caught:
        Api.connect()
    assert "automountServiceAccountToken" in caught.value.remedy


def test_nobody_listening_is_worth_another_try(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = Api.connect(kubeconfig=kubeconfig(tmp_path, f"https://127.0.0.1:{port}"))
    with pytest.raises(ClusterUnavailableError, match="not reachable") as caught:
        api.get(PODS, "x")
    assert caught.value.exit_code >= 128
    assert "kubectl cluster-info" in caught.value.remedy


def test_paths_are_those_of_the_api(tmp_path):
    api = Api.connect("train", kubeconfig=kubeconfig(tmp_path))
    assert api.path(JOBS, "octa") == "/apis/kubeflow.org/v1/namespaces/train/pytorchjobs/octa"
    assert api.path(PODS) == "/api/v1/namespaces/train/pods"
    assert api.path(LEASES, "x", "other") == "/apis/coordination.k8s.io/v1/namespaces/other/leases/x"
    assert api.path(NODES, "n1") == "/api/v1/nodes/n1"


def test_the_client_is_loaded_when_it_is_needed_and_not_before():
    module = "stageline.jobs.cluster.follow.launcher"
    code = f"import sys, {module}; assert 'kubernetes' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONWARNINGS": "error"})
