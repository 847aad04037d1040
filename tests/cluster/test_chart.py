"""The chart on a real API server: installed, tested, upgraded, rolled back and removed, and who may do what with it.

Everything is made in namespaces of its own. The jobs here need no torch: what they do is to run on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.state import Own

from .conftest import FAILED, RESTRICTED, Kubectl, describe_namespace, make_namespace, remove_namespace
from .schemas import write_schemas

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
CHART = "helm/stageline"
SETS = sorted((ROOT / CHART / "ci").glob("*-values.yaml"))


Helm = Callable[..., str]


@pytest.fixture(scope="session")
def helm(own: Own | None, kubeconfig: str) -> Helm:
    """`helm("install", ...)` in the root of the tree gives what it printed; check: as for kubectl."""
    program = own.helm if own else shutil.which("helm")
    if program is None:
        pytest.skip("there is no helm in PATH; expected one for tests on another cluster")

    def call(*words: str, check: bool = True, seconds: float = 120) -> str:
        argv = [program, f"--kubeconfig={kubeconfig}", *words]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
        if check and done.returncode:
            raise AssertionError(f"`helm {' '.join(words)}` ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    return call


@pytest.fixture
def spaces(request: pytest.FixtureRequest, kubectl: Kubectl, own: Own | None) -> Iterator[Callable[[], str]]:
    """Makes namespaces with pod security `restricted`; they go at the end, described where the test failed."""
    made: list[str] = []

    def make() -> str:
        made.append(make_namespace(kubectl, "restricted"))
        return made[-1]

    yield make
    for name in made:
        if request.node.stash.get(FAILED, False):
            describe_namespace(kubectl, name)
        remove_namespace(kubectl, name, own)


@pytest.fixture(scope="session")
def schemas(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What this API server knows, for kubeconform."""
    openapi = json.loads(kubectl("get", "--raw", "/openapi/v2"))
    return write_schemas(openapi, tmp_path_factory.mktemp("schemas"))


def conform(own: Own | None, schemas: str, file: Path) -> str:
    """What kubeconform finds wrong with a file."""
    program = own.kubeconform if own else shutil.which("kubeconform")
    if program is None:
        pytest.skip("there is no kubeconform in PATH; expected one for tests on another cluster")
    words = [program, "-strict", "-schema-location", schemas, "-output", "text", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (not done.stdout), done.stderr
    return done.stdout


# Objects -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(kubectl: Kubectl, own: Own | None) -> Iterator[tuple[str, str]]:
    """Two namespaces for dry runs, with the accounts that a trial's pod needs to be admitted."""
    made = make_namespace(kubectl, "restricted"), make_namespace(kubectl, "restricted")
    for name in made:
        for account in ("stageline-launcher", "imaging-launcher", "pipeline-runner"):
            kubectl("create", "serviceaccount", account, "-n", name)
    yield made
    for name in made:
        remove_namespace(kubectl, name, own)


@pytest.mark.parametrize("values", [None, *SETS], ids=lambda path: path.stem if path else "defaults")
def test_the_api_server_takes_every_value_set(
    kubectl: Kubectl,
    helm: Helm,
    own: Own | None,
    schemas: str,
    pair: tuple[str, str],
    values: Path | None,
    tmp_path: Path,
) -> None:
    chosen = ["-f", str(values)] if values else []
    if values and values.stem == "existing-values":
        chosen += ["--set", f"jobNamespaces={{{','.join(pair)}}}"]
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(helm("template", "stageline", CHART, "-n", pair[0], *chosen))
    told = kubectl("apply", "--dry-run=server", "--validate=strict", "-f", str(rendered))
    assert told.count("(server dry run)") == rendered.read_text().count("\nkind: ")
    assert conform(own, schemas, rendered) == ""


def test_kubeconform_would_see_a_field_that_does_not_exist(own: Own | None, schemas: str, tmp_path: Path) -> None:
    file = tmp_path / "role.yaml"
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "a"}}
    file.write_text(json.dumps(role | {"rules": [{"verbs": ["get"], "resource": ["pods"]}]}))
    assert "resource" in conform(own, schemas, file)


