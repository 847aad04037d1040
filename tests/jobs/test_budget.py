"""Restarts are counted by uid and forgiven by progress; clocks start, stop and start again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stageline.jobs.cluster.follow.budget import SeenPods, StartClock, over_budget, pending_error


def restarted(seen_pods: SeenPods, times: int, step: int = -1, index: str = "0") -> SeenPods:
    for number in range(times):
        seen_pods = seen_pods.with_pod(index, f"{index}-{step}-{number}-uid", step)
    return seen_pods


def test_the_first_pods_are_no_restart():
    seen_pods = SeenPods().with_pod("0", "aaaaaaaa-1", -1).with_pod("1", "bbbbbbbb-1", -1)
    assert seen_pods.restarts == 0


def test_a_pod_seen_twice_counts_once():
    seen_pods = SeenPods().with_pod("0", "aaaaaaaa-1", -1)
    assert seen_pods.with_pod("0", "aaaaaaaa-1", -1) == seen_pods


def test_a_gang_that_is_started_again_is_one_restart():
    seen_pods = SeenPods()
    for generation in "abc":
        for index in "01":
            seen_pods = seen_pods.with_pod(index, f"{generation}{index}-uid-long", -1)
    assert seen_pods.restarts == 2


def test_the_budget_allows_its_number_and_not_one_more():
    assert over_budget(restarted(SeenPods(), 4), 3, "") is None
    error = over_budget(restarted(SeenPods(), 5), 3, "worker-0 exit code 137")
    assert error is not None
    assert "4 times" in error.message
    assert "exit code 137" in error.message


def test_a_new_checkpoint_forgives():
    seen_pods = restarted(SeenPods(), 4)
    seen_pods = seen_pods.with_pod("0", "zzzzzzzz", 10)
    assert (seen_pods.step, seen_pods.restarts) == (10, 1)
    assert seen_pods.with_pod("0", "yyyyyyyy", 10).restarts == 2


@given(st.lists(st.tuples(st.sampled_from("012"), st.uuids().map(str), st.integers(-1, 5)), max_size=20))
def test_the_annotation_says_all(pods):
    seen_pods = SeenPods()
    for index, uid, step in pods:
        seen_pods = seen_pods.with_pod(index, uid, step)
    assert SeenPods.read(seen_pods.text()) == seen_pods


def test_an_annotation_that_is_none_counts_as_empty():
    for text in ("", "no json", "[]", '{"step": "x"}', '{"step": 1}', '{"step": 1, "pods": 3}'):
        assert SeenPods.read(text) == SeenPods()


def test_the_clock_runs_from_the_creation_and_stops_when_all_run():
    clock = StartClock()
    clock.update(running=False, suspended=False, created=100.0, now=130.0)
    assert not clock.is_over(60.0, 159.0)
    assert clock.is_over(60.0, 160.0)
    clock.update(running=True, suspended=False, created=100.0, now=161.0)
    assert not clock.is_over(60.0, 9999.0)
    clock.update(running=False, suspended=False, created=100.0, now=500.0)
    assert not clock.is_over(60.0, 559.0)
    assert clock.is_over(60.0, 560.0)


def test_time_in_a_queue_does_not_count():
    clock = StartClock()
    clock.update(running=False, suspended=True, created=0.0, now=5000.0)
    clock.update(running=False, suspended=False, created=0.0, now=6000.0)
    assert not clock.is_over(60.0, 6059.0)
    assert clock.is_over(60.0, 6060.0)


def test_half_a_gang_is_named():
    error = pending_error(1, 2, 60, "the quota 'gpus' is exceeded", "ask for less")
    assert "1 of 2 ran" in error.message
    assert "gpus" in error.message
    assert error.remedy == "ask for less"
