"""What is done about a job that is there already: every case has one answer, and refusals name what differs."""

from __future__ import annotations

import copy

import pytest

from stageline.errors import BusyError, ClusterError, PlanError
from stageline.jobs.cluster.follow.adoption import adoption_patch, decide, lost_to, outcome, spec_digest

from .objects import live_job

LABELS = {
    "app.kubernetes.io/managed-by": "stageline",
    "stageline.dev/run": "octa",
    "stageline.dev/stage": "film",
}


def job(fingerprint="aaaa", ended="", labels=LABELS, **metadata):
    conditions = [{"type": kind, "status": "True"} for kind in ("Created", ended) if kind]
    annotations = {"stageline.dev/fingerprint": fingerprint, "stageline.dev/launcher": "a/1"}
    own = {"uid": "u1", "resourceVersion": "7", "labels": dict(labels), "annotations": annotations}
    return live_job(conditions=conditions, **{**own, **metadata})


@pytest.mark.parametrize(
    ("live", "finished", "action"),
    [
        pytest.param(None, False, "create", id="none"),
        pytest.param(None, True, "nothing", id="none-but-finished"),
        pytest.param(job(), False, "adopt", id="running"),
        pytest.param(job(), True, "adopt", id="running-after-its-result"),
        pytest.param(job(ended="Failed"), False, "replace", id="failed"),
        pytest.param(job(ended="Failed"), True, "nothing", id="failed-after-its-result"),
        pytest.param(job(ended="Succeeded"), True, "nothing", id="succeeded"),
        pytest.param(job(ended="Succeeded"), False, "replace", id="succeeded-without-result"),
        pytest.param(job("bbbb", "Failed"), False, "replace", id="ended-with-other-settings"),
        pytest.param(job(deletionTimestamp="2026-01-01T00:00:00Z"), False, "wait", id="being-deleted"),
        pytest.param(job("bbbb", deletionTimestamp="2026-01-01T00:00:00Z"), False, "wait", id="other-being-deleted"),
    ],
)
def test_each_state_has_one_answer(live, finished, action):
    assert decide(live, job(), finished=finished).action == action


def test_other_settings_in_an_unfinished_job_are_refused_with_both_fingerprints_and_the_command():
    with pytest.raises(PlanError, match=r"bbbb.*aaaa") as caught:
        decide(job("bbbb"), job("aaaa"), finished=False)
    assert "stageline job cancel octa-film" in caught.value.remedy


@pytest.mark.parametrize("ended", ["", "Failed"])
def test_a_job_of_another_run_under_the_same_name_is_refused(ended):
    with pytest.raises(PlanError, match="'other' instead of 'octa'"):
        decide(job(ended=ended, labels={**LABELS, "stageline.dev/run": "other"}), job(), finished=False)


def test_a_job_that_is_not_ours_is_refused():
    with pytest.raises(ClusterError, match="did not make"):
        decide(job(labels={}), job(), finished=False)


def test_adoption_moves_the_pod_and_keeps_other_owners():
    owner = {"kind": "Pod", "uid": "new", "name": "p2", "apiVersion": "v1"}
    queue = {"kind": "Workload", "uid": "w"}
    live = job(ownerReferences=[{"kind": "Pod", "uid": "old"}, queue])
    change = adoption_patch(live, launcher="b/2", owner=owner)["metadata"]
    assert change["ownerReferences"] == [queue, owner]
    assert change["resourceVersion"] == "7"
    assert change["annotations"] == {"stageline.dev/launcher": "b/2"}
    assert adoption_patch(live, launcher="b/2", owner=None)["metadata"]["ownerReferences"] == [queue]


def test_a_job_taken_over_says_by_whom():
    assert lost_to(job(), "a/1") is None
    error = lost_to(job(), "b/2")
    assert isinstance(error, BusyError)
    assert "a/1" in error.message


def test_a_condition_that_is_false_is_no_outcome():
    live = job()
    live["status"]["conditions"].append({"type": "Failed", "status": "False"})
    assert outcome(live) == ""


def test_the_digest_sees_what_pods_execute_and_not_what_queues_rewrite():
    base = job()
    queued, edited = copy.deepcopy(base), copy.deepcopy(base)
    queued["spec"]["runPolicy"] = {"suspend": True}
    queued["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["nodeSelector"] = {"zone": "a"}
    edited["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["command"] = ["other"]
    assert spec_digest(queued) == spec_digest(base) != spec_digest(edited)
