"""Tests on a real cluster: our own (`make cluster`), or one that STAGELINE_TEST_KUBECONFIG names.

They run where the cluster can be reached: `make test-cluster` starts pytest inside the network namespace of our own
cluster. On another cluster nothing is made and only namespaces that a test created are touched; there the environment
says what our own describes by itself:

    STAGELINE_TEST_KUBECONFIG      the cluster; with a context that may create namespaces
    STAGELINE_TEST_IMAGE           the trainer image, as its nodes pull it
    STAGELINE_TEST_LAUNCHER_IMAGE  the launcher image; tests that need it are skipped without
    STAGELINE_TEST_STORAGE_CLASS   a class with ReadWriteMany; the cluster's default without
    STAGELINE_TEST_S3_ENDPOINT, _REGION, _BUCKET, _ACCESS_KEY, _SECRET_KEY   for tests with a bucket

Marks: every test here is `cluster`; `owns_nodes` are those that stop nodes or servers, on our own cluster alone.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # plain `pytest` does not put the repository there
    sys.path.insert(0, str(ROOT))

from cluster import lifecycle, network, s3, storage  # noqa: E402
from cluster.mounts import remove_tree  # noqa: E402
from cluster.state import Own, current, read_own  # noqa: E402

FAILED = pytest.StashKey[bool]()
LEAVING: list[str] = []
"""Namespaces that are being deleted."""
FOREIGN = os.environ.get("STAGELINE_TEST_KUBECONFIG")
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""What the `restricted` standard asks of a container."""

Kubectl = Callable[..., str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here is `cluster`; those that take nodes away come last, when the others have theirs."""
    here = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    for item in here:
        item.add_marker(pytest.mark.cluster)
    items.sort(key=lambda item: item in here and item.get_closest_marker("owns_nodes") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note a failure, so that the test's namespace is described before it goes."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(scope="session")
def own() -> Own | None:
    """Our own cluster as a dataclass (`cluster.state.Own`); None on another cluster. Fails if ours is not up."""
    if FOREIGN:
        return None
    found = read_own()
    if found is None:
        pytest.fail(f"no cluster is up in {current().root}; expected one; run `make test-cluster`, which makes it")
    return found


@pytest.fixture(autouse=True)
def _whole_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests that own the nodes run on our own cluster alone, and the next test finds it whole again."""
    if request.node.get_closest_marker("owns_nodes") is None:
        yield
        return
    if request.getfixturevalue("own") is None:
        pytest.skip("takes nodes or servers away, which is done to our own cluster only")
    yield
    if lifecycle.faults(current()):
        lifecycle.up(current(), with_images=False)
        network.enter()  # if it was made anew, so was the namespace that pytest lives in
    s3.start_server()


@pytest.fixture(scope="session")
def kubeconfig(own: Own | None) -> str:
    """Path of the kubeconfig of the cluster under test."""
    return own.kubeconfig if own else str(FOREIGN)


@pytest.fixture(scope="session")
def kubectl(own: Own | None, kubeconfig: str) -> Kubectl:
    """`kubectl("get", "pods", "-n", name)` gives what it printed.

    text: its standard input.  check: False gives the output of a failure (both streams) instead of raising.
    """
    program = own.kubectl if own else shutil.which("kubectl")
    if program is None:
        pytest.skip("there is no kubectl in PATH; expected one for tests on another cluster")

    def call(*words: str, text: str = "", check: bool = True, seconds: float = 120) -> str:
        argv = [program, f"--kubeconfig={kubeconfig}", *words]
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=seconds, check=False)
        if check and done.returncode:
            raise AssertionError(f"`kubectl {' '.join(words)}` ended with code {done.returncode}: {done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    return call


@pytest.fixture(scope="session")
def api(kubeconfig: str) -> Iterator[Any]:
    """A `kubernetes.client.ApiClient` of the cluster's administrator."""
    from kubernetes import config

    client = config.new_client_from_config(kubeconfig)
    yield client
    client.close()


def make_namespace(kubectl: Kubectl, level: str) -> str:
    """A fresh namespace of a Pod Security level, once its default service account is there."""
    name = f"t-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": level, "stageline-test": "true"}
    document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    kubectl("create", "-f", "-", text=json.dumps(document))
    until = time.monotonic() + 30
    while "default" not in kubectl("-n", name, "get", "serviceaccounts", "-o", "name", check=False):
        assert time.monotonic() < until, f"{name} has no default service account after 30 s"
        time.sleep(0.1)
    return name


def describe_namespace(kubectl: Kubectl, name: str) -> None:
    """Print what a person wants to see of a namespace in which a test failed."""
    kinds = "pods,jobs,pytorchjobs,services,pvc"
    print(kubectl("-n", name, "get", kinds, "-o", "wide", check=False))
    print(kubectl("-n", name, "get", "events", "--sort-by=.lastTimestamp", check=False)[-6000:])
    for pod in kubectl("-n", name, "get", "pods", "-o", "name", check=False).split():
        print(f"--- log of {pod}")
        print(kubectl("-n", name, "logs", pod, "--all-containers", "--tail=40", check=False))