def test_kubectl_alone_applies_the_manifests(kubectl: Kubectl, own: Own | None) -> None:
    if "NotFound" not in kubectl("get", "namespace", "stageline", check=False):
        pytest.skip("this cluster has a namespace `stageline` already, which is somebody's")
    manifests = str(ROOT / "manifests")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "plain", "namespace": "stageline"},
        "spec": {"containers": [{"name": "plain", "image": "plain"}]},
    }
    try:
        kubectl("apply", "-f", manifests)
        names = kubectl("get", "serviceaccounts,roles,rolebindings,configmaps", "-n", "stageline", "-o", "name")
        for name in ("serviceaccount/stageline-launcher", "serviceaccount/stageline-trainer", "configmap/stageline"):
            assert name in names
        assert "restricted" in kubectl("create", "--dry-run=server", "-f", "-", text=json.dumps(pod), check=False)
        assert "unchanged" in kubectl("apply", "-f", manifests)
    finally:
        remove_namespace(kubectl, "stageline", own, wait=True)


def image_values(name: str, reference: str) -> list[str]:
    """Values that name an image: by digest, or by tag."""
    repository, at, digest = reference.partition("@")
    if not at:
        repository, _, digest = reference.rpartition(":")
    return ["--set", f"images.{name}.repository={repository},images.{name}.{'digest' if at else 'tag'}={digest}"]


# Install and test --------------------------------------------------------------------------------------------------


def test_the_trial_passes_in_a_restricted_namespace(
    kubectl: Kubectl, helm: Helm, namespace: str, trainer_image: str, launcher_image: str
) -> None:
    images = [*image_values("trainer", trainer_image), *image_values("launcher", launcher_image)]
    notes = helm("install", "stageline", CHART, "-n", namespace, *images)
    assert f"helm test stageline -n {namespace} --logs" in notes
    told = helm("test", "stageline", "-n", namespace, "--logs", "--timeout", "10m", seconds=700)
    assert "Succeeded" in told
    assert "backbone trained 80 steps; its checkpoint is sound" in told
    nothing_left(kubectl, namespace)
    assert kubectl("get", "pod", "stageline-trial", "-n", namespace, "--ignore-not-found", "-o", "name") == ""


LAUNCHING = {
    ("create", "kubeflow.org/pytorchjobs"): True,
    ("delete", "kubeflow.org/pytorchjobs"): True,
    ("patch", "kubeflow.org/pytorchjobs"): True,
    ("update", "kubeflow.org/pytorchjobs"): False,
    ("deletecollection", "kubeflow.org/pytorchjobs"): False,
    ("patch", "kubeflow.org/pytorchjobs/status"): False,
    ("watch", "/pods"): True,
    ("get", "/pods/log"): True,
    ("create", "/pods"): False,
    ("delete", "/pods"): False,
    ("create", "/pods/exec"): False,
    ("watch", "/events"): True,
    ("create", "/events"): False,
    ("create", "coordination.k8s.io/leases"): True,
    ("update", "coordination.k8s.io/leases"): True,
    ("delete", "coordination.k8s.io/leases"): False,
    ("list", "coordination.k8s.io/leases"): False,
    ("create", "networking.k8s.io/networkpolicies"): True,
    ("patch", "networking.k8s.io/networkpolicies"): True,
    ("delete", "networking.k8s.io/networkpolicies"): True,
    ("update", "networking.k8s.io/networkpolicies"): False,
    ("get", "/configmaps=stageline"): True,
    ("get", "/configmaps=other"): False,
    ("update", "/configmaps=stageline"): False,
    ("list", "/configmaps"): False,
    ("get", "/secrets=stageline-s3"): False,
    ("list", "/secrets"): False,
    ("get", "argoproj.io/workflows"): False,
    ("get", "/persistentvolumeclaims"): True,
    ("list", "/persistentvolumeclaims"): False,
    ("get", "/namespaces"): True,
    ("update", "/namespaces"): False,
    ("get", "/serviceaccounts=stageline-trainer"): True,
    ("delete", "/persistentvolumeclaims"): False,
    ("create", "/serviceaccounts/token"): False,
    ("update", "rbac.authorization.k8s.io/roles"): False,
    ("get", "/nodes"): False,
}
"""(verb, group/resource[/subresource][=name]) -> whether whoever starts jobs may, in their own namespace."""
OF_KFP = (
    ("get", "/configmaps=kfp-launcher"),
    ("get", "/secrets=mlpipeline-minio-artifact"),
    ("create", "argoproj.io/workflowtaskresults"),
    ("patch", "argoproj.io/workflowtaskresults"),
)
STARTS_JOBS = {**LAUNCHING, **dict.fromkeys(OF_KFP, False)}
RUNS_STEPS = {**LAUNCHING, **dict.fromkeys(OF_KFP, True)}
NOTHING = dict.fromkeys(STARTS_JOBS, False)


