"""Jobs as rows, and times as people give them."""

from __future__ import annotations

from typing import Any

import pytest

from stageline.errors import ConfigError
from stageline.jobs.cluster.follow.budget import SeenPods
from stageline.jobs.cluster.inspect.namespace_jobs import since_time
from stageline.jobs.cluster.inspect.rows import list_rows
from stageline.jobs.cluster.render.pytorchjob import render_job

from .jobs import JOBS

NOW = 1_790_000_000.0


def live(name: str = "film_flow", *conditions: str, **metadata: Any) -> dict[str, Any]:
    job = render_job(*JOBS[name])
    job["metadata"] |= {"creationTimestamp": "2026-09-21T14:12:20Z", **metadata}
    job["status"] = {"conditions": [{"type": kind, "status": "True"} for kind in conditions]}
    return job


def pod(index: int, phase: str, node: str = "n1") -> dict[str, Any]:
    labels = {"training.kubeflow.org/job-name": "lab-film", "training.kubeflow.org/replica-index": str(index)}
    return {
        "metadata": {"name": f"lab-film-worker-{index}", "uid": f"u{index}", "labels": labels},
        "spec": {"nodeName": node},
        "status": {"phase": phase},
    }


@pytest.mark.parametrize(
    ("job", "pods", "state", "running"),
    [
        pytest.param(live(), [], "created", 0, id="created"),
        pytest.param(live(), [pod(0, "Pending", "")], "waits for a node", 0, id="pending"),
        pytest.param(live(), [pod(0, "Running"), pod(1, "Pending")], "starts on n1 (volumes, image)", 1, id="half"),
        pytest.param(live("film_flow", "Running"), [pod(0, "Running"), pod(1, "Running")], "running", 2, id="running"),
        pytest.param(live("film_flow", "Restarting"), [], "restarting", 0, id="restarting"),
        pytest.param(live("film_flow", "Created", "Succeeded"), [pod(0, "Succeeded")], "succeeded", 0, id="succeeded"),
        pytest.param(live("film_flow", "Failed"), [], "failed", 0, id="failed"),
        pytest.param(live(deletionTimestamp="2026-09-21T14:13:00Z"), [pod(0, "Running")], "ending", 1, id="ending"),
    ],
)
def test_a_job_is_one_row(job: dict[str, Any], pods: list[dict[str, Any]], state: str, running: int) -> None:
    (row,) = list_rows([job], pods, now=NOW)
    assert (row.name, row.run, row.stage, row.state) == ("lab-film", "lab", "film", state)
    assert (row.running, row.wanted, row.restarts, row.age_seconds) == (running, 2, 0, 60.0)
    assert row.fingerprint == "3f9c1a2b" * 8


def test_a_suspended_job_waits_in_its_queue() -> None:
    job = live("panorama_vlm")
    job["spec"]["runPolicy"]["suspend"] = True
    (row,) = list_rows([job], [], now=NOW)
    assert (row.state, row.variant) == ("queued", "anyres-e2p_bimamba")


def test_restarts_are_those_the_launcher_counted() -> None:
    seen_pods = SeenPods().with_pod("0", "a" * 36, -1).with_pod("0", "b" * 36, -1).with_pod("0", "c" * 36, -1)
    job = live()
    job["metadata"]["annotations"]["stageline.dev/pods"] = seen_pods.text()
    assert list_rows([job], [], now=NOW)[0].restarts == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("90s", "2026-09-21T14:11:50Z"),
        ("2h", "2026-09-21T12:13:20Z"),
        ("2026-09-21T16:13:20+02:00", "2026-09-21T14:13:20Z"),
        ("2026-09-21T14:13:20", "2026-09-21T14:13:20Z"),
    ],
)
def test_times_are_ages_or_moments(text: str, expected: str) -> None:
    assert since_time(text, NOW) == expected


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="'soon' is no time"):
        since_time("soon")
