"""One namespace for the tests of a module, swept after each; jobs in it, followed beside the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.state import Own
from stageline.jobs.job import Job, Verdict
from stageline.kube.client import Api
from tests.cluster.conftest import FAILED, describe_namespace, make_namespace, remove_namespace
from tests.cluster.trivial import FOREVER, FileResult, TrivialJob, trivial_cluster, trivial_job

Kubectl = Callable[..., str]
Starter = Callable[..., TrivialJob]
SWEPT = "pytorchjobs,networkpolicies,leases.coordination.k8s.io,resourcequotas,configmaps,roles,rolebindings"


@pytest.fixture(scope="module")
def namespace(kubectl: Kubectl, own: Own | None) -> Iterator[str]:
    """A `restricted` namespace for all tests of a module: making and removing one takes longer than most of them."""
    name = make_namespace(kubectl, "restricted")
    yield name
    remove_namespace(kubectl, name, own)


@pytest.fixture(autouse=True)
def swept(request: pytest.FixtureRequest, kubectl: Kubectl, namespace: str) -> Iterator[None]:
    """The next test finds the namespace empty; a failure is described first."""
    yield
    if request.node.stash.get(FAILED, False):
        describe_namespace(kubectl, namespace)
    kubectl("-n", namespace, "delete", SWEPT, "--all", check=False)
    kubectl("-n", namespace, "delete", "pods", "--all", "--force", "--grace-period=0", check=False)


@pytest.fixture
def starter(kubeconfig: str, namespace: str, python_image: str, tmp_path: Path) -> Starter:
    """Makes jobs of one namespace; `said` of each holds what it told."""

    def make(
        job: Job | None = None,
        script: str = FOREVER,
        change: Callable[[dict[str, Any]], None] | None = None,
        account: str = kubeconfig,
        where: str = namespace,
        **settings: Any,
    ) -> TrivialJob:
        said: list[str] = []
        made = TrivialJob(
            job or trivial_job("octa"),
            trivial_cluster(where, settings.pop("image", python_image), **settings),
            FileResult(tmp_path / "result"),
            said.append,
            script,
            change,
            api=Api.connect(where, kubeconfig=account),
        )
        made.said = said
        return made

    return make


def follow(started: TrivialJob) -> Verdict:
    started.start()
    lines: list[str] = []
    verdict = started.follow(lines.append)
    started.lines = lines
    return verdict


def in_thread(started: TrivialJob, *, starts: bool = False) -> tuple[threading.Thread, list[Verdict]]:
    """Follow a job beside the test. starts: start it there too."""
    verdicts: list[Verdict] = []

    def run() -> None:
        if starts:
            started.start()
        verdicts.append(started.follow(lambda _: None))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, verdicts


def until(true: Callable[[], Any], what: str, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def nothing_left(kubectl: Kubectl, namespace: str) -> None:
    """No job, no policy, no lease; pods end by themselves."""
    kinds = ("pytorchjobs", "networkpolicies", "leases.coordination.k8s.io", "pods")
    until(
        lambda: not any(kubectl("-n", namespace, "get", kind, "-o", "name").strip() for kind in kinds),
        f"nothing left in {namespace}",
    )