def review(user: str, groups: list[str], asked: tuple[str, str], where: str) -> dict[str, Any]:
    """The question whether a user with these groups may do something in `where`."""
    group, _, rest = asked[1].partition("/")
    resource, _, name = rest.partition("=")
    resource, _, subresource = resource.partition("/")
    attributes = {"group": group, "resource": resource, "subresource": subresource, "name": name}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": user,
            "groups": [*groups, "system:authenticated"],
            "resourceAttributes": {"verb": asked[0], "namespace": where, **attributes},
        },
    }


def account(name: str, home: str) -> tuple[str, list[str]]:
    """A service account as its requests say who it is."""
    return f"system:serviceaccount:{home}:{name}", ["system:serviceaccounts", f"system:serviceaccounts:{home}"]


def test_subjects_may_do_what_the_table_says_and_only_in_their_namespace(
    kubectl: Kubectl, helm: Helm, spaces: Callable[[], str]
) -> None:
    release, first, second = spaces(), spaces(), spaces()
    values = [f"jobNamespaces={{{first},{second}}}", "kfp.enabled=true", "kfp.serviceAccount=pipeline-runner"]
    subjects = [f"rbac.subjects[{i}].{key}" for i, key in ((0, "kind=Group"), (0, "name=imaging"), (1, "kind=User"))]
    people = [*subjects, "rbac.subjects[1].name=jane"]
    helm("install", "stageline", CHART, "-n", release, "--set", ",".join([*values, *people]))

    def answers(who: tuple[str, list[str]], where: str) -> dict[tuple[str, str], bool]:
        asked = "\n---\n".join(json.dumps(review(*who, question, where)) for question in STARTS_JOBS)
        told = kubectl("create", "-f", "-", "-o", 'jsonpath={.status.allowed}{"\\n"}', text=asked).split()
        return {question: answer == "true" for question, answer in zip(STARTS_JOBS, told, strict=True)}

    for home in (first, second):
        assert answers(account("stageline-launcher", home), home) == STARTS_JOBS
        assert answers(account("pipeline-runner", home), home) == RUNS_STEPS
        assert answers(account("stageline-trainer", home), home) == NOTHING
        assert answers(account("default", home), home) == NOTHING
        assert answers(("jane", []), home) == STARTS_JOBS
        assert answers(("somebody", ["imaging"]), home) == STARTS_JOBS
        found = get(kubectl, "configmap", "stageline", home)["data"]
        assert yaml.safe_load(found["cluster.yaml"])["cluster"]["namespace"] == home
        assert found["launcher_service_account"] == "pipeline-runner"
    for elsewhere in (second, release, "default"):
        for name in ("stageline-launcher", "pipeline-runner"):
            assert answers(account(name, first), elsewhere) == NOTHING
        assert elsewhere == second or answers(("jane", []), elsewhere) == NOTHING


