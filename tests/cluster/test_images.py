"""Both images as pods that the `restricted` standard admits, on a read-only root with one writable mount: `/tmp`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import stageline

Kubectl = Callable[..., str]

TORCH_SIDE = ("torch", "lightning_fabric", "safetensors", "scipy", "skimage", "torchdiffeq", "transformers", "trimesh")
KFP_SIDE = ("kfp", "kfp.kubernetes", "stageline_components.steps", "stageline_pipelines.film_flow")
BOTH = ("stageline.cli", "kubernetes", "obstore", "pydantic")
IMPORTED = {"trainer": (*BOTH, *TORCH_SIDE), "launcher": (*BOTH, *KFP_SIDE)}
ABSENT = {"trainer": ("kfp",), "launcher": (*TORCH_SIDE, "triton", "nvidia")}

PROBE = """
import getpass, importlib, importlib.util, json, os, pathlib, subprocess, sys, tempfile

def is_writable(folder):
    try:
        tempfile.TemporaryFile(dir=folder).close()
        return True
    except OSError:
        return False

def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    return [done.returncode, done.stdout, done.stderr]

for name in sys.argv[1].split():
    importlib.import_module(name)
package = pathlib.Path(importlib.util.find_spec("stageline").origin).parent
sources, compiled = list(package.rglob("*.py")), list(package.rglob("*.pyc"))
folders = [os.environ[name] for name in os.environ if name.startswith("XDG_") or name.endswith(("_HOME", "_CACHE_DIR"))]
for folder in folders:
    os.makedirs(folder, exist_ok=True)
print(json.dumps({
    "user": [os.getuid(), os.getgid(), getpass.getuser()],
    "present": [name for name in sys.argv[2].split() if importlib.util.find_spec(name)],
    "writable": {folder: is_writable(folder) for folder in ["/", "/opt/stageline", str(package), "/tmp", *folders]},
    "uncompiled": len(sources) - len(compiled),
    "version": run("stageline", "--version", "--json"),
    "plan": run("stageline", "plan", "--family", "film_flow", "--preset", "tiny", "root=/tmp/runs", "--json"),
    "executor": run("python", "-m", "kfp.dsl.executor_main", "--help"),
}))
"""


@pytest.fixture(params=["launcher", "trainer"])
def image(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(trainer or launcher, its reference)."""
    return request.param, request.getfixturevalue(f"{request.param}_image")


def output_of(kubectl: Kubectl, namespace: str, image: str, **container: Any) -> str:
    """What a pod of an image prints until it has succeeded. container: what is special about its container.

    No user is set: the image's own has to be one that can be seen not to be root.
    """
    security = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
        **container.pop("securityContext", {}),
    }
    main = {
        "name": "main",
        "image": image,
        "securityContext": security,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}},
        **container,
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "containers": [main],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": spec}
    kubectl("-n", namespace, "create", "-f", "-", text=json.dumps(pod))
    # Either end will do; a failure is told by what the pod printed.
    state = ".status.containerStatuses[0].state.terminated"
    wait = ["wait", "pod/probe", f"--for=jsonpath={{{state}.reason}}", "--timeout=240s"]
    kubectl("-n", namespace, *wait, check=False, seconds=260)
    said = kubectl("-n", namespace, "logs", "probe", check=False)
    assert kubectl("-n", namespace, "get", "pod", "probe", "-o", f"jsonpath={{{state}.exitCode}}") == "0", said
    return said


def test_it_runs_restricted_and_says_what_it_is(image: tuple[str, str], namespace: str, kubectl: Kubectl) -> None:
    name, reference = image
    said = output_of(
        kubectl,
        namespace,
        reference,
        command=["python", "-W", "ignore", "-c", PROBE, " ".join(IMPORTED[name]), " ".join(ABSENT[name])],
        env=[{"name": "STAGELINE_IMAGE", "value": reference}],
    )
    found = json.loads(said.splitlines()[-1])
    assert found["user"] == [1000, 1000, "stageline"]
    assert found["present"] == []
    assert found["uncompiled"] <= 0

    writable = found["writable"]
    assert not any(writable[folder] for folder in writable if not folder.startswith("/tmp"))
    assert all(writable[folder] for folder in writable if folder.startswith("/tmp"))
    assert len(writable) > 6

    code, out, _ = found["version"]
    identity = json.loads(out)
    assert code == 0
    assert identity["origin"] == "image"
    assert identity["version"] == stageline.__version__
    assert identity["image"] == reference
    assert "revision" in identity

    code, out, err = found["plan"]
    assert code == 0, err
    assert [item["action"] for item in json.loads(out)["items"]] == ["run"] * 5
    code, out, _ = found["executor"]
    assert (code == 0 and "--executor_input" in out) == (name == "launcher")


def test_any_user_and_the_default_command(image: tuple[str, str], namespace: str, kubectl: Kubectl) -> None:
    """As on clusters that give each namespace a user id of its own, which no image knows."""
    said = output_of(kubectl, namespace, image[1], securityContext={"runAsUser": 1000730000, "runAsGroup": 0})
    assert said.startswith("Usage: stageline")


def test_what_needs_torch_says_so_in_the_launcher(launcher_image: str, namespace: str, kubectl: Kubectl) -> None:
    train = "stageline train backbone --family film_flow --preset tiny root=/tmp/runs; echo ended with $?"
    said = output_of(kubectl, namespace, launcher_image, command=["sh", "-c", f"({train}) 2>&1"])
    assert "pip install 'stageline[train]'" in said
    assert "Traceback" not in said
