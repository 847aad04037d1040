"""Stages: which are selected, what config each sees, what its fingerprint depends on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import Field

from stageline.config import RunConfig, Settings, TrainerConfig, apply_overrides, operational, validate
from stageline.errors import ConfigError
from stageline.stage import (
    Inheritance,
    Stage,
    Stages,
    Trains,
    num_epochs,
    num_steps,
    stage_config,
    stage_fingerprint,
    stage_raw,
    stage_settings,
)
from stageline.work.refusals import refuse_optimizer, refuse_split


class Gate(Settings):
    """A section in a section."""

    strength: float = 1.0
    radius: int = 3


class Model(Settings):
    """A section."""

    width: int = 8
    film: bool = True
    cache: str = operational("auto")
    sizes: dict[str, int] = Field(default_factory=dict)
    gate: Gate | None = Gate()


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
EXTRA = Stage("extra", objective="flow", epochs=2, metric="dice", opt_in=True, parents={"default": "film"})
WITH_EXTRA = Stages(BACKBONE, FILM, LAST, EXTRA)


def config_of(**raw: Any) -> TwoStageConfig:
    return validate(raw, TwoStageConfig, "test")


def names(config: RunConfig) -> list[str]:
    return [stage.name for stage in STAGES.selected(config)]


def test_all_stages_are_selected_by_default_in_the_familys_order() -> None:
    assert names(config_of()) == ["backbone", "film", "last"]
    assert names(config_of(stages=["film", "backbone"])) == ["backbone", "film"]


def test_an_optional_parent_may_be_absent() -> None:
    assert names(config_of(stages=["film"])) == ["film"]


def test_only_an_optional_parent_may_be_none() -> None:
    assert names(config_of(parents={"film": {"default": "none"}})) == ["backbone", "film", "last"]
    with pytest.raises(
        ConfigError, match=r"parents\.last\.default: none, but 'last' cannot start from scratch"
    ) as caught:
        STAGES.selected(config_of(parents={"last": {"default": "none"}}))
    assert "name a checkpoint of 'film'" in str(caught.value)


def test_an_opt_in_stage_is_trained_only_where_it_is_named() -> None:
    assert [stage.name for stage in WITH_EXTRA.selected(config_of())] == ["backbone", "film", "last"]
    assert [stage.name for stage in WITH_EXTRA.selected(config_of(stages=["extra", "film"]))] == ["film", "extra"]


def test_a_family_may_say_what_no_selection_means() -> None:
    assert [stage.name for stage in STAGES.selected(config_of(), default=["last", "film"])] == ["film", "last"]
    assert [stage.name for stage in STAGES.selected(config_of(stages=["backbone"]), default=["film"])] == ["backbone"]
    with pytest.raises(AssertionError, match="no stages of this family"):
        STAGES.selected(config_of(), default=["flim"])


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
        pytest.param(
            (BACKBONE, FILM, EXTRA, Stage("x", objective="o", steps=1, metric="m", parents={"default": "extra"})),
            id="needs-an-opt-in-stage",
        ),
    ],
)
def test_a_wrong_declaration_is_our_own_fault(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(AssertionError):
        Stages(*stages)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({}, id="no-length"),
        pytest.param({"steps": 1, "epochs": 1}, id="two-lengths"),
        pytest.param({"steps": 0}, id="no-step"),
        pytest.param({"steps": 1, "optional_parents": frozenset({"y"})}, id="no-such-optional-role"),
        pytest.param({"steps": 1, "also_from": {"y": ("film",)}}, id="no-such-role"),
    ],
)
def test_a_wrong_stage_is_our_own_fault(wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        Stage("x", objective="o", metric="m", **wrong)


def test_what_trains_is_what_is_included_and_not_excluded() -> None:
    trains = Trains(("film.*", "head.[ab].weight"), exclude=("film.norm*",))
    matched = ["film.0.weight", "film.a.b", "head.a.weight", "film.normal"]
    assert [name for name in [*matched, "head.c.weight", "Film.0", "film"] if trains.matches(name)] == matched[:3]
    assert not Trains(()).matches("film.0")


DEFAULTS = {"trainer.max_epochs": 3, "trainer.warmup_fraction": 0.1, "model.width": 5, "model.gate": {"strength": 0.5}}


def with_defaults(config: TwoStageConfig, defaults: dict[str, Any] | None = None, **stage: Any) -> TwoStageConfig:
    defaults = DEFAULTS if defaults is None else defaults
    return stage_config(config, Stage("film", objective="o", steps=1, metric="m", defaults=defaults, **stage))


def test_defaults_apply_where_nothing_is_stated() -> None:
    own = with_defaults(config_of(trainer={"batch_size": 2}))
    assert (own.trainer.max_epochs, own.trainer.warmup_fraction, own.trainer.batch_size) == (3, 0.1, 2)
    assert own.model == Model(width=5, gate=Gate(strength=0.5))


@pytest.mark.parametrize(
    "stronger",
    [
        pytest.param({"model": {"width": 8}}, id="file-even-with-the-classes-default"),
        pytest.param({"stage_overrides": {"film": {"model.width": 8}}}, id="dotted-override"),
        pytest.param({"stage_overrides": {"film": {"model": {"width": 8}}}}, id="nested-override"),
    ],
)
def test_everything_wins_over_a_default(stronger: dict[str, Any]) -> None:
    own = with_defaults(config_of(**stronger))
    assert (own.model.width, own.model.gate) == (8, Gate(strength=0.5))
    assert with_defaults(config_of(), patch={"model.width": 8}).model.width == 8


def test_a_default_leaves_its_neighbours_in_a_section_alone() -> None:
    assert with_defaults(config_of(model={"gate": {"radius": 9}})).model.gate == Gate(strength=0.5, radius=9)
    assert with_defaults(config_of(model={"gate": None})).model.gate is None


def test_a_default_mapping_is_one_value() -> None:
    defaults = {"model.sizes": {"a": 1, "b": 2}}
    assert with_defaults(config_of(), defaults).model.sizes == {"a": 1, "b": 2}
    assert with_defaults(config_of(model={"sizes": {"c": 3}}), defaults).model.sizes == {"c": 3}


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        pytest.param({"max_steps": 9, "warmup_steps": 4}, (9, None, 4, 0.0), id="alternatives"),
        pytest.param({"max_steps": None}, (None, 3, 0, 0.1), id="null-is-no-alternative"),
        pytest.param({"max_epochs": None}, (None, None, 0, 0.1), id="null-is-stated"),
    ],
)
def test_a_default_gives_way_to_another_way_of_saying_it(trainer: dict[str, Any], expected: tuple[Any, ...]) -> None:
    own = with_defaults(config_of(trainer=trainer)).trainer
    assert (own.max_steps, own.max_epochs, own.warmup_steps, own.warmup_fraction) == expected


class Respelt(TwoStageConfig):
    """A family with two names for one setting."""

    @classmethod
    def spellings(cls, key: str) -> tuple[str, ...]:
        pair = ("model.width", "evaluate.width")
        return pair if key in pair else (key,)


def test_a_default_gives_way_to_another_spelling() -> None:
    config = validate({"evaluate": {"width": 1}}, Respelt, "test")
    assert with_defaults(config).model.width == 8
    assert with_defaults(validate({"evaluate": {"film": False}}, Respelt, "test")).model.width == 5


def test_what_the_user_states_is_known_without_defaults() -> None:
    stage = Stage("film", objective="o", steps=1, metric="m", defaults=DEFAULTS, patch={"model.film": False})
    config = config_of(model={"width": 4}, stage_overrides={"film": {"seed": 3}})
    assert stage_raw(config, stage, with_defaults=False) == {"model": {"width": 4, "film": False}, "seed": 3}


def test_a_default_that_is_no_key_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"config of stage film.*\n.*model\.widht"):
        with_defaults(config_of(), {"model.widht": 5})


def test_the_command_line_reaches_every_stage() -> None:
    raw = {"family": "two", "stage_overrides": {"film": {"trainer.max_steps": 250, "seed": 3}}}
    config = validate(apply_overrides(raw, ["trainer.max_steps=300"], RunConfig), TwoStageConfig, "test")
    assert num_steps(stage_config(config, FILM), FILM) == num_steps(stage_config(config, BACKBONE), BACKBONE) == 300
    assert stage_config(config, FILM).seed == 3


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


def test_every_config_has_its_own_however_many_were_asked_for() -> None:
    """What was made is given again for the same config alone, not for another at its address."""
    for seed in range(100):
        config = config_of(stage_overrides={"film": {"seed": seed}})
        assert stage_config(config, FILM).seed == seed
        assert stage_config(config, FILM) is stage_config(config, FILM)
        assert stage_config(config, BACKBONE).seed == 0


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


def test_a_stage_may_be_so_many_epochs_long() -> None:
    assert num_steps(config_of(trainer={"batch_size": 4}), EXTRA, 10) == 6
    assert num_steps(config_of(), EXTRA) is None
    assert num_steps(config_of(trainer={"max_steps": 7}), EXTRA) == 7
    assert num_steps(config_of(trainer={"max_epochs": 1, "batch_size": 4}), EXTRA, 10) == 3
    assert [num_epochs(config_of(trainer=t), EXTRA) for t in ({}, {"max_steps": 7}, {"max_epochs": 5})] == [2, None, 5]
    assert num_epochs(config_of(), BACKBONE) is None


def test_a_loss_over_ranks_has_no_incomplete_group() -> None:
    stage = Stage("x", objective="o", epochs=2, metric="m", loss_over="ranks")
    assert num_steps(config_of(trainer={"batch_size": 4, "processes": 2}), stage, 23) == 4


def test_muon_without_matrices_is_refused() -> None:
    bare = Stage("x", objective="o", steps=1, metric="m")
    refuse_optimizer(replace(bare, matrices=("body.*",)), TrainerConfig(optimizer="muon"))
    refuse_optimizer(bare, TrainerConfig())
    with pytest.raises(ConfigError, match=r"trainer\.optimizer=muon: stage 'x' declares no matrices") as caught:
        refuse_optimizer(bare, TrainerConfig(optimizer="muon"))
    assert "trainer.optimizer=adamw" in caught.value.remedy


@pytest.mark.parametrize(
    ("loss_over", "trainer", "named"),
    [
        pytest.param("any", {"accumulate_grad_batches": 4, "processes": 2}, [], id="any"),
        pytest.param("ranks", {"processes": 2, "nodes": 2}, [], id="ranks-over-ranks"),
        pytest.param("ranks", {"accumulate_grad_batches": 4}, ["accumulate_grad_batches=4"], id="ranks-over-batches"),
        pytest.param("none", {}, [], id="none-alone"),
        pytest.param("none", {"nodes": 2}, ["nodes=2 x trainer.processes=1", "over 2 ranks"], id="none-over-nodes"),
        pytest.param(
            "none",
            {"accumulate_grad_batches": 4, "processes": 2},
            ["accumulate_grad_batches=4", "nodes=1 x trainer.processes=2"],
            id="none-over-both",
        ),
    ],
)
def test_a_loss_that_may_not_be_split_is_refused(loss_over: Any, trainer: dict[str, Any], named: list[str]) -> None:
    stage = Stage("x", objective="o", steps=1, metric="m", loss_over=loss_over)
    settings = TrainerConfig(**trainer)
    if not named:
        refuse_split(stage, settings)
        return
    with pytest.raises(ConfigError, match="the loss of stage 'x' may ") as caught:
        refuse_split(stage, settings)
    for part in named:
        assert part in caught.value.message
    assert ("trainer.accumulate_grad_batches=1" in caught.value.remedy) == ("accumulate_grad_batches" in trainer)
    assert ("trainer.processes=1" in caught.value.remedy) == (loss_over == "none")


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