def test_the_policy_of_names_keeps_launchers_from_what_is_not_theirs(
    kubectl: Kubectl, helm: Helm, spaces: Callable[[], str]
) -> None:
    """A controller's lock can be neither taken over nor made; jobs are called as the policy wants; others are free."""
    space = spaces()
    helm("install", f"names-{space}", CHART, "-n", space, "--set", "namePolicy.enabled=true")
    launcher = f"--as=system:serviceaccount:{space}:stageline-launcher"

    def lease(name: str) -> str:
        spec = {"holderIdentity": "somebody", "leaseDurationSeconds": 15}
        metadata = {"name": name, "namespace": space}
        return json.dumps({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec})

    kubectl("create", "-f", "-", text=lease("any-controller"))
    locked = json.loads(kubectl("-n", space, "get", "lease", "any-controller", "-o", "json"))
    locked["spec"]["holderIdentity"] = "thief"
    end = time.monotonic() + 60
    while "may use names" not in (
        told := kubectl("replace", "-f", "-", launcher, text=json.dumps(locked), check=False)
    ):
        assert time.monotonic() < end, f"a policy counts some seconds after it was made: {told}"
        locked = json.loads(kubectl("-n", space, "get", "lease", "any-controller", "-o", "json"))
        time.sleep(1)
    assert "may use names" in kubectl("create", "-f", "-", launcher, text=lease("another"), check=False)
    job = running_job("none", space, "none")
    assert "may use names" in kubectl("create", "-f", "-", launcher, text=json.dumps(job), check=False)
    kubectl("create", "-f", "-", launcher, text=lease("stageline-octa"))
    job["metadata"]["name"] = "stageline-octa"
    kubectl("create", "--dry-run=server", "-f", "-", launcher, text=json.dumps(job))
    kubectl("create", "-f", "-", text=lease("another"))
    helm("uninstall", f"names-{space}", "-n", space)


def test_the_role_suffices_to_make_a_job_and_to_end_it(
    kubectl: Kubectl, helm: Helm, namespace: str, kubeconfig: str, tmp_path: Path
) -> None:
    helm("install", "stageline", CHART, "-n", namespace, "--set", "images.trainer.repository=localhost:1/none")
    config = yaml.safe_load(Path(kubeconfig).read_text())
    token = kubectl("create", "token", "stageline-launcher", "-n", namespace).strip()
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    own = tmp_path / "kubeconfig"
    own.write_text(yaml.safe_dump(config))
    program = Path(sys.executable).with_name("stageline")
    words = [program, "trial", "--family", "film_flow", f"cluster.namespace={namespace}", "cluster.pending_seconds=10"]
    environment = {**os.environ, "KUBECONFIG": str(own)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.returncode == 16, done.stdout + done.stderr
    assert "submitted job" in done.stdout
    assert "image localhost:1/none" in done.stdout  # the defaults of the namespace were read
    assert "forbidden" not in done.stdout + done.stderr
    nothing_left(kubectl, namespace)


def nothing_left(kubectl: Kubectl, namespace: str) -> None:
    """No job and no lease, once the collector has taken what belonged to a job."""
    end = time.monotonic() + 60
    while left := kubectl("get", "pytorchjobs,leases", "-n", namespace, "-o", "name"):
        assert time.monotonic() < end, left
        time.sleep(0.5)


# Life of a release -------------------------------------------------------------------------------------------------


def get(kubectl: Kubectl, kind: str, name: str, namespace: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kubectl("get", kind, name, "-n", namespace, "-o", "json"))
    return found


def running_job(image: str, namespace: str, claim: str) -> dict[str, Any]:
    """A job of one worker that writes into the claim and then runs on, under the trainer's account."""
    script = "set -e; grep -q kept /stageline/kept 2>/dev/null || echo kept > /stageline/kept; sleep 3600"
    container = {
        "name": "pytorch",
        "image": image,
        "command": ["sh", "-c", script],
        "securityContext": RESTRICTED,
        "volumeMounts": [{"name": "store", "mountPath": "/stageline"}],
    }
    pod = {
        "serviceAccountName": "stageline-trainer",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"fsGroup": 1000},
        "containers": [container],
        "volumes": [{"name": "store", "persistentVolumeClaim": {"claimName": claim}}],
    }
    worker = {"replicas": 1, "restartPolicy": "ExitCode", "template": {"spec": pod}}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "runs-on", "namespace": namespace},
        "spec": {"runPolicy": {"cleanPodPolicy": "Running"}, "pytorchReplicaSpecs": {"Worker": worker}},
    }


