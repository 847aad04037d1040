"""What people write behind `kfp run create` becomes one config, and every fault of it is told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stageline.errors import ConfigError, PlanError
from stageline.families import raw_preset
from stageline.jobs.defaults import parse_defaults, with_defaults
from stageline.jobs.placement import check_mounted
from stageline.pipeline.request import Request, read_request


def ask(**parameters: Any) -> Request:
    """As a step of the S3 pipeline does, with what every run needs."""
    given = {"preset": "tiny", "root": "s3://bucket/runs", "image": "trainer:1", **parameters}
    return read_request({"family": "film_flow", **given})


def test_parameters_become_keys_of_the_config() -> None:
    request = ask(
        run="mine",
        stages="backbone, film",
        workers=2.0,
        processes=4,
        namespace="jobs",
        s3_endpoint="http://s3:9000",
        s3_region="eu",
    )
    config = request.config
    assert (config.run, config.root, config.stages) == ("mine", "s3://bucket/runs", ("backbone", "film"))
    assert (config.trainer.nodes, config.trainer.processes) == (2, 4)
    assert (config.cluster.image, config.cluster.namespace) == ("trainer:1", "jobs")
    s3 = config.cluster.storage.s3
    assert s3 is not None
    assert (s3.endpoint, s3.region, s3.secret) == ("http://s3:9000", "eu", ""), "a Secret that is not there is none"
    assert request.launcher == "pytorchjob"
    assert {"family", "run", "root"} <= set(request.raw)


def test_what_is_empty_or_zero_is_not_given() -> None:
    raw = ask(run="", stages="", workers=0, processes=0.0, overrides="  ").raw
    assert raw["trainer"] == raw_preset("film_flow", "tiny")["trainer"]
    assert "stages" not in raw


@pytest.mark.parametrize(
    "overrides",
    [
        "data.num_train=4 model.timesteps=2",
        "data.num_train=4\nmodel.timesteps=2\n",
        '["data.num_train=4", "model.timesteps=2"]',
    ],
)
def test_overrides_come_as_words_or_as_a_list_and_win(overrides: str) -> None:
    config: Any = ask(overrides=f"{overrides}").config
    assert (config.data.num_train, config.model.timesteps) == (4, 2)


def test_overrides_win_over_parameters_and_quotes_hold_words_together() -> None:
    request = ask(workers=2, overrides="trainer.nodes=3 'cluster.labels={team: a}'")
    assert request.config.trainer.nodes == 3
    assert request.config.cluster.labels == {"team": "a"}


def test_parameters_and_overrides_take_the_place_of_stage_overrides_as_on_the_command_line() -> None:
    text = "stage_overrides: {film: {trainer.nodes: 3, trainer.max_steps: 9, trainer.learning_rate: 0.1}}"
    request = ask(preset="", config=text, workers=2, overrides="trainer.max_steps=300")
    assert request.config.stage_overrides == {"film": {"trainer.learning_rate": 0.1}}
    assert request.raw["stage_overrides"] == request.config.stage_overrides
    again = ask(preset="", config=text, workers=2, overrides="stage_overrides.film.trainer.nodes=1")
    assert again.config.stage_overrides["film"]["trainer"] == {"nodes": 1}


@pytest.mark.parametrize("text", ["family: film_flow\nrun: a\n", '{"family": "film_flow", "run": "a"}', "run: a"])
def test_a_config_is_yaml_or_json(text: str) -> None:
    request = ask(preset="", config=text)
    assert (request.config.family, request.config.run) == ("film_flow", "a")


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ask(preset="tinny", run="My Run", workers="two", launcher="slurm", overrides="trainer.lr 'x")
    assert "5 faults" in caught.value.message
    for part in ("did you mean 'tiny'", "'My Run'", "'two'", "'slurm'", "quotation"):
        assert part in caught.value.message
    assert "docs/pipeline.md" in caught.value.remedy


def test_faults_of_the_config_stand_beside_those_of_the_parameters() -> None:
    with pytest.raises(ConfigError) as caught:
        ask(preset="", config="trainer: {max_stepz: 3, betas: 4}", workers="two")
    assert "3 faults" in caught.value.message
    assert "did you mean 'trainer.max_steps'" in caught.value.message


def test_a_quotation_mark_is_a_fault_in_words() -> None:
    with pytest.raises(ConfigError, match="no run name"):
        ask(run='a"b')


def test_config_and_preset_contradict_each_other_and_one_is_needed() -> None:
    with pytest.raises(ConfigError, match="contradict"):
        ask(config="run: a")
    with pytest.raises(ConfigError, match=r"give config=.* or preset="):
        ask(preset="")
    with pytest.raises(ConfigError, match="'other'"):
        ask(preset="", config="family: other")


def test_a_relative_root_is_a_folder_of_the_claim() -> None:
    assert ask(root="", claim="data").config.root == "/stageline"
    assert ask(root="team/a", claim="data").config.root == "/stageline/team/a"
    assert ask(root="/stageline/b", claim="data").config.root == "/stageline/b"


def test_a_root_that_only_one_pod_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="folder of one machine"):
        ask(root="")
    with pytest.raises(ConfigError, match="lies outside '/stageline'"):
        ask(root="/tmp", claim="data")
    with pytest.raises(ConfigError, match=r"cluster\.image is empty"):
        ask(image="")


def test_a_checkpoint_that_only_one_machine_has_is_refused() -> None:
    """All of them at once; what lies below the root, in a store, or on a claim that is mounted is no such."""
    own = ["parents.film.default=/users/me/runs/a/backbone", "evaluate.checkpoints={old: file:///users/me/old}"]
    with pytest.raises(ConfigError) as caught:
        ask(overrides=json.dumps(own))
    for words in (own[0], "evaluate.checkpoints.old=file:///users/me/old", "a path of this machine"):
        assert words in str(caught.value)
    there = ["parents.film.default=/data/a", "cluster.mounts=[{mount_path: /data, claim: sets}]"]
    assert ask(overrides=json.dumps(there)).config.parents["film"]["default"] == "/data/a"
    assert ask(root="", claim="data", overrides="parents.film.default=/stageline/runs/a/backbone")
    assert ask(overrides="parents.film.default=runs/a/backbone")


def test_a_claim_that_is_not_mounted_here_is_refused(tmp_path: Path) -> None:
    """Else a step would write beside the claim, into its own pod, and its jobs find nothing."""
    check_mounted(ask().config)
    with pytest.raises(PlanError, match="not mounted here") as caught:
        check_mounted(ask(root="", claim="data", overrides=f"cluster.storage.mount_path={tmp_path}/no").config)
    assert "film_flow_pvc.yaml" in caught.value.remedy
    check_mounted(ask(root=str(tmp_path), claim="data", overrides=f"cluster.storage.mount_path={tmp_path}").config)


def test_where_jobs_run_is_no_part_of_the_question() -> None:
    assert ask(image="trainer:1").text == ask(image="trainer:2", namespace="b").text
    assert ask().text != ask(overrides="seed=1").text


def test_on_this_machine_nothing_of_the_cluster_is_asked_for() -> None:
    request = read_request(
        {"family": "film_flow", "config": '{"family": "film_flow", "root": "/data"}', "launcher": "local"}
    )
    assert request.config.root == "/data"


def test_a_config_starts_from_the_defaults_of_its_namespace() -> None:
    defaults = parse_defaults("root: /stageline\ncluster: {image: trainer:1, storage: {claim: data}}\n", "defaults")
    raw = with_defaults({"run": "a", "cluster": {"image": "mine:2", "queue": "q"}}, defaults)
    assert raw == {
        "run": "a",
        "root": "/stageline",
        "cluster": {"image": "mine:2", "queue": "q", "storage": {"claim": "data"}},
    }
    assert parse_defaults("trainer: {metrics_port: 9400}", "defaults") == {"trainer": {"metrics_port": 9400}}
    for foreign in ("seed: 3", "trainer: {metrics_port: 9400, lrate: 1}", "[1]", "trainer: [lrate]"):
        with pytest.raises(ConfigError, match=r"`root`, `cluster` and `trainer\.metrics_port` only"):
            parse_defaults(foreign, "defaults")
