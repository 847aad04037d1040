"""The cluster under test is a real one: nodes, names, volumes, admission, jobs, S3; and ours can lose a part."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cluster import node, process, s3
from cluster.state import Own, current

from .conftest import RESTRICTED, ROOT, Kubectl

pytestmark = pytest.mark.cluster

RENDEZVOUS = """
import os, socket, time
rank, world, address, port = int(os.environ["HOSTNAME"].rpartition("-")[2]), 2, "meet-worker-0", 23456
if rank == 0:
    with socket.create_server(("", port)) as server:
        for _ in range(world - 1):
            peer, _ = server.accept()
            print("heard", peer.recv(100).decode())
            peer.close()
else:
    for attempt in range(300):
        try:
            with socket.create_connection((address, port), 5) as peer:
                peer.sendall(f"rank {rank} through {address}".encode())
            break
        except OSError as e:
            print(e)
            time.sleep(0.2)
    else:
        raise SystemExit(f"{address} was never reached")
"""
"""What two ranks of a job do first, without torch: the second finds the first by name."""


def until(true: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Wait for a condition, or fail with what was awaited."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.3)


def pod(name: str, image: str, script: str, claim: str | None = None, where: str | None = None) -> dict[str, Any]:
    """A pod that passes `restricted` and runs a line of shell, if need be with a volume at /data and on one node."""
    container = {"name": "main", "image": image, "command": ["sh", "-c", script], "securityContext": RESTRICTED}
    spec: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]}
    if claim:
        container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
        spec["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]
    if where:
        spec["nodeSelector"] = {"kubernetes.io/hostname": where}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def phase(kubectl: Kubectl, namespace: str, name: str) -> str:
    return kubectl("-n", namespace, "get", "pod", name, "-o", "jsonpath={.status.phase}", check=False).strip()


def hosts(kubectl: Kubectl) -> list[str]:
    """Names of the nodes that are Ready."""
    items = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
    return [
        item["metadata"]["name"]
        for item in items
        if any(c["type"] == "Ready" and c["status"] == "True" for c in item["status"]["conditions"])
    ]


def test_two_nodes_are_ready(api: Any, own: Own | None) -> None:
    from kubernetes.client import CoreV1Api

    ready = {
        item.metadata.name
        for item in CoreV1Api(api).list_node().items
        if any(c.type == "Ready" and c.status == "True" for c in item.status.conditions)
    }
    assert ready == set(own.nodes) if own else len(ready) >= 1


def test_a_job_of_two_workers_meets_by_name_across_both_nodes(
    namespace: str, kubectl: Kubectl, python_image: str
) -> None:
    labels = {"matchLabels": {"training.kubeflow.org/job-name": "meet"}}
    rule = {"labelSelector": labels, "topologyKey": "kubernetes.io/hostname"}
    apart = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [rule]}}
    container = {"name": "pytorch", "image": python_image, "securityContext": RESTRICTED}
    container["command"] = ["python3", "-c", RENDEZVOUS]
    template = {"spec": {"containers": [container], "affinity": apart if len(hosts(kubectl)) > 1 else {}}}
    worker = {"replicas": 2, "restartPolicy": "Never", "template": template}
    job = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": "meet"}}
    job["spec"] = {"pytorchReplicaSpecs": {"Worker": worker}, "runPolicy": {"cleanPodPolicy": "None"}}
    kubectl("-n", namespace, "create", "-f", "-", text=json.dumps(job))
    done = "jsonpath={.status.conditions[?(@.type=='Succeeded')].status}"
    until(lambda: kubectl("-n", namespace, "get", "pytorchjob", "meet", "-o", done).strip() == "True", "success")
    assert kubectl("-n", namespace, "logs", "meet-worker-0").strip() == "heard rank 1 through meet-worker-0"
    places = kubectl("-n", namespace, "get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}").split()
    assert len(set(places)) == min(2, len(hosts(kubectl)))


def test_the_operators_webhook_refuses_a_job_without_the_container_it_looks_for(
    namespace: str, kubectl: Kubectl
) -> None:
    job = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": "nameless"}}
    template = {"spec": {"containers": [{"name": "other", "image": "none"}]}}
    job["spec"] = {"pytorchReplicaSpecs": {"Worker": {"replicas": 1, "template": template}}}
    answer = kubectl("-n", namespace, "create", "-f", "-", text=json.dumps(job), check=False)
    assert "validator.pytorchjob.training-operator.kubeflow.org" in answer
    assert "denied the request" in answer


def test_a_privileged_pod_is_refused(namespace: str, kubectl: Kubectl, python_image: str) -> None:
    document = pod("greedy", python_image, "true")
    document["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    answer = kubectl("-n", namespace, "create", "-f", "-", text=json.dumps(document), check=False)
    assert 'violates PodSecurity "restricted' in answer
    assert "privileged" in answer


def test_what_one_node_writes_to_a_volume_the_other_reads(
    namespace: str, kubectl: Kubectl, claim: str, python_image: str
) -> None:
    first, *others = hosts(kubectl)
    writer = pod("writer", python_image, "echo from $(id -u) >/data/note", claim, first)
    kubectl("-n", namespace, "create", "-f", "-", text=json.dumps(writer))
    until(lambda: phase(kubectl, namespace, "writer") == "Succeeded", "the writer")
    reader = pod("reader", python_image, "cat /data/note", claim, others[0] if others else first)
    kubectl("-n", namespace, "create", "-f", "-", text=json.dumps(reader))
    until(lambda: phase(kubectl, namespace, "reader") == "Succeeded", "the reader")
    assert kubectl("-n", namespace, "logs", "reader").strip() == "from 1000"


def client(bucket: dict[str, str], **account: str) -> Any:
    """An S3 client of the bucket's account, or of another one."""
    import boto3

    who = {**bucket, **account}
    keys = {"aws_access_key_id": who["access_key"], "aws_secret_access_key": who["secret_key"]}
    return boto3.client("s3", endpoint_url=who["endpoint"], region_name=who["region"], **keys)


