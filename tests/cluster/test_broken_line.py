"""Connections that break while a job is started and followed: nothing is lost, doubled or made twice."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import control_plane
from cluster.state import current
from stageline.errors import ClusterUnavailableError
from stageline.jobs.cluster.follow import follower as follow
from stageline.kube.client import Api
from stageline.kube.keys import JOBS, PODS
from stageline.kube.watches import Watch
from tests.cluster.broken_line import BrokenLine
from tests.cluster.spaces import Kubectl, Starter, in_thread, namespace, nothing_left, starter, swept, until

COUNTING = "trap 'exit 143' TERM; i=0; while true; do i=$((i+1)); echo line $i; sleep 0.05; done"

__all__ = ["namespace", "starter", "swept"]

# CPython 3.11 forgets a socket whose peer resets the connection between connect and TLS handshake (SSLSocket._create
# raises without closing it), which is what a listener that goes away does to those that wait for it. No peer is in the
# text of such a socket; one with a peer is still an error.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:unclosed <ssl\.SSLSocket fd=\d+, family=2, type=1, proto=6, laddr=\('127\.0\.0\.1', \d+\)>:ResourceWarning"
)


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """What a test forgot is found in that test, not in one that is running by then."""
    yield
    gc.collect()


@pytest.fixture
def line(kubeconfig: str, tmp_path: Path) -> Iterator[BrokenLine]:
    made = BrokenLine(kubeconfig, tmp_path)
    yield made
    made.down()


def counted(lines: list[str]) -> list[int]:
    return [int(found[1]) for text in lines if (found := re.fullmatch(r"line (\d+)", text))]


def followed(started: Any) -> tuple[Any, list[Any], list[str]]:
    lines: list[str] = []
    started.start()
    keep = started.follow
    started.follow = lambda _: keep(lines.append)
    thread, verdicts = in_thread(started)
    return thread, verdicts, lines


def test_streams_that_are_cut_lose_and_double_nothing(
    starter: Starter, line: BrokenLine, kubectl: Kubectl, namespace: str
) -> None:
    started = starter(script=COUNTING, account=line.kubeconfig)
    thread, verdicts, lines = followed(started)
    until(lambda: len(lines) > 10, "lines come")
    for _ in range(5):
        line.cut()
        time.sleep(0.7)
    kubectl("-n", namespace, "delete", "pod", "octa-film-worker-0", "--wait=false")
    line.cut()
    until(lambda: "worker-0: started again" in " ".join(started.said), "the restart is seen through the new streams")
    started.cancel()
    thread.join(30)
    assert verdicts[0].exit_code == 143
    numbers = counted(lines)
    first = numbers[: numbers.index(1, 1)] if 1 in numbers[1:] else numbers
    assert first == list(range(1, len(first) + 1))
    assert started.said.count("worker-0: started again (1 of 3 restarts used)") == 1
    assert len([text for text in started.said if "runs on" in text]) <= 2
    nothing_left(kubectl, namespace)


def test_a_server_that_is_away_is_waited_for_and_what_happened_meanwhile_is_told(
    starter: Starter, line: BrokenLine, kubectl: Kubectl, namespace: str
) -> None:
    started = starter(script=COUNTING, account=line.kubeconfig)
    thread, verdicts, lines = followed(started)
    until(lambda: len(lines) > 10, "lines come")
    line.down()
    until(lambda: "trying for 300 s" in " ".join(started.said), "it says that the server is away", 15)
    kubectl("-n", namespace, "delete", "pod", "octa-film-worker-0", "--wait=true")
    line.up()
    until(lambda: "worker-0: started again" in " ".join(started.said), "the restart is told")
    until(lambda: "the API server answers again" in started.said, "it says that the server is back", 5)
    started.cancel()
    thread.join(30)
    assert verdicts[0].exit_code == 143
    nothing_left(kubectl, namespace)


def test_a_server_that_stays_away_ends_the_following_and_leaves_the_job(
    starter: Starter, line: BrokenLine, kubectl: Kubectl, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 3.0)
    started = starter(account=line.kubeconfig)
    thread, verdicts, _ = followed(started)
    until(lambda: "runs on" in " ".join(started.said), "it runs")
    line.down()
    thread.join(30)
    assert verdicts[0].exit_code == ClusterUnavailableError.exit_code
    assert "octa-film" in kubectl("-n", namespace, "get", "pytorchjobs", "-o", "name")


@pytest.mark.parametrize("arrives", [True, False], ids=["arrived", "lost"])
def test_a_creation_whose_answer_got_lost_is_looked_up(
    starter: Starter, kubectl: Kubectl, namespace: str, arrives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = starter()
    send, broken = Api.send, []

    def lossy(self: Api, method: str, path: str, **options: Any) -> Any:
        if method == "POST" and path.endswith("pytorchjobs") and not broken:
            broken.append(path)
            if arrives:
                send(self, method, path, **options).text()
            raise ClusterUnavailableError("the line broke", remedy="none")
        return send(self, method, path, **options)

    monkeypatch.setattr(Api, "send", lossy)
    started.start()
    assert broken
    assert started.live["metadata"]["uid"] == started.api.get(JOBS, "octa-film")["metadata"]["uid"]
    started.cancel()
    assert started.follow(lambda _: None).exit_code == 143
    nothing_left(kubectl, namespace)


def test_a_version_that_is_too_old_is_listed_anew_without_repetition(
    kubeconfig: str, kubectl: Kubectl, namespace: str
) -> None:
    api = Api.connect(namespace, kubeconfig=kubeconfig)
    configs = "configmaps/v1"
    for name in ("a", "b"):
        kubectl("-n", namespace, "create", "configmap", name)
    watch = Watch(api, configs, fields="metadata.name!=kube-root-ca.crt", patience_seconds=5, say=lambda _: None)
    seen: list[tuple[str, str]] = []
    stream = watch.changes()
    while (change := next(stream)).kind != "synced":
        seen.append((change.kind, change.object["metadata"]["name"]))
    watch._version = "1"  # compacted long ago: the server answers 410, or sends everything since
    kubectl("-n", namespace, "delete", "configmap", "a")
    kubectl("-n", namespace, "create", "configmap", "c")
    while len(seen) < 4:
        change = next(stream)
        if change.kind != "synced":
            seen.append((change.kind, change.object["metadata"]["name"]))
    watch.stop()
    assert sorted(seen) == [("added", "a"), ("added", "b"), ("added", "c"), ("deleted", "a")]


@pytest.mark.slow
@pytest.mark.owns_nodes
def test_the_api_server_is_restarted_while_a_job_is_followed(
    starter: Starter, kubectl: Kubectl, namespace: str
) -> None:
    started = starter(script=COUNTING)
    thread, verdicts, lines = followed(started)
    until(lambda: len(lines) > 10, "lines come")
    control_plane.restart_api_server(current())
    before = len(lines)
    until(lambda: len(lines) > before + 20, "lines come again")
    assert started.api.list(PODS)["items"]
    started.cancel()
    thread.join(40)
    assert verdicts[0].exit_code == 143
    numbers = counted(lines)
    assert numbers == list(range(1, len(numbers) + 1))
    assert "started again" not in " ".join(started.said)
    nothing_left(kubectl, namespace)
