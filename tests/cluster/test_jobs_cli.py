"""`stageline job …` and `plan --cluster` on a real cluster: submitted, followed, left, adopted, listed, cancelled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Kubectl = Callable[..., str]
SMALL = [
    "trainer.max_steps=4",
    "stage_overrides.backbone.trainer.max_steps=4",
    "stage_overrides.film.trainer.max_steps=4",
    "data.num_train=16",
    "data.num_val=8",
]
NOWHERE = "cluster.resources={limits: {example.org/nothing: 1}}"
"""No node offers it: the job stays as long as it is left there, and costs nothing."""


class Program:
    """The command line as a user runs it, on one run in one namespace and one bucket."""

    def __init__(self, kubeconfig: str, namespace: str, bucket: dict[str, str], image: str, folder: Path) -> None:
        self.namespace = namespace
        self.folder = folder
        self.root = f"s3://{bucket['bucket']}/lab"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "KUBECONFIG": kubeconfig,
            "AWS_ACCESS_KEY_ID": bucket["access_key"],
            "AWS_SECRET_ACCESS_KEY": bucket["secret_key"],
        }
        self.settings = [
            *SMALL,
            "run=cli",
            f"root={self.root}",
            f"cluster.namespace={namespace}",
            f"cluster.image={image}",
            "cluster.service_account=default",
            "cluster.storage.s3.secret=s3",
            f"cluster.storage.s3.endpoint={bucket['endpoint']}",
            f"cluster.storage.s3.region={bucket['region']}",
        ]

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "stageline", *words]

    def configured(self, *words: str) -> list[str]:
        return self.argv(*words, "--family", "film_flow", "--preset", "tiny", *self.settings)

    def call(self, *words: str, code: int = 0, configured: bool = False, more: tuple[str, ...] = ()) -> Any:
        argv = [*(self.configured(*words) if configured else self.argv(*words)), *more]
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=400, env=self.environment, cwd=self.folder, check=False
        )
        print(done.stdout, done.stderr)
        assert done.returncode == code, done.stderr
        return done

    def rows(self) -> list[dict[str, Any]]:
        done = self.call("job", "list", "-n", self.namespace, "--json")
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    def states(self) -> dict[str, str]:
        return {row["name"]: row["state"] for row in self.rows()}


@pytest.fixture
def program(
    kubeconfig: str, kubectl: Kubectl, namespace: str, bucket: dict[str, str], trainer_image: str, tmp_path: Path
) -> Program:
    keys = {"AWS_ACCESS_KEY_ID": bucket["access_key"], "AWS_SECRET_ACCESS_KEY": bucket["secret_key"]}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}, "stringData": keys}
    kubectl("-n", namespace, "create", "-f", "-", text=json.dumps(secret))
    return Program(kubeconfig, namespace, bucket, trainer_image, tmp_path)


def until(what: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(1.0)


def test_names_that_do_not_exist_are_refused_in_words(program: Program) -> None:
    assert f"no jobs in namespace {program.namespace}" in program.call("job", "list", "-n", program.namespace).stdout
    for verb in ("logs", "cancel"):
        done = program.call("job", verb, "nothing", "-n", program.namespace, code=13)
        assert "there is no job 'nothing'" in done.stderr
        assert "stageline job list" in done.stderr
    program.call("job", "cancel", "-n", program.namespace, code=2)
    assert "is no time" in program.call("job", "logs", "x", "--since", "soon", code=2).stderr


def test_a_job_that_stands_there_is_listed_compared_left_and_cancelled(program: Program, kubectl: Kubectl) -> None:
    """Everything that needs no pod to run: one that no node takes."""
    nowhere = (NOWHERE,)
    plan = program.call("plan", "--cluster", configured=True, more=nowhere)
    assert "cli-backbone: would be submitted" in plan.stdout
    rendered = program.call("job", "render", "backbone", configured=True, more=nowhere).stdout
    kubectl("-n", program.namespace, "create", "--dry-run=server", "-f", "-", text=rendered)
    kubectl("-n", program.namespace, "create", "-f", "-", text=rendered)
    until(lambda: bool(program.rows()) and "waits for a node" in program.rows()[0]["state"])
    row = program.rows()[0]
    assert (row["run"], row["stage"], row["wanted"], row["running"]) == ("cli", "backbone", 1, 0)
    logs = program.call("job", "logs", "cli-backbone", "-n", program.namespace)
    assert "have not started yet" in logs.stderr

    assert (
        "cli-backbone: unfinished; the same" in program.call("plan", "--cluster", configured=True, more=nowhere).stdout
    )
    changed = (*nowhere, "cluster.env.NCCL_DEBUG=INFO", "trainer.batch_size=4")
    shown = program.call("plan", "--cluster", "--json", configured=True, more=changed).stdout
    (job,) = (entry for entry in json.loads(shown)["jobs"] if entry["item"] == "backbone")
    assert any("env[NCCL_DEBUG]" in line for line in job["differences"])
    assert "config trainer.batch_size: 8 -> 4" in job["differences"]
    assert not job["same_fingerprint"]

    done = program.call("job", "cancel", "--all-of-run", "cli", "-n", program.namespace)
    assert "cli-backbone: deleted" in done.stdout
    until(lambda: not program.rows())
    assert "has no job" in program.call("job", "cancel", "--all-of-run", "cli", "-n", program.namespace).stdout


@pytest.mark.slow
def test_a_job_is_followed_left_by_ctrl_c_adopted_and_reused(program: Program, kubectl: Kubectl) -> None:
    """prepare_data: the shortest real work there is."""
    leases = ("-n", program.namespace, "get", "leases", "cli-prepare-data", "-o", "json")
    stuck = subprocess.Popen(
        program.configured("job", "submit", "prepare_data", "--follow", NOWHERE),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=program.environment,
        cwd=program.folder,
    )
    until(lambda: any("waits for a node" in row["state"] for row in program.rows()))
    lease = json.loads(kubectl(*leases))
    assert lease["spec"]["holderIdentity"]
    assert [owner["kind"] for owner in lease["metadata"]["ownerReferences"]] == ["PyTorchJob"]
    stuck.send_signal(signal.SIGINT)
    _, err = stuck.communicate(timeout=30)
    assert stuck.returncode == 130, err
    assert "the job runs on" in err
    assert f"stageline job logs cli-prepare-data -n {program.namespace} --follow" in err
    assert f"stageline job cancel cli-prepare-data -n {program.namespace}" in err
    (row,) = program.rows()
    assert row["launcher"] == "detached"
    assert not json.loads(kubectl(*leases))["spec"]["holderIdentity"], "given back, and there as long as its job"

    again = program.call("job", "submit", "prepare_data", configured=True, more=(NOWHERE,))
    assert "with the same fingerprint" in again.stderr  # adopted, and left at once
    program.call("job", "cancel", "cli-prepare-data", "-n", program.namespace)
    until(lambda: not program.rows())

    done = program.call("job", "submit", "prepare_data", "--follow", configured=True)
    assert "cli-prepare-data: done" in done.stderr
    assert "@sha256:" in done.stdout  # what the verb itself printed, in the pod
    logs = program.call("job", "logs", "cli-prepare-data", "-n", program.namespace)
    assert set(logs.stdout.splitlines()) <= set(done.stdout.splitlines())
    followed = program.call("job", "logs", "cli-prepare-data", "-n", program.namespace, "--follow")
    assert followed.stdout == logs.stdout
    assert [row["state"] for row in program.rows()] == ["succeeded"]
    reused = program.call("job", "submit", "prepare_data", configured=True)
    assert "finished already" in reused.stdout
    refused = program.call("job", "submit", "film", configured=True, code=6)
    assert "cannot start yet" in refused.stderr


@pytest.mark.slow
def test_a_store_that_is_out_of_reach_is_no_hindrance(program: Program, claim: str) -> None:
    """A claim is not mounted where people work: the job finds its inputs itself, its end tells of its result."""
    on_claim = (f"cluster.storage.claim={claim}", "cluster.storage.s3=null", "root=/stageline")
    done = program.call("job", "submit", "prepare_data", "--follow", configured=True, more=on_claim)
    assert "the store is not looked into" in done.stderr
    assert "cli-prepare-data: done" in done.stderr
    assert "/stageline/cache/prepared/" in done.stdout
    again = program.call("job", "submit", "prepare_data", "--follow", configured=True, more=on_claim)
    assert "need not start" in again.stderr


@pytest.mark.slow
def test_jobs_applied_by_hand_train_a_run(program: Program, kubectl: Kubectl) -> None:
    """Two pods prepare the data themselves, and the second stage takes the parent that its run has."""
    for stage in ("backbone", "film"):
        text = program.call("job", "render", stage, configured=True, more=("trainer.nodes=2",)).stdout
        kubectl("-n", program.namespace, "apply", "-f", "-", text=text)
        until(lambda: program.states()[f"cli-{stage}"] in ("succeeded", "failed"), 400)  # noqa: B023  # called at once
        assert program.states()[f"cli-{stage}"] == "succeeded"
    plan = json.loads(program.call("plan", "--json", configured=True, more=("trainer.nodes=2",)).stdout)
    actions = {item["name"]: item["action"] for item in plan["items"]}
    assert actions["film"] == actions["backbone"] == actions["prepare_data"] == "reuse"
