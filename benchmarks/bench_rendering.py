"""How long 1000 PyTorchJobs take to render, alone and as the YAML a person sees; expected below 2 s."""

from __future__ import annotations

import time
from dataclasses import replace

from stageline.config import ClusterConfig, validate
from stageline.jobs.cluster.inspect.manifest import manifest_yaml
from stageline.jobs.cluster.render.pytorchjob import render_job, stamp
from stageline.jobs.job import Job, job_name

JOBS = 1000
CLUSTER = {
    "image": "registry.example.org/stageline/trainer@sha256:" + "0123456789abcdef" * 4,
    "resources": {"requests": {"cpu": 32, "memory": "400Gi"}, "limits": {"nvidia.com/gpu": 8}},
    "env": {"NCCL_DEBUG": "INFO"},
    "storage": {"s3": {"endpoint": "https://s3.example.org", "secret": "stageline-s3", "ca_config_map": "company-ca"}},
}


def main() -> None:
    """Print seconds for all jobs."""
    cluster = validate(CLUSTER, ClusterConfig, "cluster")
    config = {"family": "film_flow", "root": "s3://models", "model": {"channel_mult": [1, 2, 3, 4]}}
    first = Job("", ("train", "film"), config, item="film", family="film_flow", nodes=4, processes=8)
    start = time.perf_counter()
    jobs = [replace(first, run=f"run-{n}", name=job_name(f"run-{n}", "film")) for n in range(JOBS)]
    manifests = [stamp(render_job(job, cluster), owner=None, deadline=1e9) for job in jobs]
    rendered = time.perf_counter() - start
    assert len({manifest["metadata"]["name"] for manifest in manifests}) == JOBS
    start = time.perf_counter()
    for manifest in manifests[: JOBS // 10]:
        manifest_yaml(manifest)
    written = (time.perf_counter() - start) * 10
    print(f"{JOBS} jobs rendered in {rendered:.2f} s; written as YAML in {written:.1f} s more")


if __name__ == "__main__":
    main()
