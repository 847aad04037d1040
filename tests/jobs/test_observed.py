"""A followed job as the watches tell it: each change said once, each limit with its error, each end with its cause."""

from __future__ import annotations

import copy
import json

import pytest

from stageline.config import ClusterConfig
from stageline.jobs.cluster.follow.observed import ObservedJob
from stageline.jobs.job import Job

from .objects import container_status, live_job, worker_pod

CREATED = "2026-01-01T00:00:00Z"
START = 1767225600.0


def live(**annotations):
    return live_job(container={"command": ["a"]}, creationTimestamp=CREATED, annotations=annotations)


def pod(index=0, uid="a", phase="Running", *, node="n1", message="", code=1, owner="job-1", **metadata):
    state = {"running": {}}
    if phase in ("Failed", "Succeeded"):
        state = {"terminated": {"exitCode": code if phase == "Failed" else 0, "message": message}}
    containers = [container_status(state, ready=phase == "Running")] if node else []
    own = {"ownerReferences": [{"uid": owner}], **metadata}
    full = f"{uid}{index}-0000-long"
    return worker_pod(phase, index=index, uid=full, node=node, containers=containers, metadata=own)


def observed(job=None, **cluster):
    wanted = Job(name="octa-film", arguments=("train", "film"), nodes=2, shutdown_timeout_seconds=10)
    return ObservedJob(wanted, ClusterConfig.model_validate({"image": "i", **cluster}), job or live())


def test_a_state_is_said_once():
    followed = observed()
    assert list(followed.take_pod("added", pod(phase="Pending", node=""), -1)) == ["worker-0: waits for a node"]
    assert list(followed.take_pod("modified", pod(phase="Pending", node=""), -1)) == []
    assert list(followed.take_pod("modified", pod(), -1)) == ["worker-0: runs on n1"]
    assert list(followed.take_pod("modified", pod(), -1)) == []


def test_a_replaced_pod_is_a_restart_with_its_number_and_progress_forgives():
    followed = observed()
    list(followed.take_pod("added", pod(), -1))
    list(followed.take_pod("deleted", pod(), -1))
    first = list(followed.take_pod("added", pod(uid="b"), 4))
    assert first[0] == "worker-0: started again (1 of 3 restarts used since step 4)"
    list(followed.take_pod("deleted", pod(uid="b"), -1))
    assert "2 of 3" in next(iter(followed.take_pod("added", pod(uid="c"), 4)))
    list(followed.take_pod("deleted", pod(uid="c"), -1))
    assert "1 of 3 restarts used since step 8" in next(iter(followed.take_pod("added", pod(uid="d"), 8)))


def test_a_pod_a_launcher_before_has_counted_is_no_restart():
    before = observed()
    list(before.take_pod("added", pod(), -1))
    after = observed(live(**{"stageline.dev/pods": before.seen_pods.text()}))
    assert list(after.take_pod("added", pod(), -1)) == ["worker-0: runs on n1"]
    list(after.take_pod("deleted", pod(), -1))
    assert "1 of 3" in next(iter(after.take_pod("added", pod(uid="b"), -1)))


def test_the_budget_ends_the_job_and_tells_how_the_last_pod_ended():
    followed = observed(restart_budget=1)
    for uid in "abc":
        list(followed.take_pod("added", pod(uid=uid), -1))
        list(followed.take_pod("deleted", pod(uid=uid, phase="Failed", code=137), -1))
    error = followed.over_limit(START + 1)
    assert error is not None
    assert error.kind == "restart_budget"
    assert "worker-0 exit code 137" in error.message


def test_pods_of_a_job_before_are_not_ours():
    assert observed().is_ours(pod())
    assert not observed().is_ours(pod(owner="job-0"))


def test_half_a_gang_is_ended_after_its_time():
    followed = observed(pending_seconds=60)
    list(followed.take_pod("added", pod(0), -1))
    assert followed.over_limit(START + 59) is None
    error = followed.over_limit(START + 61)
    assert error is not None
    assert error.kind == "pending"
    assert "1 of 2 ran" in error.message


def test_a_whole_gang_has_no_time_limit():
    followed = observed(pending_seconds=60)
    for index in (0, 1):
        list(followed.take_pod("added", pod(index), -1))
    assert followed.over_limit(START + 9999) is None


