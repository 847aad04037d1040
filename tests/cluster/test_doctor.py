"""doctor on a real cluster: all well where all is well, and for every single thing that is broken exactly its line."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
import yaml

from stageline.config import ClusterConfig, validate
from stageline.doctor import Line, Setup, examine

from .conftest import RESTRICTED, ROOT, Kubectl, Own, make_namespace, remove_namespace

pytestmark = pytest.mark.cluster

UNSEEN = {"network policy"}
"""What nobody can tell from an API server: whether the network heeds policies."""
HIDDEN_FROM_LAUNCHER = {"operator", "pod security", "secrets"} | UNSEEN
"""What the launcher's Role does not let it see."""


@dataclass(frozen=True)
class Place:
    """A namespace in which all is well: whose kubeconfigs may look at it, and what is asked for there."""

    namespace: str
    admin: str
    launcher: str
    setup: Setup

    def look(self, setup: Setup | None = None, *, as_launcher: bool = False) -> dict[str, Line]:
        lines = examine(setup or self.setup, 30, self.launcher if as_launcher else self.admin)
        return {line.name: line for line in lines}


def states(lines: dict[str, Line]) -> dict[str, str]:
    return {name: line.state for name, line in lines.items()}


def change(setup: Setup, **cluster: Any) -> Setup:
    """The same setup with other keys of the cluster."""
    raw = setup.cluster.model_dump(exclude_unset=True)
    return replace(setup, cluster=validate({**raw, **cluster}, ClusterConfig, "cluster"))


@pytest.fixture(scope="module")
def place(
    kubectl: Kubectl,
    kubeconfig: str,
    own: Own | None,
    storage_class: str | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    name = make_namespace(kubectl, "restricted")
    folder = tmp_path_factory.mktemp("doctor")
    for account in ("stageline-trainer", "stageline-launcher"):
        kubectl("-n", name, "create", "serviceaccount", account)
    files = (ROOT / "manifests/roles.yaml", ROOT / "manifests/optional/kfp-role.yaml")
    for document in (d for file in files for d in yaml.safe_load_all(file.read_text()) if d):
        document["metadata"]["namespace"] = name
        for subject in document.get("subjects", []):
            subject["namespace"] = name
        kubectl("create", "-f", "-", text=json.dumps(document))
    for claim, mode in (("shared", "ReadWriteMany"),):
        spec: dict[str, Any] = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
        spec |= {"storageClassName": storage_class} if storage_class else {}
        document = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim}, "spec": spec}
        kubectl("-n", name, "create", "-f", "-", text=json.dumps(document))
    keys = ("--from-literal=AWS_ACCESS_KEY_ID=some", "--from-literal=AWS_SECRET_ACCESS_KEY=thing")
    kubectl("-n", name, "create", "secret", "generic", "s3", *keys)
    storage: dict[str, Any] = {"claim": "shared", "s3": {"secret": "s3"}}
    image = push_empty_image(own.registry) if own else os.environ.get("STAGELINE_TEST_IMAGE", "")
    raw = {"namespace": name, "image": image, "storage": storage}
    root = f"s3://{own.s3['bucket']}/doctor" if own else str(folder / "root")
    setup = Setup(validate(raw, ClusterConfig, "cluster"), root, nodes=2)
    until = time.monotonic() + 60
    while "Bound" not in kubectl("-n", name, "get", "pvc", "shared") and time.monotonic() < until:
        time.sleep(0.5)
    yield Place(name, kubeconfig, launcher_kubeconfig(kubectl, kubeconfig, name, folder), setup)
    remove_namespace(kubectl, name, own)


def push_empty_image(registry: str) -> str:
    """An image of nothing, by digest: enough to be looked for."""
    base = f"http://{registry}/v2/doctor/empty"

    def send(method: str, url: str, data: bytes = b"", content_type: str = "application/octet-stream") -> str:
        headers = {"Content-Type": content_type}
        request = urllib.request.Request(url, data=data, method=method, headers=headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return str(answer.headers.get("Location") or "")

    config = b"{}"
    place = urljoin(base, send("POST", f"{base}/blobs/uploads/"))
    send("PUT", f"{place}{'&' if '?' in place else '?'}digest=sha256:{hashlib.sha256(config).hexdigest()}", config)
    kind = "application/vnd.oci.image.manifest.v1+json"
    blob = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "size": len(config),
        "digest": f"sha256:{hashlib.sha256(config).hexdigest()}",
    }
    manifest = json.dumps({"schemaVersion": 2, "mediaType": kind, "config": blob, "layers": []}).encode()
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    send("PUT", f"{base}/manifests/{digest}", manifest, kind)
    return f"{registry}/doctor/empty@{digest}"


