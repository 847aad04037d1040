"""The launcher is killed before and after each of its requests and started again: no second job, none forgotten.

Whoever watches from outside counts uids: of the job, so that a duplicate cannot hide behind its name, and of its pods,
so that an adoption that disturbs them is seen. Each case ends with a cancel, after which nothing may be left.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.trivial import Launcher

if TYPE_CHECKING:  # it takes half a second, also where no cluster is asked for
    from kubernetes import client

AT_ONCE = 4
"""Cases side by side: most of each is waiting for pods."""
JOBS = ("kubeflow.org", "v1")


class Witness:
    """Every uid of every job and pod that was ever there, by name, as the API server's own watch tells it."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        from kubernetes import client

        self.jobs: dict[str, set[str]] = defaultdict(set)
        self.pods: dict[str, set[str]] = defaultdict(set)
        self._stopped = threading.Event()
        self._watches = []
        custom, core = client.CustomObjectsApi(api), client.CoreV1Api(api)
        self._threads = [
            self._begin(self._note_job, custom.list_namespaced_custom_object, *JOBS, namespace, "pytorchjobs"),
            self._begin(self._note_pod, core.list_namespaced_pod, namespace),
        ]

    def _begin(self, note: Callable[[Any], None], *request: Any) -> threading.Thread:
        from kubernetes import watch

        def look() -> None:
            while not self._stopped.is_set():
                stream = watch.Watch()
                self._watches.append(stream)
                for event in stream.stream(*request, timeout_seconds=2):
                    note(event["object"])

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        return thread

    def _note_job(self, job: dict[str, Any]) -> None:
        self.jobs[job["metadata"]["name"]].add(job["metadata"]["uid"])

    def _note_pod(self, pod: Any) -> None:
        self.pods[pod.metadata.name].add(pod.metadata.uid)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def witness(api: client.ApiClient, namespace: str) -> Iterator[Witness]:
    found = Witness(api, namespace)
    yield found
    found.stop()


class Drill:
    """One case: launchers of one run, one after the other."""

    def __init__(self, folder: Path, kubeconfig: str, namespace: str, image: str, run: str) -> None:
        self.run = run
        self.folder = folder / run
        self._common = {"kubeconfig": kubeconfig, "namespace": namespace, "image": image, "run": run}

    def launch(self, **plain: Any) -> Launcher:
        return Launcher(self.folder, store=str(self.folder / "result"), **self._common, **plain)

    def killed(self, **plain: Any) -> None:
        """Start a launcher that kills itself; a renewal of its Lease is the last request it can come to."""
        launcher = self.launch(**plain)
        assert launcher.end() == -signal.SIGKILL, launcher.text()

    def finish(self) -> None:
        """Start again, see it follow the one job, and cancel."""
        launcher = self.launch()
        launcher.await_text("runs on", 300)
        launcher.signal()
        code, _ = launcher.verdict()
        assert code == 143, launcher.text()


def nothing_left(api: client.ApiClient, namespace: str) -> None:
    """No job, no pod, no policy and no lease of ours, at the latest after a few seconds."""
    from kubernetes import client

    end = time.monotonic() + 30
    while True:
        left = [
            *client.CustomObjectsApi(api).list_namespaced_custom_object(*JOBS, namespace, "pytorchjobs")["items"],
            *client.CoreV1Api(api).list_namespaced_pod(namespace).items,
            *client.NetworkingV1Api(api).list_namespaced_network_policy(namespace).items,
            *client.CoordinationV1Api(api).list_namespaced_lease(namespace).items,
        ]
        if not left:
            return
        assert time.monotonic() < end, f"left behind: {left}"
        time.sleep(0.5)


Case = tuple[str, Callable[[Drill], None], int]
"""(name, what happens before the last launcher, how many jobs there may have been in all)."""


def killed_at(number: int, moment: str) -> Case:
    def act(drill: Drill) -> None:
        drill.killed(kill_at=(number, moment))

    return f"new-{moment}-{number}", act, 1


def killed_adopting(number: int, moment: str) -> Case:
    def act(drill: Drill) -> None:
        drill.killed(kill_verb=("PATCH", drill.run + "-film", "after"))  # by then the job is there and followed
        drill.killed(kill_at=(number, moment))

    return f"adopt-{moment}-{number}", act, 1


def killed_stopping(method: str, last: str, moment: str) -> Case:
    def act(drill: Drill) -> None:
        launcher = drill.launch(kill_verb=(method, last.format(drill.run), moment))
        launcher.await_text("runs on")
        launcher.signal()
        assert launcher.end() == -signal.SIGKILL

    return f"stop-{moment}-{last.split('/')[0]}", act, 2


def killed_replacing(number: int, moment: str) -> Case:
    def act(drill: Drill) -> None:
        failed = drill.launch(script="exit 3")
        assert failed.verdict()[0] != 0
        drill.killed(kill_at=(number, moment))

    return f"replace-{moment}-{number}", act, 2


MOMENTS = ("before", "after")
REQUESTS = (1, 2, 3, 4, 5, *range(10, 25))
"""Lease, look, six questions about permission (5-10), two about policies (11, 12), policy (13), job (14), the policy's
owner (15), lists and watches, pods as its owners and notes (21, 22), logs."""
CASES = [
    *(killed_at(number, moment) for number in REQUESTS for moment in MOMENTS),
    *(killed_adopting(number, moment) for number in range(1, 7) for moment in MOMENTS),
    *(killed_stopping("DELETE", "pytorchjobs/{}-film", moment) for moment in MOMENTS),
    *(killed_replacing(number, moment) for number in (4, 5, 7, 9, 17, 19) for moment in MOMENTS),
]


def run_cases(
    cases: list[Case], api: client.ApiClient, witness: Witness, new_drill: Callable[[str], Drill], at_once: int
) -> None:
    """Run cases side by side; every one must pass."""

    def run(case: Case) -> str:
        name, act, most = case
        drill = new_drill(name)
        try:
            act(drill)
            drill.finish()
        except AssertionError as error:
            return f"{name}: {error}"
        jobs = witness.jobs[f"{drill.run}-film"]
        pods = witness.pods[f"{drill.run}-film-worker-0"]
        if len(jobs) > most or (most == 1 and len(pods) != 1):
            return f"{name}: {len(jobs)} jobs (at most {most}), {len(pods)} first pods"
        return ""

    with ThreadPoolExecutor(at_once) as pool:
        faults = [fault for fault in pool.map(run, cases) if fault]
    assert not faults, "\n".join(faults)


def test_a_launcher_killed_at_any_request_leaves_one_job_that_the_next_one_finds(
    api: client.ApiClient, witness: Witness, kubeconfig: str, namespace: str, python_image: str, tmp_path: Path
) -> None:
    run_cases(
        CASES, api, witness, lambda name: Drill(tmp_path, kubeconfig, namespace, python_image, f"k-{name}"), AT_ONCE
    )
    nothing_left(api, namespace)
