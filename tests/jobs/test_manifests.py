"""The jobs under manifests/jobs, and how a rendered job is told from one that runs."""

from __future__ import annotations

import copy
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml

from stageline.jobs.cluster.inspect.manifest import manifest_difference, manifest_yaml
from stageline.jobs.cluster.render.pytorchjob import render_job, stamp

from .jobs import JOBS
from .schema import restricted_faults, schema_faults

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "manifests" / "jobs"


def fresh() -> dict[str, str]:
    spec = spec_from_file_location("render_jobs", ROOT / "scripts" / "render_jobs.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    texts: dict[str, str] = module.job_texts()
    return texts


def test_the_ready_jobs_are_what_rendering_gives() -> None:
    """`make render` writes them anew."""
    assert {path.name: path.read_text() for path in FOLDER.glob("*.yaml")} == fresh()


def test_the_ready_jobs_are_legal_and_stand_for_themselves() -> None:
    for text in fresh().values():
        policy, job = yaml.safe_load_all(text)
        assert (policy["kind"], policy["metadata"]["name"]) == ("NetworkPolicy", job["metadata"]["name"])
        pod = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
        assert schema_faults(job) == []
        assert list(restricted_faults(pod)) == []
        assert pod["containers"][0]["command"] == [
            "stageline-entry",
            "train",
            job["metadata"]["labels"]["stageline.dev/stage"],
        ]


def live(name: str) -> dict[str, Any]:
    """A rendered job as the API server gives it back, with what it and the launcher add."""
    manifest = stamp(render_job(*JOBS[name]), owner={"name": "p", "uid": "u"}, deadline=1e9, kfp_run_id="k")
    manifest["metadata"] |= {"uid": "1", "resourceVersion": "7", "generation": 2, "creationTimestamp": "x"}
    manifest["metadata"]["annotations"]["stageline.dev/launcher"] = "me"
    pod = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    pod |= {"restartPolicy": "Never", "dnsPolicy": "ClusterFirst"}
    pod["containers"][0]["env"].reverse()
    manifest["status"] = {"conditions": []}
    return manifest


@pytest.mark.parametrize("name", sorted(JOBS))
def test_what_server_and_launcher_add_is_no_difference(name: str) -> None:
    assert manifest_difference(live(name), render_job(*JOBS[name])) == []


def test_every_field_that_differs_is_named() -> None:
    job, settings = JOBS["film_flow"]
    changed = settings.model_copy(
        update={"image": "registry.example.org/other@sha256:" + "0" * 64, "grace_seconds": 300}
    )
    after = render_job(job, changed)
    lines = manifest_difference(live("film_flow"), after)
    assert [line.split(": ")[0] for line in lines] == [
        "pod.terminationGracePeriodSeconds",
        "pod.image",
        "pod.env[STAGELINE_IMAGE]",
    ]
    assert "150 -> 300" in lines[0]


def test_a_config_is_compared_key_by_key() -> None:
    job, settings = JOBS["film_flow"]
    from dataclasses import replace

    other = replace(job, config={**job.config, "trainer": {"batch_size": 16}})
    assert manifest_difference(live("film_flow"), render_job(other, settings)) == ["config trainer.batch_size: 8 -> 16"]


def test_what_is_no_longer_wanted_is_named() -> None:
    before = live("film_flow")
    env = before["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["env"]
    env.append({"name": "NCCL_DEBUG", "value": "INFO"})
    pod = before["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    pod["nodeSelector"] = {"zone": "a"}
    pod["containers"][0]["resources"]["requests"]["nvidia.com/gpu"] = "1"
    assert set(manifest_difference(before, render_job(*JOBS["film_flow"]))) == {
        "pod.env[NCCL_DEBUG]: INFO -> absent",
        "pod.nodeSelector: {'zone': 'a'} -> absent",
        "pod.resources.requests.nvidia.com/gpu: 1 -> absent",
    }


def test_comparing_changes_nothing() -> None:
    before, after = live("panorama_vlm"), render_job(*JOBS["panorama_vlm"])
    kept = copy.deepcopy((before, after))
    manifest_difference(before, after)
    assert (before, after) == kept


@pytest.mark.parametrize("name", sorted(JOBS))
def test_yaml_reads_back_equal(name: str) -> None:
    manifest = render_job(*JOBS[name])
    assert yaml.safe_load(manifest_yaml(manifest)) == manifest