def launcher_kubeconfig(kubectl: Kubectl, admin: str, namespace: str, folder: Path) -> str:
    """A kubeconfig with a token of the launcher's account."""
    token = kubectl("-n", namespace, "create", "token", "stageline-launcher").strip()
    plain = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten"))
    plain["users"] = [{"name": plain["users"][0]["name"], "user": {"token": token}}]
    path = folder / "launcher.kubeconfig"
    path.write_text(yaml.safe_dump(plain))
    return str(path)


@pytest.fixture(autouse=True)
def keys(own: Own | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """How this process reaches the store."""
    if own:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", own.s3["endpoint"])
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", own.s3["access_key"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", own.s3["secret_key"])


def assert_only(place: Place, setup: Setup, name: str, words: str, remedy: str) -> None:
    """Exactly one line is wrong, and it says so."""
    before, after = states(place.look()), place.look(setup)
    assert states(after) == {**before, name: "wrong"}, after
    assert words in after[name].text
    assert remedy in after[name].remedy


def test_where_all_is_well_every_line_says_so(place: Place) -> None:
    lines = place.look()
    assert {name: line.state for name, line in lines.items() if line.state != "ok"} == dict.fromkeys(UNSEEN, "unknown")
    assert "can't be seen from here" in lines["network policy"].text
    start = time.monotonic()
    place.look()
    assert time.monotonic() - start < 5


def test_the_launcher_sees_no_fault_and_says_what_it_may_not_see(place: Place) -> None:
    lines = place.look(as_launcher=True)
    assert {name for name, line in lines.items() if line.state != "ok"} == HIDDEN_FROM_LAUNCHER
    assert all(lines[name].state == "unknown" for name in HIDDEN_FROM_LAUNCHER)


def test_a_missing_right_is_named_and_its_command_mends_it(place: Place, kubectl: Kubectl) -> None:
    role = json.loads(kubectl("-n", place.namespace, "get", "role", "stageline-launcher", "-o", "json"))
    whole = json.dumps({"rules": role["rules"]})
    less = [rule for rule in role["rules"] if rule["resources"] != ["pods/log"]]
    for rule in less:
        rule["verbs"] = [verb for verb in rule["verbs"] if (rule["resources"], verb) != (["pytorchjobs"], "patch")]
    patch = ("-n", place.namespace, "patch", "role", "stageline-launcher", "--type=merge", "-p")
    kubectl(*patch, json.dumps({"rules": less}))
    try:
        wait_until(lambda: place.look(as_launcher=True)["rights"].state == "wrong")
        line = place.look(as_launcher=True)["rights"]
        assert "patch pytorchjobs.kubeflow.org" in line.text
        assert "get pods/log" in line.text
        from_outside = place.look()
        assert [name for name, found in from_outside.items() if found.state == "wrong"] == ["rights of the launcher"]
        for command in line.remedy.split(" && "):
            kubectl(*shlex.split(command)[1:])
        wait_until(lambda: place.look(as_launcher=True)["rights"].state == "ok")
    finally:
        kubectl(*patch, whole)


def test_a_kind_that_is_not_served_is_named(place: Place) -> None:
    setup = replace(place.setup, jobs="pytorchjobs.absent.example.org/v1")
    assert_only(place, setup, "pytorchjob", "does not serve", "kubectl apply --server-side -k")


def test_a_namespace_that_is_not_there_is_one_fault(place: Place) -> None:
    lines = place.look(change(place.setup, namespace="no-such-namespace"))
    assert [name for name, line in lines.items() if line.state == "wrong"] == ["namespace"]
    assert lines["namespace"].remedy == "kubectl create namespace no-such-namespace"


def test_a_missing_claim_is_named(place: Place) -> None:
    setup = change(place.setup, storage={"claim": "nothing", "s3": {"secret": "s3"}})
    assert_only(place, setup, "claim", "'nothing'", "storage.claim")


