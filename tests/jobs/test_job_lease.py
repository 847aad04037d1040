"""Whose a Lease is; which launcher owns a job; a cancellation that a signal handler may fire."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from stageline.jobs.cluster.follow.deletion import Cancellation
from stageline.jobs.cluster.follow.job_lease import is_launcher_running, lease_state, micro_time, this_holder

NOW = 1_800_000_000.0


def lease(holder="other/1", age=5.0, ttl=30):
    return {"spec": {"holderIdentity": holder, "leaseDurationSeconds": ttl, "renewTime": micro_time(NOW - age)}}


@pytest.mark.parametrize(
    ("found", "alive", "still", "renewed", "verdict"),
    [
        pytest.param(lease("me"), None, 0, False, "ours", id="ours"),
        pytest.param(lease(""), None, 0, False, "free", id="given-back"),
        pytest.param(lease(), False, 0, False, "free", id="holder-dead"),
        pytest.param(lease(), True, 0, False, "busy", id="holder-alive"),
        pytest.param(lease(), None, 0, False, "wait", id="nobody-knows"),
        pytest.param(lease(), None, 10, True, "busy", id="renewed-before-our-eyes"),
        pytest.param(lease(), None, 31, False, "free", id="watched-and-still"),
        pytest.param(lease(age=35), None, 0, False, "wait", id="just-expired-clocks-may-differ"),
        pytest.param(lease(age=41), None, 0, False, "free", id="expired"),
        pytest.param(lease(age=35), True, 0, False, "wait", id="alive-but-not-renewing"),
        pytest.param(lease(age=41), True, 0, False, "free", id="alive-but-hung"),
        pytest.param(lease(age=-20), None, 0, False, "wait", id="from-a-clock-ahead"),
        pytest.param(lease(ttl=2**31 - 1), None, 301, False, "free", id="asks-for-68-years-and-is-still"),
        pytest.param(lease(age=311, ttl=2**31 - 1), None, 0, False, "free", id="asks-for-68-years-and-expired"),
        pytest.param({"spec": None}, None, 0, False, "free", id="empty"),
    ],
)
def test_standing(found, alive, still, renewed, verdict):
    assert lease_state(found, "me", now=NOW, alive=alive, still_seconds=still, renewed=renewed) == verdict


def test_a_kfp_pod_owns_the_job_in_its_own_namespace_only():
    pod = {"KFP_POD_NAME": "step-1", "KFP_POD_UID": "u-1"}
    here = this_holder("default", pod)
    assert here.owner is not None
    assert (here.owner["name"], here.owner["uid"], here.owner["controller"]) == ("step-1", "u-1", False)
    assert this_holder("elsewhere", pod).owner is None
    assert this_holder("default", {}).owner is None


def test_two_launchers_never_have_one_name():
    assert this_holder("n", {}).name != this_holder("n", {}).name


def test_a_signal_handler_fires_the_cancellation_at_once_and_once():
    fired = []
    cancellation = Cancellation(lambda: fired.append((time.monotonic(), threading.current_thread().name)))
    before = signal.signal(signal.SIGUSR1, lambda *_: cancellation.request())
    try:
        start = time.monotonic()
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert cancellation.done.wait(5)
        assert cancellation.requested == 2
        assert [name for _, name in fired] == ["cancellation"]
        assert fired[0][0] - start < 1
    finally:
        signal.signal(signal.SIGUSR1, before)
        cancellation.close()


def test_a_cancellation_that_never_came_ends_without_firing():
    fired = []
    cancellation = Cancellation(lambda: fired.append(1))
    cancellation.close()
    assert cancellation.done.wait(5)
    assert not fired
    cancellation.request()


def pod(phase="Running", uid="u-1", state="running", **metadata):
    containers = [{"name": "main", "state": {state: {}}}, {"name": "wait", "state": {"running": {}}}]
    return {"metadata": {"uid": uid, **metadata}, "status": {"phase": phase, "containerStatuses": containers}}


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        pytest.param(pod(), True, id="running"),
        pytest.param(pod("Failed"), False, id="failed"),
        pytest.param(pod(uid="u-2"), False, id="another-pod-of-that-name"),
        pytest.param(pod(state="terminated"), False, id="its-container-ended"),
        pytest.param(pod(deletionTimestamp="2026-01-01T00:00:00Z"), None, id="being-stopped"),
        pytest.param({"metadata": {"uid": "u-1"}}, True, id="without-status"),
    ],
)
def test_a_pod_holds_the_lease_while_its_launcher_runs(found, answer):
    assert is_launcher_running(found, "u-1") is answer
