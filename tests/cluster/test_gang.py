"""A stage in two pods on a real cluster: pods are evicted mid-stage, memory runs out, a job is wrong or edited."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stageline.checkpoint.layout import StageDir
from stageline.checkpoint.verify import verify
from stageline.store import open_store

Kubectl = Callable[..., str]
STEPS = 60
EVERY = 10
PATIENCE_SECONDS = 400.0
SMALL = (
    "trainer.nodes=2",
    "trainer.accelerator=cpu",
    "trainer.process_group_timeout_seconds=60",
    "trainer.tensorboard=false",
    f"trainer.checkpoint_every_steps={EVERY}",
    f"stage_overrides.backbone.trainer.max_steps={STEPS}",
    "data.num_train=16",
    "data.num_val=8",
)


class Followed:
    """A job that is submitted and followed; its lines with the time they came at."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.append((time.time(), line.rstrip()))

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def when(self, words: str) -> float:
        """When the first line with these words came."""
        return next(at for at, line in self.lines if words in line)

    def end(self) -> tuple[int, str]:
        """(exit code, everything that was printed)."""
        try:
            self.process.wait(PATIENCE_SECONDS)
        finally:
            self.process.kill()
        self.reader.join(5)
        print(self.text)
        return self.process.returncode, self.text


class Gang:
    """One run in one namespace and one bucket; the launcher runs here, as on a laptop."""

    def __init__(self, kubectl: Kubectl, namespace: str, variables: dict[str, str], settings: list[str]) -> None:
        self.kubectl, self.namespace, self.settings = kubectl, namespace, settings
        self.environment = variables

    def start(self, item: str, *more: str) -> Followed:
        words = ["job", "submit", item, "--follow", "--family", "film_flow", "--preset", "tiny", *self.settings, *more]
        return Followed([sys.executable, "-m", "stageline", *words], self.environment)

    def run(self, item: str, *more: str) -> tuple[int, str]:
        """(exit code, everything that was printed) of a job that is followed to its end."""
        return self.start(item, *more).end()

    @property
    def directory(self) -> StageDir:
        root = next(word.removeprefix("root=") for word in self.settings if word.startswith("root="))
        return StageDir(root, "gang", "backbone")

    def await_step(self, step: int, job: Followed) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not any(ref.metadata.step >= step for ref in self.directory.committed()):
            assert time.monotonic() < end, "no checkpoint came"
            assert job.process.poll() is None, job.text
            time.sleep(0.3)

    def evict(self, pod: str) -> None:
        """As a drain does it: through the eviction API, with the pod's own grace period."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.namespace}}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        self.kubectl("create", "--raw", path, "-f", "-", text=json.dumps(body))

    def kill(self, pod: str) -> None:
        """At once and without a word, as a node does that loses power."""
        self.kubectl("-n", self.namespace, "delete", "pod", pod, "--grace-period=0", "--force")


@pytest.fixture
def gang(
    kubeconfig: str,
    kubectl: Kubectl,
    namespace: str,
    bucket: dict[str, str],
    trainer_image: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Gang:
    keys = {"AWS_ACCESS_KEY_ID": bucket["access_key"], "AWS_SECRET_ACCESS_KEY": bucket["secret_key"]}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}, "stringData": keys}
    kubectl("-n", namespace, "create", "-f", "-", text=json.dumps(secret))
    own = {**keys, "AWS_ENDPOINT_URL_S3": bucket["endpoint"], "AWS_REGION": bucket["region"]}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    variables = {**{k: v for k, v in os.environ.items() if not k.startswith("AWS_")}, **keys, "KUBECONFIG": kubeconfig}
    settings = [
        *SMALL,
        "run=gang",
        f"root=s3://{bucket['bucket']}/gang",
        f"cluster.namespace={namespace}",
        f"cluster.image={trainer_image}",
        "cluster.service_account=default",
        "cluster.storage.s3.secret=s3",
        f"cluster.storage.s3.endpoint={bucket['endpoint']}",
        f"cluster.storage.s3.region={bucket['region']}",
    ]
    return Gang(kubectl, namespace, variables, settings)


@pytest.mark.parametrize(
    ("victim", "how"),
    [
        pytest.param(0, "evict", id="rendezvous-host-evicted"),
        pytest.param(1, "evict", marks=pytest.mark.slow, id="worker-1-evicted"),
        pytest.param(0, "kill", marks=pytest.mark.slow, id="rendezvous-host-killed"),
        pytest.param(1, "kill", marks=pytest.mark.slow, id="worker-1-killed"),
    ],
)
def test_a_pod_goes_mid_stage_and_the_gang_trains_again(gang: Gang, victim: int, how: str) -> None:
    code, text = gang.run("prepare_data")
    assert code == 0, text
    job = gang.start("backbone")
    gang.await_step(EVERY, job)
    before = max(ref.metadata.step for ref in gang.directory.committed())
    began = time.time()
    getattr(gang, how)(f"gang-backbone-worker-{victim}")
    code, text = job.end()
    assert code == 0, text
    ref = gang.directory.newest()
    assert ref is not None
    assert (ref.metadata.final, ref.metadata.step) == (True, STEPS)
    assert verify(ref) == []
    resumed = [int(step) for step in re.findall(r"resumed at step (\d+)", text)]
    assert resumed, text
    assert resumed[0] >= before, "at most one checkpoint interval was lost"
    after = [ref for ref in gang.directory.committed() if ref.metadata.step > before]
    assert after
    again = job.when("resumed at step") - began
    print(f"worker {victim}, {how}: training again after {again:.1f} s from step {resumed}")


def test_out_of_memory_ends_the_job_with_its_remedy(gang: Gang) -> None:
    code, text = gang.run("prepare_data")
    assert code == 0, text
    limits = "cluster.resources={requests: {memory: 100Mi}, limits: {memory: 150Mi}}"
    code, text = gang.run("backbone", limits)
    assert code == 8, text
    assert "cluster.resources" in text


@pytest.mark.slow
def test_a_wrong_config_ends_the_job_with_the_ranks_own_sentence(gang: Gang) -> None:
    code, text = gang.run("prepare_data")
    assert code == 0, text
    code, text = gang.run("backbone", "trainer.accelerator=cuda")
    assert code == 2, text
    assert "torch sees no GPU" in text


@pytest.mark.slow
def test_a_job_edited_while_it_runs_is_refused_in_words(gang: Gang, kubectl: Kubectl) -> None:
    code, text = gang.run("prepare_data")
    assert code == 0, text
    job = gang.start("backbone")
    gang.await_step(EVERY, job)
    where = ("-n", gang.namespace)
    manifest = json.loads(kubectl(*where, "get", "pytorchjob", "gang-backbone", "-o", "json"))
    worker = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    for variable in worker["env"]:
        if variable["name"] == "STAGELINE_CONFIG":
            variable["value"] += "\nseed: 99\n"
    kubectl(*where, "replace", "-f", "-", text=json.dumps(manifest))
    gang.kill("gang-backbone-worker-1")
    code, text = job.end()
    assert 0 < code < 128, text
    assert "edited while it ran" in text


@pytest.mark.slow
def test_a_gang_on_a_claim_trains_again_after_an_eviction(
    gang: Gang, kubectl: Kubectl, namespace: str, claim: str, trainer_image: str, tmp_path: Path
) -> None:
    """Applied by hand, without a launcher: entry and operator alone bring it to its end."""
    where = ("-n", namespace)
    settings = [
        *SMALL,
        "run=gang",
        "root=/stageline",
        f"cluster.namespace={namespace}",
        f"cluster.image={trainer_image}",
        "cluster.service_account=default",
        f"cluster.storage.claim={claim}",
    ]
    argv = [sys.executable, "-m", "stageline", "job", "render", "backbone", "--family", "film_flow", "--preset", "tiny"]
    done = subprocess.run(
        [*argv, *settings], env=gang.environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    kubectl(*where, "apply", "-f", "-", text=done.stdout)

    def log(index: int) -> str:
        return kubectl(*where, "logs", f"gang-backbone-worker-{index}", "--tail=-1", check=False)

    def until(what: Callable[[], Any]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not what():
            assert time.monotonic() < end, log(0) + log(1)
            time.sleep(0.5)

    until(lambda: re.search(r"step [2-5]0/60", log(0)))
    gang.evict("gang-backbone-worker-1")
    until(lambda: "resumed at step" in log(0))
    until(lambda: "Succeeded" in kubectl(*where, "get", "pytorchjob", "gang-backbone", "-o", "jsonpath={.status}"))
    assert int(re.findall(r"resumed at step (\d+)", log(0))[0]) >= EVERY
    assert "trained, step 60 of 60" in log(0) or "continued, step 60 of 60" in log(0)


def test_logs_of_every_pod_lie_in_the_store(gang: Gang) -> None:
    code, text = gang.run("prepare_data")
    assert code == 0, text
    store = open_store(gang.directory.store.uri.rsplit("/", 1)[0]).child("jobs", "prepare_data", "logs")
    kept = "".join(store.get(info.key).decode() for info in store.list())
    assert "[stageline-entry] job gang-prepare-data" in kept
    assert "@sha256:" in kept
