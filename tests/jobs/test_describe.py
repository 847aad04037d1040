"""Pods and jobs in plain words: one text per state, the reason where there is one, the first cause of an end."""

from __future__ import annotations

import json

import pytest

from stageline.jobs.cluster.explain.describe import (
    describe_event,
    describe_job,
    describe_pod,
    is_silent,
    job_failure,
    pod_label,
)

from .objects import worker_pod as pod


def ended(code, reason="Error", finished="2026-01-01T00:00:10Z", record=None, index=0):
    state = {"exitCode": code, "reason": reason, "finishedAt": finished}
    if record:
        state["message"] = json.dumps(record)
    return pod("Failed", index=index, containers=[{"name": "pytorch", "state": {"terminated": state}}])


def waiting(reason, message=""):
    return pod("Pending", containers=[{"image": "i:1", "state": {"waiting": {"reason": reason, "message": message}}}])


DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
NOT_READY = {"type": "Ready", "status": "False"}
DELETED = {"deletionTimestamp": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        pytest.param(pod("Pending", node=""), "waits for a node", id="unscheduled"),
        pytest.param(pod("Pending"), "starts on n1 (volumes, image)", id="scheduled"),
        pytest.param(waiting("ContainerCreating"), "starts on n1 (volumes, image)", id="creating"),
        pytest.param(waiting("ErrImagePull", "a"), "cannot get its image i:1 on n1", id="pull"),
        pytest.param(waiting("ImagePullBackOff", "b"), "cannot get its image i:1 on n1", id="pull-again"),
        pytest.param(
            waiting("CreateContainerConfigError", "no secret"),
            "cannot start on n1: CreateContainerConfigError: no secret",
            id="config",
        ),
        pytest.param(pod(), "runs on n1", id="running"),
        pytest.param(pod(conditions=[NOT_READY]), "its node n1 does not answer", id="silent"),
        pytest.param(
            pod(conditions=[DISRUPTED], metadata=DELETED),
            "is being stopped on n1: evicted (a drain, or somebody's request)",
            id="evicted",
        ),
        pytest.param(pod("Succeeded"), "done on n1", id="done"),
        pytest.param(ended(137, "OOMKilled"), "ended on n1: exit code 137 (OOMKilled)", id="oom"),
        pytest.param(
            ended(4, record={"exit_code": 4, "sentence": "the parent is missing"}),
            "ended on n1: exit code 4: the parent is missing",
            id="own-words",
        ),
        pytest.param(pod("Failed", reason="Evicted"), "ended on n1: Evicted", id="no-container"),
    ],
)
def test_each_state_of_a_pod_has_its_words(given, text):
    assert describe_pod(given) == text


def test_a_pod_without_operator_labels_is_called_by_its_name():
    assert pod_label({"metadata": {"name": "x"}}) == "x"
    assert pod_label(pod(index=3)) == "worker-3"


def test_a_container_that_is_not_ready_itself_is_no_silent_node():
    starting = pod(conditions=[NOT_READY], containers=[{"ready": False, "state": {"running": {}}}])
    assert not is_silent(starting)


@pytest.mark.parametrize(
    ("status", "suspend", "text"),
    [
        pytest.param([], False, "", id="new"),
        pytest.param([("Running", "True")], False, "the job runs", id="running"),
        pytest.param([("Running", "False"), ("Restarting", "True")], False, "the pods are started again", id="again"),
        pytest.param([("Failed", "True"), ("Running", "False")], False, "the job failed", id="failed"),
        pytest.param([("Succeeded", "True")], False, "the job succeeded", id="succeeded"),
        pytest.param([], True, "waits in queue gpus", id="queued"),
    ],
)
def test_each_state_of_a_job_has_its_words(status, suspend, text):
    job = {
        "metadata": {"labels": {"kueue.x-k8s.io/queue-name": "gpus"}},
        "spec": {"runPolicy": {"suspend": suspend}},
        "status": {"conditions": [{"type": kind, "status": value} for kind, value in status]},
    }
    assert describe_job(job) == text


def test_the_fault_comes_before_the_peers_it_took_along_whatever_ended_first():
    peer = ended(138, finished="2026-01-01T00:00:01Z", record={"exit_code": 138, "sentence": "peer lost"}, index=0)
    fault = ended(7, finished="2026-01-01T00:00:09Z", record={"exit_code": 7, "sentence": "loss is nan"}, index=1)
    found = job_failure([peer, fault])
    assert found is not None
    assert found.sentence == "loss is nan"


def test_of_two_faults_the_earlier_one_is_the_cause():
    late = ended(7, finished="2026-01-01T00:00:09Z", record={"exit_code": 7, "sentence": "late"}, index=0)
    early = ended(8, finished="2026-01-01T00:00:02Z", record={"exit_code": 8, "sentence": "early"}, index=1)
    found = job_failure([late, early])
    assert found is not None
    assert found.sentence == "early"
    assert job_failure([pod(), ended(1)]) is None


@pytest.mark.parametrize("message", ["", "Killed", "[1]", '{"exit_code": 0, "sentence": "x"}', '{"sentence": "x"}'])
def test_a_termination_message_that_is_no_record_is_none(message):
    state = {"terminated": {"exitCode": 1, "message": message}}
    assert job_failure([pod("Failed", containers=[{"state": state}])]) is None


def test_an_event_names_pod_and_reason():
    about = {"kind": "Pod", "name": "octa-film-worker-1"}
    event = {"involvedObject": about, "reason": "FailedScheduling", "message": "0/2 nodes are available\n"}
    assert describe_event(event) == "worker-1: FailedScheduling: 0/2 nodes are available"