def test_the_deadline_leaves_running_pods_their_grace():
    followed = observed(live(**{"stageline.dev/deadline": f"{START + 100:.0f}"}), pending_seconds=10_000)
    assert followed.over_limit(START + 99) is None
    late = followed.over_limit(START + 101)
    assert late is not None
    assert late.kind == "deadline"
    for index in (0, 1):
        list(followed.take_pod("added", pod(index), -1))
    assert followed.over_limit(START + 101) is None
    assert followed.over_limit(START + 100 + 41) is not None


def test_an_edit_is_said_once_and_names_the_field():
    followed = observed()
    edited = copy.deepcopy(live())
    edited["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["command"] = ["b"]
    said = list(followed.take_job(edited))
    assert len(said) == 1
    assert "pytorch command" in said[0]
    assert list(followed.take_job(edited)) == []


def test_warnings_are_said_once_and_only_those_of_this_job():
    followed = observed()
    event = {
        "involvedObject": {"kind": "Pod", "name": "octa-film-worker-1", "uid": "p"},
        "reason": "FailedScheduling",
        "message": "0/2 nodes",
        "lastTimestamp": "2026-01-01T00:00:05Z",
    }
    assert list(followed.take_event(event)) == ["worker-1: FailedScheduling: 0/2 nodes"]
    assert list(followed.take_event({**event, "count": 7})) == []
    assert list(followed.take_event({**event, "message": "old", "lastTimestamp": "2025-12-31T00:00:00Z"})) == []
    other = {**event, "involvedObject": {"kind": "Pod", "name": "octa-film-two-worker-1", "uid": "q"}}
    assert list(followed.take_event(other)) == []
    refused = {
        "involvedObject": {"kind": "PyTorchJob", "name": "octa-film", "uid": "job-1"},
        "reason": "FailedCreatePod",
    }
    assert list(followed.take_event({**refused, "message": "exceeded quota"})) == [
        "octa-film: FailedCreatePod: exceeded quota"
    ]
    assert list(followed.take_event({**refused, "involvedObject": {"name": "octa-film", "uid": "job-0"}})) == []


def test_a_failure_is_told_by_the_pod_that_caused_it():
    followed = observed()
    record = {"exit_code": 7, "sentence": "loss is nan", "kind": "training", "log_tail": ["x"]}
    list(followed.take_pod("added", pod(1, phase="Failed", message=json.dumps(record), code=7), -1))
    found = followed.failure("Failed", None)
    assert (found.sentence, found.exit_code, found.pod, found.node) == (
        "loss is nan",
        7,
        "octa-film-worker-1",
        "n1",
    )


def test_success_without_a_result_is_a_failure():
    found = observed().failure("Succeeded", None)
    assert found.code == "E_NO_RESULT"
    assert found.exit_code < 128


@pytest.mark.parametrize("code", [3, 137])
def test_a_failure_without_words_has_a_sentence(code):
    followed = observed()
    list(followed.take_pod("added", pod(phase="Failed", code=code), -1))
    found = followed.failure("Failed", None)
    assert found.sentence
    assert found.exit_code


def test_a_silent_node_is_said_once_and_when_it_is_back():
    followed = observed(node_lost_seconds=30)
    silent = pod()
    silent["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    list(followed.take_pod("added", silent, -1))
    assert "n1" in next(iter(followed.silence(START)))
    assert list(followed.silence(START + 20)) == []
    assert followed.silent_seconds == 20
    list(followed.take_pod("modified", pod(), -1))
    assert "answers again" in next(iter(followed.silence(START + 21)))
    assert followed.lost_pods == []


def test_pods_that_a_queue_took_back_are_no_restarts():
    followed = observed()
    list(followed.take_pod("added", pod(), -1))
    list(followed.take_pod("deleted", pod(), -1))
    suspended = live()
    suspended["spec"]["runPolicy"] = {"suspend": True}
    assert list(followed.take_job(suspended)) == ["is suspended"]
    assert list(followed.take_job(live())) == []
    assert list(followed.take_pod("added", pod(uid="b"), -1)) == ["worker-0: runs on n1"]