def test_a_claim_for_one_node_does_not_do_for_two(place: Place, kubectl: Kubectl, storage_class: str | None) -> None:
    spec: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    spec |= {"storageClassName": storage_class} if storage_class else {}
    document = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "single"}, "spec": spec}
    kubectl("-n", place.namespace, "create", "-f", "-", text=json.dumps(document))
    setup = change(place.setup, storage={"claim": "single", "s3": {"secret": "s3"}})
    assert_only(place, setup, "claim", "ReadWriteOnce", "trainer.nodes=1")


def test_wrong_keys_of_the_store_are_refused(place: Place, own: Own | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if own is None:
        pytest.skip("needs the bucket of our own cluster")
    before = states(place.look())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong/secret+key00000000000000000000001")
    after = place.look()
    assert states(after) == {**before, "store": "wrong"}
    assert "was refused" in after["store"].text
    assert "wrong/secret" not in str(after)


def test_a_missing_image_is_named(place: Place, own: Own | None) -> None:
    if own is None:
        pytest.skip("needs the registry of our own cluster")
    assert_only(place, change(place.setup, image=f"{own.registry}/no/such:1"), "image", "no/such 1", "cluster.image")


def test_a_setting_against_pod_security_is_named(place: Place) -> None:
    unconfined = {"container.apparmor.security.beta.kubernetes.io/pytorch": "unconfined"}
    assert_only(place, change(place.setup, annotations=unconfined), "pod security", "violates PodSecurity", "cluster.")


def test_a_missing_queue_is_named(place: Place) -> None:
    assert_only(place, change(place.setup, queue="team"), "queue", "'team'", "cluster.queue")


def test_a_missing_secret_or_key_is_named(place: Place, kubectl: Kubectl) -> None:
    setup = change(place.setup, storage={"claim": "shared", "s3": {"secret": "gone"}})
    assert_only(place, setup, "secrets", "no secret 'gone'", f"kubectl -n {place.namespace} create secret generic gone")
    kubectl("-n", place.namespace, "create", "secret", "generic", "half", "--from-literal=AWS_ACCESS_KEY_ID=x")
    setup = change(place.setup, storage={"claim": "shared", "s3": {"secret": "half"}})
    assert_only(place, setup, "secrets", "has no AWS_SECRET_ACCESS_KEY", "create secret")


def test_a_missing_account_class_or_device_is_named(place: Place) -> None:
    account = change(place.setup, service_account="nobody")
    assert_only(place, account, "service account", "'nobody'", f"kubectl -n {place.namespace} create serviceaccount")
    assert_only(place, change(place.setup, priority_class="urgent"), "classes", "'urgent'", "cluster.priority_class")
    slices = {"limits": {"nvidia.com/mig-9g.999gb": 1}}
    assert_only(
        place, change(place.setup, resources=slices), "accelerators", "mig-9g.999gb", "cluster.resources.limits"
    )


def test_in_the_launcher_image_it_finds_its_own_place(place: Place, kubectl: Kubectl, launcher_image: str) -> None:
    """As a pod under the launcher's account, in a namespace that enforces `restricted`."""
    words = ["root=/data/root", "cluster.image=" + place.setup.cluster.image, "cluster.storage.claim=shared"]
    container = {
        "name": "doctor",
        "image": launcher_image,
        "command": ["stageline", "doctor", "--json", "--seconds=20", *words, "cluster.storage.mount_path=/data"],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "securityContext": {**RESTRICTED, "readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "data", "mountPath": "/data"}],
    }
    spec = {
        "serviceAccountName": "stageline-launcher",
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "data", "emptyDir": {}}],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "doctor"}, "spec": spec}
    kubectl("-n", place.namespace, "create", "-f", "-", text=json.dumps(pod))
    get = ("-n", place.namespace, "get", "pod", "doctor", "-o", "jsonpath={.status.phase}")
    wait_until(lambda: kubectl(*get) in ("Succeeded", "Failed"), 120)
    text = kubectl("-n", place.namespace, "logs", "doctor")
    lines = {entry["name"]: entry["state"] for entry in json.loads(text[text.index("[\n") : text.rindex("]") + 1])}
    assert kubectl(*get) == "Succeeded", text
    unseen = {name for name, state in lines.items() if state != "ok"}
    assert unseen == {"torch", "operator", "pod security"} | UNSEEN


def wait_until(condition: Any, seconds: float = 30) -> None:
    """Rights take a moment to be known to the authoriser."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.3)
