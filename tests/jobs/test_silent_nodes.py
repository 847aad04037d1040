"""A node that went silent is seen from its pods, counted from when it was seen, and forgotten when it is back."""

from __future__ import annotations

from stageline.jobs.cluster.explain.silent_nodes import SilentPods, is_stuck, node_lost_error, node_state

from .objects import RUNNING, worker_pod

DELETION = "2026-01-01T00:00:00Z"
DELETION_SECONDS = 1767225600.0


def pod(index=0, *, silent=False, deleted=False, phase="Running", node="n1"):
    ready = {"type": "Ready", "status": "False" if silent else "True"}
    metadata = {"deletionTimestamp": DELETION} if deleted else {}
    return worker_pod(phase, index=index, node=node, conditions=[ready], containers=[RUNNING], metadata=metadata)


def test_silence_is_counted_from_when_it_was_seen_and_ends_with_it():
    silent = SilentPods()
    assert silent.update([pod()], 100.0) == []
    assert [seconds for _, seconds in silent.update([pod(silent=True)], 110.0)] == [0.0]
    assert [seconds for _, seconds in silent.update([pod(silent=True)], 150.0)] == [40.0]
    assert silent.update([pod()], 160.0) == []
    assert [seconds for _, seconds in silent.update([pod(silent=True)], 170.0)] == [0.0]


def test_the_longest_silence_comes_first():
    silent = SilentPods()
    silent.update([pod(1, silent=True)], 0.0)
    found = silent.update([pod(0, silent=True), pod(1, silent=True)], 50.0)
    assert [(p["metadata"]["uid"], seconds) for p, seconds in found] == [("u1", 50.0), ("u0", 0.0)]


def test_a_pod_past_its_grace_is_stuck_only_while_it_should_have_ended():
    assert not is_stuck(pod(deleted=True), DELETION_SECONDS + 10)
    assert is_stuck(pod(deleted=True), DELETION_SECONDS + 16)
    assert not is_stuck(pod(deleted=True, phase="Succeeded"), DELETION_SECONDS + 16)
    assert not is_stuck(pod(), DELETION_SECONDS + 16)


def test_the_error_names_node_pods_state_and_the_command():
    error = node_lost_error([pod(0), pod(1), pod(2, node="n2")], 305.0, "train", "unknown")
    for word in ("'n1'", "305 s", "worker-0, worker-1", "unknown"):
        assert word in error.message
    assert "worker-2" not in error.message
    command = "kubectl -n train delete pod octa-film-worker-0 octa-film-worker-1 --force --grace-period=0"
    assert command in error.remedy
    assert "out-of-service" in error.remedy
    assert error.exit_code >= 128


def test_the_state_of_a_node_is_its_ready_condition():
    ready = {"type": "Ready", "status": "Unknown", "lastTransitionTime": "t", "message": "stopped posting"}
    assert node_state({"status": {"conditions": [ready]}}) == "Ready Unknown since t: stopped posting"
    assert node_state({}) == "unknown"


def test_a_pod_that_was_deleted_may_be_not_ready_until_it_is_overdue():
    silent, deleted = SilentPods(), pod(silent=True, deleted=True)
    assert silent.update([deleted], DELETION_SECONDS - 5) == []
    assert len(silent.update([deleted], DELETION_SECONDS + 16)) == 1


def test_an_eviction_from_a_silent_node_goes_on_counting():
    silent = SilentPods()
    silent.update([pod(silent=True)], 100.0)
    assert [seconds for _, seconds in silent.update([pod(silent=True, deleted=True)], 160.0)] == [60.0]
