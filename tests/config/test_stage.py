"""Stages: which are selected, what config each sees, what its fingerprint depends on."""

from __future__ import annotations

from typing import Any

import pytest

from stageline.config import RunConfig, Settings, operational, validate
from stageline.errors import ConfigError
from stageline.stage import Inheritance, Stage, Stages, num_steps, stage_config, stage_fingerprint, stage_settings


class Model(Settings):
    """A section."""

    width: int = 8
    film: bool = True
    cache: str = operational("auto")


class TwoStageConfig(RunConfig):
    """What a family's config looks like."""

    family: str = "two"
    model: Model = Model()
    evaluate: Model = Model()


BACKBONE = Stage("backbone", trains=("*",), objective="flow", steps=100, metric="dice", patch={"model.film": False})
FILM = Stage(
    "film", trains=("*",), objective="flow", steps=50, metric="dice",
    parents={"default": "backbone"}, optional_parents=frozenset({"default"}),
)  # fmt: skip
LAST = Stage("last", trains=("*",), objective="flow", steps=7, metric="dice", parents={"default": "film"})
STAGES = Stages(BACKBONE, FILM, LAST)


def config_of(**raw: Any) -> TwoStageConfig:
    return validate(raw, TwoStageConfig, "test")


def names(config: RunConfig) -> list[str]:
    return [stage.name for stage in STAGES.selected(config)]


def test_all_stages_are_selected_by_default_in_the_familys_order() -> None:
    assert names(config_of()) == ["backbone", "film", "last"]
    assert names(config_of(stages=["film", "backbone"])) == ["backbone", "film"]


def test_an_optional_parent_may_be_absent() -> None:
    assert names(config_of(stages=["film"])) == ["film"]


def test_a_required_parent_must_be_in_the_run_or_given() -> None:
    with pytest.raises(ConfigError, match=r"'last' needs 'film' before it, or parents\.last\.default=<checkpoint>"):
        STAGES.selected(config_of(stages=["last"]))
    assert names(config_of(stages=["last"], parents={"last": {"default": "runs/a/film"}})) == ["last"]


def test_every_fault_of_the_selection_at_once() -> None:
    config = config_of(
        stages=["film", "film", "flim", "last"],
        stage_overrides={"bakbone": {"seed": 1}},
        parents={"film": {"defualt": "x"}, "nobody": {"default": "x"}},
    )
    with pytest.raises(ConfigError) as caught:
        STAGES.selected(config)
    text = str(caught.value)
    assert "5 faults" in text
    for part in (
        "stages: no stage 'flim'; did you mean 'film'?",
        "stage_overrides: no stage 'bakbone'; did you mean 'backbone'?",
        "parents: no stage 'nobody'",
        "names a stage twice",
        "parents.film: no role 'defualt'; roles: default",
    ):
        assert part in text
    assert "stages of two: backbone, film, last" in text


def test_an_empty_selection_is_refused() -> None:
    with pytest.raises(ConfigError, match="an empty list trains nothing"):
        STAGES.selected(config_of(stages=[]))


def test_a_stage_by_name() -> None:
    assert STAGES["film"] is FILM
    assert "film" in STAGES
    assert STAGES.names == ("backbone", "film", "last")
    with pytest.raises(ConfigError, match="there is no stage 'flm'; did you mean 'film'"):
        STAGES["flm"]


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param((FILM, BACKBONE), id="child-before-parent"),
        pytest.param((BACKBONE, BACKBONE), id="twice"),
        pytest.param((BACKBONE, Stage("x", objective="o", steps=1, metric="m")), id="no-such-role"),
    ],
)
def test_a_wrong_declaration_is_our_own_fault(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(AssertionError):
        Stages(*stages)


def test_the_patch_comes_before_the_overrides() -> None:
    config = config_of(model={"film": True, "width": 4})
    assert stage_config(config, BACKBONE).model == Model(film=False, width=4)
    assert stage_config(config, FILM).model == Model(film=True, width=4)
    overridden = config_of(stage_overrides={"backbone": {"model.film": True, "seed": 5}, "film": {"model.width": 2}})
    assert stage_config(overridden, BACKBONE).model == Model(film=True)
    assert stage_config(overridden, BACKBONE).seed == 5
    assert stage_config(overridden, FILM).model == Model(width=2)
    assert stage_config(overridden, FILM).seed == 0


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"trainer.max_steps": 9}, id="dotted"),
        pytest.param({"trainer": {"max_steps": 9}}, id="nested-as-the-command-line-gives-it"),
    ],
)
def test_an_override_leaves_its_neighbours_alone(overrides: dict[str, Any]) -> None:
    config = config_of(trainer={"batch_size": 3, "keep": {"last": 4}}, stage_overrides={"film": overrides})
    trainer = stage_config(config, FILM).trainer
    assert (trainer.max_steps, trainer.batch_size, trainer.keep.last) == (9, 3, 4)


