"""The compiled pipeline's own steps in real pods: to the evaluated model and the report, then all of it reused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stageline.checkpoint.layout import resolve

from .conftest import ROOT, Kubectl, Own
from .steps import STEPS, CompiledPipeline, outputs_of, run_step

SMALL = (
    *("data.num_train=8", "data.num_val=2", "evaluate.compare_film=false", "evaluate.num_panels=1"),
    *("stage_overrides.backbone.trainer.max_steps=2", "stage_overrides.film.trainer.max_steps=2"),
    *("trainer.use_ema=false", "evaluate.weights=raw", "trainer.tensorboard=false"),
)
ITEMS = {"train-stage": "backbone", "train-stage-2": "film"}

RunSteps = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def chart(kubectl: Kubectl, namespace: str, own: Own | None, kubeconfig: str) -> str:
    """The namespace with the chart's service accounts and rights in it."""
    helm = own.helm if own else shutil.which("helm")
    if helm is None:
        pytest.skip("there is no helm in PATH; expected one for tests on another cluster")
    words = [helm, "template", "stageline", str(ROOT / "helm" / "stageline"), "-n", namespace, "--no-hooks"]
    rendered = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    kubectl("-n", namespace, "apply", "-f", "-", text=rendered)
    return namespace


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on this machine, with two processes in place of two pods."""
    root = tmp_path_factory.mktemp("laptop")
    words = [sys.executable, "-m", "stageline", "run", "--family", "film_flow", "--preset", "tiny"]
    subprocess.run(
        [*words, f"root={root}", "trainer.processes=2", *SMALL],
        check=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        stdout=subprocess.DEVNULL,
        timeout=400,
    )
    return root


@pytest.fixture
def run_steps(kubectl: Kubectl, chart: str, launcher_image: str, trainer_image: str) -> RunSteps:
    """Run steps of a compiled file in order, each as a pod; gives task -> what it left, with its log."""

    def run(file: str, attempt: str, tasks: tuple[str, ...] = STEPS, **parameters: Any) -> dict[str, dict[str, Any]]:
        given = {
            "preset": "tiny",
            "run": "tiny",
            "overrides": " ".join(SMALL),
            "image": trainer_image,
            "launcher_image": launcher_image,
            "workers": 2.0,  # as KFP hands integers over
            **parameters,
        }
        pipeline = CompiledPipeline(ROOT / "pipelines" / file, given)
        left: dict[str, dict[str, Any]] = {}
        for task in tasks:
            references = {name: outputs["parameterValues"]["reference"] for name, outputs in left.items()}
            log, code = run_step(kubectl, chart, pipeline.pod(task, f"{task}-{attempt}", references))
            assert code == 0, f"{task}: {log}"
            left[task] = {**outputs_of(log), "log": log}
        return left

    return run


def metadata_of(outputs: dict[str, Any], name: str) -> dict[str, Any]:
    (artifact,) = outputs["artifacts"][name]["artifacts"]
    assert artifact["uri"].startswith("s3://kfp/"), "KFP's launcher uploads to where KFP said, and nowhere else"
    metadata: dict[str, Any] = artifact["metadata"]
    return metadata


def test_every_step_in_a_pod_to_the_report_then_reused_and_equal_to_the_laptop(
    run_steps: RunSteps, claim: str, laptop: Path
) -> None:
    first = run_steps("film_flow_pvc.yaml", "1", claim=claim)
    for task, stage in ITEMS.items():
        own = metadata_of(first[task], "checkpoint")
        local = resolve(str(laptop / "runs" / "tiny" / stage))
        assert own["content"] == local.content, "two pods of one rank, two ranks of one machine: the same weights"
        assert own["location"].startswith(f"/stageline/runs/tiny/{stage}/")
        assert own["step"] == 2
    metrics = metadata_of(first["evaluate"], "metrics")
    assert 0 <= metrics["dice"] <= 1
    assert metadata_of(first["report"], "page")["location"] == "/stageline/runs/tiny/report.html"
    assert "submitted job" in first["train-stage"]["log"]

    again = run_steps("film_flow_pvc.yaml", "2", claim=claim)
    for task in STEPS:
        assert ": reused: " in again[task]["log"], task
        assert again[task]["parameterValues"] == first[task]["parameterValues"], task
        assert again[task]["artifacts"] == first[task]["artifacts"], "what a step shows is the same when it is reused"


def test_a_stage_on_s3_with_the_credentials_of_a_secret_goes_on_from_a_laptop(
    run_steps: RunSteps, kubectl: Kubectl, kubeconfig: str, chart: str, bucket: dict[str, str], trainer_image: str
) -> None:
    """First as KFP's steps, then as a pipeline on this machine whose stages are jobs: what is there is reused."""
    keys = {"AWS_ACCESS_KEY_ID": bucket["access_key"], "AWS_SECRET_ACCESS_KEY": bucket["secret_key"]}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "stageline-s3"}, "stringData": keys}
    kubectl("-n", chart, "create", "-f", "-", text=json.dumps(secret))
    root = f"s3://{bucket['bucket']}/team"
    left = run_steps(
        "film_flow.yaml",
        "1",
        ("prepare-data", "train-stage"),
        root=root,
        s3_endpoint=bucket["endpoint"],
        s3_region=bucket["region"],
        stages="backbone",
        workers=1.0,
    )
    found = metadata_of(left["train-stage"], "checkpoint")
    assert found["location"].startswith(f"s3://{bucket['bucket']}/team/runs/tiny/backbone/")
    for outputs in left.values():
        assert bucket["secret_key"] not in outputs["log"]

    s3 = "cluster.storage.s3"
    where = (f"cluster.namespace={chart}", f"{s3}.endpoint={bucket['endpoint']}", f"{s3}.secret=stageline-s3")
    words = ["run", "--launcher", "pytorchjob", "--family", "film_flow", "--preset", "tiny", *where, *SMALL]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "stageline",
            *words,
            f"root={root}",
            f"cluster.image={trainer_image}",
            "stages=[backbone]",
        ],
        env={**os.environ, **keys, "KUBECONFIG": kubeconfig},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "backbone: reused: " in done.stdout
    assert f"submitted job {chart}/tiny-evaluate" in done.stdout
    assert "2 made, 2 reused, 1 not selected" in done.stdout


def test_faults_of_the_parameters_end_the_first_step_in_words(
    kubectl: Kubectl, chart: str, claim: str, launcher_image: str
) -> None:
    given = {"preset": "tinny", "run": 'my "run"', "claim": claim, "launcher_image": launcher_image}
    pipeline = CompiledPipeline(ROOT / "pipelines" / "film_flow_pvc.yaml", given)
    log, code = run_step(kubectl, chart, pipeline.pod("prepare-data", "faulty", {}))
    assert code == 2
    assert "docs/pipeline.md" in log
    assert "did you mean 'tiny'" in log
    assert 'my "run"' in log
    assert "Traceback" not in log