def wait_for_pod(kubectl: Kubectl, namespace: str) -> dict[str, Any]:
    """The job's pod as soon as it is ready."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = json.loads(kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"]
        for pod in found:
            if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", [])):
                ready: dict[str, Any] = pod
                return ready
        time.sleep(0.5)
    raise AssertionError("the job's pod was not ready after 120 s")


@pytest.mark.slow
def test_upgrade_rollback_and_uninstall_touch_no_job_and_no_data(
    kubectl: Kubectl, helm: Helm, namespace: str, python_image: str, storage_class: str | None
) -> None:
    made = [
        "--set",
        f"storage.claim.create=true,storage.claim.size=1Gi,storage.claim.storageClassName={storage_class or ''}",
    ]
    helm("install", "stageline", CHART, "-n", namespace, *made)
    kubectl("apply", "-f", "-", text=json.dumps(running_job(python_image, namespace, "stageline")))
    pod = wait_for_pod(kubectl, namespace)

    def untouched() -> dict[str, Any]:
        now = wait_for_pod(kubectl, namespace)
        assert now["metadata"]["uid"] == pod["metadata"]["uid"]
        assert now["status"]["containerStatuses"][0]["restartCount"] == 0
        generation: int = get(kubectl, "pytorchjob", "runs-on", namespace)["metadata"]["generation"]
        assert generation == 1
        return get(kubectl, "pvc", "stageline", namespace)

    claim = untouched()
    changed = ["--set", "labels.team=imaging,kfp.enabled=true,images.trainer.tag=9.9.9,cluster.shared_memory=2Gi"]
    helm("upgrade", "stageline", CHART, "-n", namespace, *made, *changed)
    assert "9.9.9" in get(kubectl, "configmap", "stageline", namespace)["data"]["cluster.yaml"]
    assert untouched()["metadata"]["uid"] == claim["metadata"]["uid"]
    helm("upgrade", "stageline", CHART, "-n", namespace)  # the claim is in no value any more
    assert untouched()["metadata"]["uid"] == claim["metadata"]["uid"]
    helm("rollback", "stageline", "1", "-n", namespace)
    assert "9.9.9" not in get(kubectl, "configmap", "stageline", namespace)["data"]["cluster.yaml"]
    assert untouched()["metadata"]["uid"] == claim["metadata"]["uid"]
    helm("uninstall", "stageline", "-n", namespace)
    assert untouched()["metadata"]["uid"] == claim["metadata"]["uid"]
    helm("install", "stageline", CHART, "-n", namespace, *made)
    assert untouched()["metadata"]["uid"] == claim["metadata"]["uid"]
    kept = kubectl("exec", "runs-on-worker-0", "-n", namespace, "--", "cat", "/stageline/kept")
    assert kept.strip() == "kept"


def test_a_second_release_in_a_namespace_is_refused(helm: Helm, namespace: str) -> None:
    helm("install", "stageline", CHART, "-n", namespace)
    told = helm("install", "other", CHART, "-n", namespace, check=False)
    assert "cannot be imported into the current release" in told
    assert "stageline" in told