def test_the_config_of_the_run_is_not_changed() -> None:
    config = config_of(stage_overrides={"film": {"model.width": 2}})
    before = config.model_dump_json()
    stage_config(config, FILM)
    assert config.model_dump_json() == before


def test_a_stage_config_is_validated_as_a_whole() -> None:
    config = config_of(trainer={"max_steps": 3}, stage_overrides={"film": {"trainer.max_epochs": 2}})
    with pytest.raises(ConfigError, match="contradict each other") as caught:
        stage_config(config, FILM)
    assert "config of stage film" in str(caught.value)
    with pytest.raises(ConfigError, match=r"did you mean 'model\.width'"):
        stage_config(config_of(stage_overrides={"film": {"model.widht": 2}}), FILM)


def test_every_override_that_meets_no_section_is_named() -> None:
    config = config_of(seed=1, run="a", stage_overrides={"film": {"seed.x": 1, "run.y": 2, "a..b": 3}})
    with pytest.raises(ConfigError) as caught:
        stage_config(config, FILM)
    assert "stage_overrides.film: 3 faults" in str(caught.value)


@pytest.mark.parametrize(
    ("trainer", "num_samples", "steps"),
    [
        pytest.param({}, None, 100, id="stage-default"),
        pytest.param({"max_steps": 7}, 1000, 7, id="config-wins"),
        pytest.param({"max_epochs": 3, "batch_size": 4}, 10, 9, id="incomplete-batch-is-a-step"),
        pytest.param({"max_epochs": 2, "batch_size": 2, "accumulate_grad_batches": 2}, 8, 4, id="accumulation"),
        pytest.param({"max_epochs": 1, "batch_size": 2, "accumulate_grad_batches": 2}, 9, 3, id="incomplete-group"),
        pytest.param({"max_epochs": 1, "batch_size": 2, "processes": 2}, 8, 2, id="ranks"),
        pytest.param({"max_epochs": 1, "batch_size": 2, "nodes": 2}, 8, 2, id="ranks-on-nodes"),
        pytest.param({"max_epochs": 5}, None, None, id="not-known-yet"),
    ],
)
def test_number_of_steps(trainer: dict[str, Any], num_samples: int | None, steps: int | None) -> None:
    assert num_steps(config_of(trainer=trainer), BACKBONE, num_samples) == steps


def fingerprint_of(config: TwoStageConfig, data: str = "d", **parents: str) -> str:
    return stage_fingerprint(stage_config(config, FILM), FILM, data, parents)


def test_the_stage_fingerprint_follows_what_the_result_depends_on() -> None:
    base = fingerprint_of(config_of(), default="p")
    same = [
        config_of(run="other", root="elsewhere"),
        config_of(model={"cache": "off"}),
        config_of(evaluate={"width": 99}),
        config_of(stages=["film"]),
        config_of(stage_overrides={"backbone": {"model.width": 2}}),
        config_of(parents={"film": {"default": "runs/a"}}),
        config_of(stage_overrides={"film": {"model.width": 8}}),
    ]
    assert {fingerprint_of(config, default="p") for config in same} == {base}
    other = [
        fingerprint_of(config_of(seed=1), default="p"),
        fingerprint_of(config_of(model={"width": 9}), default="p"),
        fingerprint_of(config_of(stage_overrides={"film": {"model.width": 9}}), default="p"),
        fingerprint_of(config_of(trainer={"max_steps": 9}), default="p"),
        fingerprint_of(config_of(), data="e", default="p"),
        fingerprint_of(config_of(), default="q"),
        fingerprint_of(config_of()),
        stage_fingerprint(stage_config(config_of(), FILM), LAST, "d", {"default": "p"}),
    ]
    assert base not in other
    assert len(set(other)) == len(other) - 1  # a width of 9 is the same setting however it is given


def test_stage_settings_are_flat_and_leave_out_what_cannot_matter() -> None:
    settings = stage_settings(config_of(stages=["film"]))
    assert settings["model.width"] == 8
    assert settings["trainer.learning_rate"] == 2e-4
    assert not [key for key in settings if key.split(".")[0] in ("stages", "parents", "evaluate", "run", "root")]


def test_an_inheritance_is_json() -> None:
    given = Inheritance("film", "fresh", "the parent has none", ("film.*",))
    assert given.to_json() == {
        "section": "film", "outcome": "fresh", "reason": "the parent has none", "patterns": ["film.*"],
    }  # fmt: skip