def remove_namespace(kubectl: Kubectl, name: str, own: Own | None, *, wait: bool = False) -> None:
    """Delete a namespace and, with `wait`, stay until it is gone; otherwise the session's end waits for all of them."""
    kubectl("delete", "namespace", name, f"--wait={str(wait).lower()}", "--timeout=150s", check=False, seconds=180)
    LEAVING.append(name)
    if own:
        storage.recycle()


@pytest.fixture(scope="session", autouse=True)
def _all_gone(own: Own | None, kubectl: Kubectl) -> Iterator[None]:
    """At the end no namespace of a test is left, and every volume is free again."""
    yield
    if not LEAVING:
        return
    words = [f"namespace/{name}" for name in LEAVING]
    kubectl("wait", "--for=delete", "--timeout=240s", *words, check=False, seconds=300)
    if own:
        storage.recycle()
    left = set(kubectl("get", "namespaces", "-o", "name").split()) & set(words)
    assert not left, f"namespaces of tests are still there after 240 s: {sorted(left)}"


@pytest.fixture
def namespace(request: pytest.FixtureRequest, kubectl: Kubectl, own: Own | None) -> Iterator[str]:
    """The name of a fresh namespace that enforces the `restricted` standard; on failure its content is printed."""
    name = make_namespace(kubectl, "restricted")
    yield name
    if request.node.stash.get(FAILED, False):
        describe_namespace(kubectl, name)
    remove_namespace(kubectl, name, own)


@pytest.fixture(scope="session")
def storage_class(own: Own | None) -> str | None:
    """The class to ask volumes of; None: the cluster's default."""
    return own.storage_class if own else os.environ.get("STAGELINE_TEST_STORAGE_CLASS")


@pytest.fixture
def claim(kubectl: Kubectl, namespace: str, storage_class: str | None, own: Own | None) -> str:
    """The name of a fresh ReadWriteMany claim (2Gi) in the test's namespace: one volume for pods of both nodes."""
    if own:
        storage.recycle()
    spec: dict[str, Any] = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "2Gi"}}}
    if storage_class:
        spec["storageClassName"] = storage_class
    document = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "shared"}, "spec": spec}
    kubectl("-n", namespace, "create", "-f", "-", text=json.dumps(document))
    return "shared"


@pytest.fixture
def bucket(own: Own | None) -> Iterator[dict[str, str]]:
    """A fresh S3 bucket and an account that may use it: endpoint, region, bucket, access_key, secret_key.

    On our own cluster `cluster.s3` can rotate the account (`create_account`, `grant`, `delete_account`) and stop the
    server (`owns_nodes`). On another one it is the bucket of STAGELINE_TEST_S3_*, with whatever lies in it.
    """
    if own is None:
        keys = ("endpoint", "region", "bucket", "access_key", "secret_key")
        found = {key: os.environ.get(f"STAGELINE_TEST_S3_{key.upper()}", "") for key in keys}
        if not all(found.values()):
            pytest.skip("STAGELINE_TEST_S3_ENDPOINT, _REGION, _BUCKET, _ACCESS_KEY and _SECRET_KEY are not all set")
        yield found
        return
    name = f"t-{secrets.token_hex(4)}"
    s3.create_bucket(name)
    account = s3.create_account(f"user-{name}")
    s3.grant(name, account["access_key"])
    yield {"endpoint": own.s3["endpoint"], "region": own.s3["region"], "bucket": name, **account}
    s3.start_server()
    s3.delete_account(account["access_key"])
    remove_tree(current().root / "s3" / name)


def image(own: Own | None, name: str, variable: str) -> str:
    """An image of the project by reference; skips where there is none, in words."""
    found = own.images.get(name, "") if own else os.environ.get(variable, "")
    if not found:
        where = f"our cluster was brought up without the {name} image" if own else f"{variable} is not set"
        pytest.skip(f"{where}; expected it for this test")
    return found


@pytest.fixture(scope="session")
def trainer_image(own: Own | None) -> str:
    """The trainer image, which nodes have already."""
    return image(own, "trainer", "STAGELINE_TEST_IMAGE")


@pytest.fixture(scope="session")
def launcher_image(own: Own | None) -> str:
    """The launcher image, which nodes have already."""
    return image(own, "launcher", "STAGELINE_TEST_LAUNCHER_IMAGE")


@pytest.fixture(scope="session")
def python_image(own: Own | None) -> str:
    """An image with `python3`, for pods that need nothing of ours: the base image here, the trainer elsewhere."""
    return own.images["base"] if own and "base" in own.images else image(own, "trainer", "STAGELINE_TEST_IMAGE")
