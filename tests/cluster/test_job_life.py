"""A job's life on a real cluster: whose it is, what SIGTERM does to it, what happens to it while it is followed."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stageline.errors import BusyError
from stageline.jobs.cluster.follow.job_lease import Holder, this_holder
from stageline.jobs.cluster.follow.launcher import ClusterJob
from stageline.kube.client import Api
from stageline.kube.keys import JOBS
from stageline.store.holder import this_process
from tests.cluster.conftest import RESTRICTED
from tests.cluster.spaces import Kubectl, Starter, in_thread, namespace, nothing_left, starter, swept, until
from tests.cluster.trivial import Launcher, trivial_job

__all__ = ["namespace", "starter", "swept"]


@pytest.fixture
def launch(kubeconfig: str, namespace: str, python_image: str, tmp_path: Path) -> Callable[..., Launcher]:
    def begin(**plain: Any) -> Launcher:
        common = {"kubeconfig": kubeconfig, "namespace": namespace, "image": python_image, "run": "octa"}
        return Launcher(tmp_path / "logs", store=str(tmp_path / "result"), **common, **plain)

    return begin


def moments(text: str, words: str) -> list[float]:
    """When lines with these words were printed."""
    return [float(line.split()[0]) for line in text.splitlines() if words in line and line[0].isdigit()]


def launcher_pod(kubectl: Kubectl, namespace: str, name: str, image: str, seconds: int = 600) -> Holder:
    """A real pod that stands for a KFP step, and the holder its launcher would be."""
    command = ["/bin/sh", "-c", f"sleep {seconds} & trap 'kill $!' TERM; wait; exit 1"]
    container = {"name": "main", "image": image, "command": command, "securityContext": RESTRICTED}
    spec = {"containers": [container], "restartPolicy": "Never"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"pipeline/runid": "r-1"}}}
    kubectl("-n", namespace, "create", "-f", "-", text=json.dumps({**pod, "spec": spec}))
    kubectl("-n", namespace, "wait", "pod", name, "--for=condition=Ready", "--timeout=60s")
    uid = kubectl("-n", namespace, "get", "pod", name, "-o", "jsonpath={.metadata.uid}")
    owner = this_holder("default", {"KFP_POD_NAME": name, "KFP_POD_UID": uid}).owner
    marks = {**this_process(), "pod": name, "uid": uid, "namespace": namespace}
    return Holder(f"{name}/{uid}", marks, owner, name, namespace)


def held(started: ClusterJob, holder: Holder) -> ClusterJob:
    """The same job, launched from that pod."""
    other = type(started)
    again = other.__new__(other)
    again.__dict__ = started.__dict__
    ClusterJob.__init__(
        again, started.job, started.cluster, started.result, started.say, api=started.api, holder=holder
    )
    container = again.manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    container["command"] = ["/bin/sh", "-c", "echo begun; trap 'exit 143' TERM; while true; do sleep 0.2; done"]
    return again


def test_a_killed_launchers_job_is_adopted_within_a_second_and_its_pods_stay(
    launch: Callable[..., Launcher], kubectl: Kubectl, namespace: str
) -> None:
    first = launch(job={"nodes": 2})
    first.await_text("the job runs")
    pods = kubectl("-n", namespace, "get", "pods", "-o", "jsonpath={.items[*].metadata.uid}")
    first.signal(signal.SIGKILL)
    first.end()
    begun = time.time()
    second = launch(job={"nodes": 2})
    text = second.await_text("line [worker-1] begun")
    assert "with the same fingerprint: following it" in text
    assert moments(text, "following it")[0] - begun < 5  # the process's own start included
    assert kubectl("-n", namespace, "get", "pods", "-o", "jsonpath={.items[*].metadata.uid}") == pods
    second.signal()
    assert second.verdict()[0] == 143
    nothing_left(kubectl, namespace)


def test_sigterm_fires_the_deletion_at_once(launch: Callable[..., Launcher], kubectl: Kubectl, namespace: str) -> None:
    launcher = launch()
    launcher.await_text("worker-0: runs on")
    sent = time.time()
    launcher.signal()
    launcher.signal()  # KFP sends it twice at times
    text = launcher.await_text("the job is deleted")
    assert moments(text, " DELETE ")[0] - sent < 0.5
    assert moments(text, "the job is deleted")[0] - sent < 1.5
    assert launcher.verdict()[0] == 143
    nothing_left(kubectl, namespace)


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.1, 0.3])
def test_sigterm_while_starting_leaves_nothing(
    launch: Callable[..., Launcher], kubectl: Kubectl, namespace: str, delay: float
) -> None:
    launcher = launch()
    launcher.await_text(" GET ")
    time.sleep(delay)
    launcher.signal()
    launcher.end()
    nothing_left(kubectl, namespace)


def test_a_change_is_said_within_a_second(launch: Callable[..., Launcher], kubectl: Kubectl, namespace: str) -> None:
    launcher = launch(script="sleep 3; exit 137", cluster={"restart_budget": 1})
    launcher.await_text("worker-0: ended on")
    launcher.await_text("worker-0: started again")
    text = launcher.await_text("worker-0: runs on")
    launcher.signal()
    launcher.end()
    ended = moments(text, "worker-0: ended on")[0]
    again = moments(text, "worker-0: started again")[0]
    assert again - ended < 5  # the operator's own pause included
    nothing_left(kubectl, namespace)


def test_an_evicted_pod_is_told_and_started_again_and_its_lines_come_once(
    launch: Callable[..., Launcher], kubectl: Kubectl, namespace: str
) -> None:
    script = "trap 'exit 143' TERM; i=0; while true; do i=$((i+1)); echo $HOSTNAME $i; sleep 0.1; done"
    launcher = launch(job={"nodes": 2}, script=script)
    launcher.await_text("the job runs")
    launcher.await_text("line [worker-1]")
    pod = {"name": "octa-film-worker-1", "namespace": namespace}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": pod}
    path = f"/api/v1/namespaces/{namespace}/pods/octa-film-worker-1/eviction"
    kubectl("create", "--raw", path, "-f", "-", text=json.dumps(eviction))
    text = launcher.await_text("worker-1: started again (1 of 3 restarts used)")
    assert "evicted (a drain, or somebody's request)" in text
    launcher.await_text("worker-1: runs on", 30)
    time.sleep(1.5)
    launcher.signal()
    assert launcher.verdict()[0] == 143
    numbers = [int(n) for n in re.findall(r"^line \[worker-0\] \S+ (\d+)$", launcher.text(), re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 20
    nothing_left(kubectl, namespace)


def test_a_run_of_failures_without_progress_ends_and_the_count_survives_the_launcher(
    launch: Callable[..., Launcher], kubectl: Kubectl, namespace: str
) -> None:
    plain = {"script": "sleep 1; exit 138", "cluster": {"restart_budget": 3}}
    first = launch(**plain)
    first.await_text("2 of 3 restarts used")
    first.await_text("PATCH")
    time.sleep(1)
    first.signal(signal.SIGKILL)
    first.end()
    second = launch(**plain)
    code, record = second.verdict(90)
    assert code == 15
    assert "4 times without any committed checkpoint" in record["sentence"]
    assert "1 of 3" not in second.text()
    nothing_left(kubectl, namespace)


def test_a_job_goes_with_its_launchers_pod_and_moves_to_the_next_one(
    starter: Starter, kubectl: Kubectl, namespace: str, python_image: str, kubeconfig: str
) -> None:
    api = Api.connect(namespace, kubeconfig=kubeconfig)
    first = held(starter(), launcher_pod(kubectl, namespace, "step-1", python_image, seconds=4))
    first.start()
    job = api.get(JOBS, "octa-film")
    assert [owner["name"] for owner in job["metadata"]["ownerReferences"]] == ["step-1"]
    assert job["metadata"]["labels"]["stageline.dev/kfp-run-id"] == "r-1"
    second = held(starter(), launcher_pod(kubectl, namespace, "step-2", python_image))
    with pytest.raises(BusyError):  # the first one's pod runs
        second.start()
    first._job_lease._ended.set()  # its process is gone: it renews nothing and releases nothing
    phase = ("-n", namespace, "get", "pod", "step-1", "-o", "jsonpath={.status.phase}")
    until(lambda: kubectl(*phase) == "Failed", "the first pod ends")
    second = held(starter(), second.holder)
    second.start()
    now = api.get(JOBS, "octa-film")
    assert now["metadata"]["uid"] == job["metadata"]["uid"]
    assert [owner["name"] for owner in now["metadata"]["ownerReferences"]] == ["step-2"]
    kubectl("-n", namespace, "delete", "pod", "step-1")
    time.sleep(8)
    assert api.get(JOBS, "octa-film")["metadata"]["uid"] == job["metadata"]["uid"]
    kubectl("-n", namespace, "delete", "pod", "step-2", "--wait=false")
    until(lambda: "octa" not in kubectl("-n", namespace, "get", "pytorchjobs", "-o", "name"), "the job went with it")


@pytest.mark.parametrize("moved", [True, False], ids=["moved", "ended"])
def test_a_launcher_whose_pod_is_moved_leaves_the_job_and_one_that_is_ended_deletes_it(
    starter: Starter, kubectl: Kubectl, namespace: str, python_image: str, moved: bool
) -> None:
    started = held(starter(), launcher_pod(kubectl, namespace, "step", python_image))
    started.start()
    thread, verdicts = in_thread(started)
    if moved:
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "step"}}
        path = f"/api/v1/namespaces/{namespace}/pods/step/eviction"
        kubectl("create", "--raw", path, "-f", "-", text=json.dumps(eviction))
    else:
        kubectl("-n", namespace, "delete", "pod", "step", "--wait=false")
    started.cancel()
    thread.join(30)
    assert verdicts[0].exit_code == 143
    kubectl("-n", namespace, "delete", "pod", "step", "--force", "--grace-period=0", check=False)
    if moved:  # the pod is gone, and the job is not collected with it: the retried step follows it
        job = started.api.get(JOBS, "octa-film")
        assert not job["metadata"].get("ownerReferences")
        again = starter()
        again.start()
        assert again.live["metadata"]["uid"] == job["metadata"]["uid"]
        again.cancel()
        again.follow(lambda _: None)
    nothing_left(kubectl, namespace)


def test_two_runs_of_one_namespace_do_not_hear_of_each_other(
    starter: Starter, kubectl: Kubectl, namespace: str
) -> None:
    one, two = starter(trivial_job("octa")), starter(trivial_job("octa-film"))
    assert one.job.name != two.job.name
    for started in (one, two):
        started.start()
    threads = [in_thread(started) for started in (one, two)]
    until(lambda: "runs on" in " ".join(one.said) and "runs on" in " ".join(two.said), "both run")
    kubectl("-n", namespace, "delete", "pod", f"{two.job.name}-worker-0", "--wait=false")
    until(lambda: "started again" in " ".join(two.said), "the second one's pod is replaced")
    assert "started again" not in " ".join(one.said)
    assert "being stopped" not in " ".join(one.said)
    for started, (thread, verdicts) in zip((one, two), threads, strict=True):
        started.cancel()
        thread.join(30)
        assert verdicts[0].exit_code == 143
    nothing_left(kubectl, namespace)
