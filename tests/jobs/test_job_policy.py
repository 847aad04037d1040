"""The NetworkPolicy of a job: when its launcher makes it, whose it is, what is left of it when things go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stageline.errors import ClusterError, InterruptedRunError
from stageline.jobs.cluster.follow.launcher import ClusterJob
from stageline.jobs.cluster.render.network_policy import render_policy
from stageline.kube.client import Api

from ..kube.served_objects import ObjectServer, Plain, served_objects
from .jobs import cluster, stage_job

POLICIES, JOBS = "networkpolicies", "pytorchjobs"
JOB = stage_job("film_flow", "film", config={"root": "/stageline"})
NAME = JOB.name


class Unfinished:
    """The store of a stage that has not ended."""

    ended = False

    def finished(self) -> bool:
        return self.ended

    def progress(self) -> int:
        return -1


class Place:
    """A namespace, and launchers in it. said: what they told."""

    def __init__(self, server: ObjectServer, api: Api) -> None:
        self.server, self.api = server, api
        self.said: list[str] = []
        self.result = Unfinished()

    def launcher(self, **settings: Any) -> ClusterJob:
        return ClusterJob(JOB, cluster(settings), self.result, self.said.append, api=self.api)

    def start(self, **settings: Any) -> None:
        """A launcher that starts or adopts the job and goes."""
        started = self.launcher(**settings)
        started.start()
        started.detach()

    @property
    def policy(self) -> Plain:
        return self.server.objects[POLICIES, NAME]

    def leave(self, **metadata: Any) -> str:
        """A policy as a killed launcher leaves it; its uid."""
        policy = render_policy(JOB, cluster())
        assert policy is not None
        left = self.server.put(POLICIES, {**policy, "metadata": {**policy["metadata"], **metadata}})
        return str(left["metadata"]["uid"])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with served_objects(tmp_path) as (server, api):
        yield Place(server, api)


def owners(item: Plain) -> list[tuple[str, str]]:
    return [(owner["kind"], owner["uid"]) for owner in item["metadata"].get("ownerReferences") or []]


def test_the_policy_is_there_before_the_job_and_goes_with_it(place: Place) -> None:
    seen: list[list[str]] = []
    place.server.hooks["create", JOBS] = lambda: seen.append(place.server.of(POLICIES))
    place.start()
    assert seen == [[NAME]]
    job = place.server.objects[JOBS, NAME]
    assert owners(place.policy) == [("PyTorchJob", job["metadata"]["uid"])]
    place.server.collect()
    assert place.server.of(POLICIES) == [NAME]
    del place.server.objects[JOBS, NAME]
    place.server.collect()
    assert place.server.of(POLICIES) == []
    assert not [text for text in place.said if "NetworkPolicy" in text]


def test_the_policy_outlives_a_deleted_jobs_pods_which_end_within_their_grace(place: Place) -> None:
    started = place.launcher()
    started.start()
    pods = [place.server.put("pods", {"metadata": {"name": f"{NAME}-worker-{index}"}}) for index in (0, 1)]
    started._job_policy.keep(pods[:1])
    started._job_policy.keep(pods)
    started.detach()
    del place.server.objects[JOBS, NAME]
    for pod in pods:
        place.server.collect()
        assert place.server.of(POLICIES) == [NAME]
        del place.server.objects["pods", pod["metadata"]["name"]]
    place.server.collect()
    assert place.server.of(POLICIES) == []


def test_before_the_job_is_there_the_policy_belongs_to_the_launchers_pod(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stageline.jobs.cluster.follow.job_lease.own_namespace", lambda: "train")
    monkeypatch.setenv("KFP_POD_NAME", "step")
    monkeypatch.setenv("KFP_POD_UID", "pod-1")
    seen: list[Any] = []
    place.server.hooks["create", JOBS] = lambda: seen.append(owners(place.policy))
    place.start()
    assert seen == [[("Pod", "pod-1")]]
    assert [kind for kind, _ in owners(place.policy)] == ["PyTorchJob"]


def test_a_policy_that_a_killed_launcher_left_is_made_anew(place: Place) -> None:
    before = place.leave()
    place.start()
    assert place.policy["metadata"]["uid"] != before
    assert [kind for kind, _ in owners(place.policy)] == ["PyTorchJob"]


def test_a_policy_that_was_left_goes_where_no_job_is_needed_any_more(place: Place) -> None:
    place.leave()
    place.result.ended = True
    place.start()
    assert place.server.objects.keys() <= {("leases", NAME)}


def test_an_adopted_job_gets_the_policy_that_is_wanted_now(place: Place) -> None:
    """Killed between the job and its policy's owner; started again with other settings."""
    place.start(network={"limit_egress": True})
    job, limited = place.server.objects[JOBS, NAME], place.policy
    assert "egress" in limited["spec"]
    place.server.put(POLICIES, {**limited, "metadata": {**limited["metadata"], "ownerReferences": []}})
    place.start()
    assert place.server.asked(JOBS).count("create") == 1
    assert place.policy["metadata"]["uid"] == limited["metadata"]["uid"]
    assert owners(place.policy) == [("PyTorchJob", job["metadata"]["uid"])]
    wanted = render_policy(JOB, cluster())
    assert wanted is not None
    assert place.policy["spec"] == wanted["spec"]
    del place.server.objects[POLICIES, NAME]
    place.start()
    assert owners(place.policy) == [("PyTorchJob", job["metadata"]["uid"])]


