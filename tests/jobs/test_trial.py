"""A trial is one job that needs neither config nor storage, the same one for the same image."""

from __future__ import annotations

from stageline.config import ClusterConfig
from stageline.jobs.cluster.render.pytorchjob import render_job
from stageline.jobs.trial import TrialResult, trial_job


def test_a_trial_needs_neither_config_nor_storage() -> None:
    job = render_job(trial_job("toy", "backbone", "trainer:1"), ClusterConfig(image="trainer:1"))
    container = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["stageline-entry", "trial", "backbone", "--family=toy"]
    assert job["metadata"]["name"] == "stageline-trial-backbone"


def test_trials_of_one_image_are_one_job_and_of_two_are_not() -> None:
    assert trial_job("toy", "backbone", "trainer:1") == trial_job("toy", "backbone", "trainer:1")
    assert (
        trial_job("toy", "backbone", "trainer:1").fingerprint != trial_job("toy", "backbone", "trainer:2").fingerprint
    )


def test_nothing_is_finished_before_it_was_started() -> None:
    assert TrialResult().finished() is False