def test_of_two_conditional_creates_the_second_is_refused(bucket: dict[str, str]) -> None:
    store, key = client(bucket), f"claim-{time.time_ns()}"
    store.put_object(Bucket=bucket["bucket"], Key=key, Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        store.put_object(Bucket=bucket["bucket"], Key=key, Body=b"second", IfNoneMatch="*")
    assert store.get_object(Bucket=bucket["bucket"], Key=key)["Body"].read() == b"first"
    store.delete_object(Bucket=bucket["bucket"], Key=key)
    store.close()


def test_a_rotated_account_is_let_in_and_the_old_one_is_not(own: Own | None, bucket: dict[str, str]) -> None:
    if own is None:
        pytest.skip("makes S3 accounts, which our own server lets us")
    old = client(bucket)
    old.put_object(Bucket=bucket["bucket"], Key="note", Body=b"kept")
    following = s3.create_account(f"next-{bucket['bucket']}")
    s3.grant(bucket["bucket"], following["access_key"])
    new = client(bucket, **following)
    assert new.get_object(Bucket=bucket["bucket"], Key="note")["Body"].read() == b"kept"
    with pytest.raises(ClientError, match="AccessDenied"):
        old.get_object(Bucket=bucket["bucket"], Key="note")
    s3.delete_account(following["access_key"])
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        new.get_object(Bucket=bucket["bucket"], Key="note")
    for each in (old, new):
        each.close()


def command(*words: str, seconds: float = 600) -> str:
    """Run `python -m cluster ...` as a person would."""
    argv = [sys.executable, "-m", "cluster", *words]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def living() -> dict[str, int | None]:
    """Every process of the cluster by name, with its id."""
    return {name: process.find(current(), name) for name in process.names(current())}


@pytest.mark.owns_nodes
def test_up_when_all_is_up_changes_nothing() -> None:
    before, described = living(), current().document.read_text()
    started = time.monotonic()
    command("up", "--no-images")
    assert time.monotonic() - started < 30
    assert living() == before
    assert current().document.read_text() == described


@pytest.mark.owns_nodes
def test_a_stopped_s3_server_is_put_back_alone() -> None:
    before = living()
    s3.stop_server()
    command("up", "--no-images")
    after = living()
    assert {name for name in before if before[name] != after[name]} == {"s3"}


@pytest.mark.slow
@pytest.mark.owns_nodes
def test_the_api_server_comes_back_and_pods_go_on(namespace: str, kubectl: Kubectl, python_image: str) -> None:
    from cluster import control_plane

    document = pod("patient", python_image, "sleep 600")
    kubectl("-n", namespace, "create", "-f", "-", text=json.dumps(document))
    until(lambda: phase(kubectl, namespace, "patient") == "Running", "the pod")
    control_plane.restart_api_server(current())
    assert phase(kubectl, namespace, "patient") == "Running"


@pytest.mark.slow
@pytest.mark.owns_nodes
def test_a_lost_node_is_noticed_its_pods_go_and_it_comes_back(
    namespace: str, kubectl: Kubectl, python_image: str
) -> None:
    document = pod("doomed", python_image, "sleep 600", where="node-2")
    kubectl("-n", namespace, "create", "-f", "-", text=json.dumps(document))
    until(lambda: phase(kubectl, namespace, "doomed") == "Running", "the pod")
    node.power_off("node-2")
    until(lambda: not node.is_ready(current(), "node-2"), "the loss to be noticed", 60)
    node.power_on("node-2")
    until(lambda: phase(kubectl, namespace, "doomed") != "Running", "the pod to be gone or over", 90)
    assert set(hosts(kubectl)) == {"node-1", "node-2"}


@pytest.mark.slow
@pytest.mark.owns_nodes
def test_a_paused_node_is_lost_and_found_while_its_pods_go_on(
    namespace: str, kubectl: Kubectl, python_image: str
) -> None:
    document = pod("calm", python_image, "sleep 600", where="node-2")
    tolerate = {"key": "node.kubernetes.io/unreachable", "operator": "Exists"}
    document["spec"]["tolerations"] = [tolerate, {**tolerate, "key": "node.kubernetes.io/not-ready"}]
    kubectl("-n", namespace, "create", "-f", "-", text=json.dumps(document))
    until(lambda: phase(kubectl, namespace, "calm") == "Running", "the pod")
    node.pause("node-2")
    until(lambda: not node.is_ready(current(), "node-2"), "the silence to be noticed", 60)
    node.resume("node-2")
    assert phase(kubectl, namespace, "calm") == "Running"