@pytest.mark.parametrize("verb", ["create", "patch", "delete"])
def test_without_the_right_a_job_starts_with_a_warning_or_where_it_is_required_not_at_all(
    place: Place, verb: str
) -> None:
    place.server.denied.add((verb, POLICIES))
    with pytest.raises(ClusterError, match="would run without its NetworkPolicy, which is required") as caught:
        place.start(network_policy="require")
    assert caught.value.code == "E_NO_POLICY"
    assert f'apiGroups: ["networking.k8s.io"], resources: ["networkpolicies"], verbs: ["{verb}"]' in caught.value.remedy
    assert (place.server.of(JOBS), place.server.of(POLICIES)) == ([], [])
    place.start()
    assert (place.server.of(JOBS), place.server.of(POLICIES)) == ([NAME], [])
    (warning,) = [text for text in place.said if text.startswith("warning")]
    assert "take part in it as a rank" in warning


def test_a_job_that_runs_without_its_policy_gets_it_or_where_it_is_required_is_not_followed(place: Place) -> None:
    place.server.denied.add(("create", POLICIES))
    place.start()
    with pytest.raises(ClusterError, match="which is required"):
        place.start(network_policy="require")
    assert place.server.of(JOBS) == [NAME], "somebody started it, and it is not ended"
    place.server.denied.clear()
    place.start(network_policy="require")
    assert owners(place.policy) == [("PyTorchJob", place.server.objects[JOBS, NAME]["metadata"]["uid"])]


def test_a_job_that_is_refused_leaves_no_policy(place: Place) -> None:
    place.server.quota.add(JOBS)
    with pytest.raises(ClusterError, match="quota"):
        place.start()
    assert place.server.of(POLICIES) == []


def test_a_launcher_cancelled_between_policy_and_job_leaves_neither(place: Place) -> None:
    started = place.launcher()
    place.server.hooks["create", POLICIES] = started.cancel
    with pytest.raises(InterruptedRunError):
        started.start()
    assert (place.server.of(JOBS), place.server.of(POLICIES)) == ([], [])


def test_somebody_elses_policy_of_that_name_is_left_alone(place: Place) -> None:
    place.server.put(POLICIES, {"metadata": {"name": NAME, "uid": "theirs"}, "spec": {}})
    with pytest.raises(ClusterError, match="that stageline did not make"):
        place.start(network_policy="require")
    place.start()
    assert place.server.objects[POLICIES, NAME]["spec"] == {}
    assert [text for text in place.said if text.startswith("warning")]


def test_metrics_that_nobody_may_read_are_said(place: Place) -> None:
    served = stage_job("film_flow", "film", config={"root": "/stageline", "trainer": {"metrics_port": 9400}})
    for network, notes in (({}, 1), ({"metrics_from": ["monitoring"]}, 0)):
        place.said.clear()
        started = ClusterJob(served, cluster({"network": network}), place.result, place.said.append, api=place.api)
        started.start()
        started.detach()
        place.server.objects.clear()
        assert len([text for text in place.said if "cluster.network.metrics_from" in text]) == notes


def test_switched_off_nothing_is_asked_about_policies(place: Place) -> None:
    place.start(network_policy="off")
    assert place.server.asked(POLICIES) == []
    assert place.server.of(JOBS) == [NAME]
