"""Jobs of every family and the settings they run with; `python -m tests.jobs.jobs` writes their goldens anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stageline.config import ClusterConfig, validate
from stageline.jobs.cluster.inspect.manifest import objects_yaml
from stageline.jobs.job import Job, job_name

GOLDENS = Path(__file__).parents[1] / "golden" / "pytorchjob"
DIGEST = "sha256:" + "0123456789abcdef" * 4
DATA = f"/stageline/cache/prepared/4f1c@{DIGEST}"


def cluster(raw: Mapping[str, Any] | None = None) -> ClusterConfig:
    """A cluster with an image and a claim, and what `raw` adds."""
    plain = {"image": f"registry.example.org/stageline/trainer@{DIGEST}", "storage": {"claim": "stageline-data"}}
    return validate({**plain, **(raw or {})}, ClusterConfig, "cluster")


def stage_job(family: str, stage: str, *parents: str, run: str = "lab", variant: str = "", **changes: Any) -> Job:
    """A job that trains one stage. parents: `role=step directory` words."""
    config = {"family": family, "run": run, "root": "/stageline", "trainer": {"batch_size": 8}}
    words = [f"--parent={role}={path}@{DIGEST}" for role, path in (word.split("=") for word in parents)]
    own = {
        "name": job_name(run, stage, variant),
        "arguments": ("train", stage, f"--data={DATA}", *words),
        "config": config,
        "run": run,
        "item": stage,
        "family": family,
        "variant": variant,
        "fingerprint": "3f9c1a2b" * 8,
    }
    return Job(**{**own, **changes})


GPU_CLUSTER = {
    "namespace": "training",
    "resources": {
        "requests": {"cpu": 32, "memory": "400Gi"},
        "limits": {"nvidia.com/gpu": 8, "rdma/hca_shared_devices_a": 1, "memory": "400Gi"},
    },
    "node_selector": {"node.kubernetes.io/instance-type": "p5.48xlarge"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 1,
                    "preference": {
                        "matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a"]}]
                    },
                }
            ]
        }
    },
    "queue": "research",
    "priority_class": "training",
    "runtime_class": "nvidia",
    "scheduler_name": "volcano",
    "pull_secrets": ["registry"],
    "labels": {"team": "vision", "example.org/cost-centre": "42"},
    "annotations": {"example.org/contact": "vision team, room 3 <vision@example.org>"},
    "env": {"NCCL_DEBUG": "INFO", "NCCL_IB_DISABLE": 0, "GLOO_SOCKET_IFNAME": "net1"},
    "spread": "require",
    "shared_memory": "64Gi",
    "storage": {
        "s3": {
            "endpoint": "https://s3.example.org:9000",
            "region": "eu-1",
            "secret": "stageline-s3",
            "proxy": "http://proxy.example.org:3128",
            "no_proxy": ".svc,10.0.0.0/8",
            "ca_config_map": "company-ca",
            "ca_key": "bundle.pem",
        }
    },
    "mounts": [
        {"mount_path": "/data", "claim": "datasets", "sub_path": "panoramas"},
        {"mount_path": "/var/run/secrets/hub", "secret": "hub-token"},
        {"mount_path": "/etc/extra", "config_map": "extra"},
    ],
}

JOBS: Mapping[str, tuple[Job, ClusterConfig]] = {
    "film_flow": (
        stage_job("film_flow", "film", "default=/stageline/runs/lab/backbone/checkpoints/step-00000080", nodes=2),
        cluster({"resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}}),
    ),
    "panorama_vlm": (
        stage_job(
            "panorama_vlm",
            "finetune",
            "default=s3://models/runs/siglip2-so400m-qwen3/resampler/anyres-e2p_bimamba/checkpoints/step-00020000",
            run="siglip2-so400m-qwen3-bimamba-ov000",
            variant="anyres-e2p_bimamba",
            nodes=4,
            processes=8,
            shutdown_timeout_seconds=600,
            config={
                "family": "panorama_vlm",
                "run": "siglip2-so400m-qwen3-bimamba-ov000",
                "root": "s3://models",
                "trainer": {"metrics_port": 9400, "precision": "bf16-mixed"},
                "cluster": {"image": "not for the pod"},
                "stage_overrides": {"finetune": {"cluster.queue": "x", "trainer.max_steps": 10000}},
            },
        ),
        cluster(GPU_CLUSTER),
    ),
    "sparse_structure": (
        stage_job(
            "sparse_structure",
            "layout",
            "sparse=/stageline/runs/lab/shape/checkpoints/step-00001000",
            processes=2,
        ),
        cluster({"resources": {"limits": {"nvidia.com/mig-1g.10gb": 2}}, "deadline_seconds": 86400}),
    ),
    "champ": (
        stage_job("champ", "motion", "default=/stageline/runs/2d/image/checkpoints/step-00030000", run="2d"),
        cluster({"resources": {"limits": {"nvidia.com/gpu": 1}}, "grace_seconds": 300, "ttl_seconds": None}),
    ),
    "prepare_data": (
        stage_job("film_flow", "prepare_data", arguments=("prepare",), shutdown_timeout_seconds=5),
        cluster({"prepare_resources": {"limits": {"cpu": 4}}, "resources": {"limits": {"nvidia.com/gpu": 1}}}),
    ),
    "trial": (
        stage_job("film_flow", "backbone", arguments=("trial", "backbone", "--family=film_flow"), config={}),
        cluster({"storage": {}}),
    ),
}
"""One golden each. The stages of families to come are those of their specifications."""


def golden_text(name: str) -> str:
    """The YAML of a job as it stands in its golden."""
    return objects_yaml(*JOBS[name])


if __name__ == "__main__":
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for _name in JOBS:
        (GOLDENS / f"{_name}.yaml").write_text(golden_text(_name), encoding="utf-8")
