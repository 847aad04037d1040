"""Raw data to settings: every fault at once, by its dotted key, with the nearest word."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from pydantic import Field, ValidationError, model_validator

from stageline.config import (
    RunConfig,
    Settings,
    TrainerConfig,
    dotted_fields,
    json_schema,
    nearest,
    operational,
    validate,
)
from stageline.errors import ConfigError


class Gate(Settings):
    """A nested section."""

    strength: float = Field(default=1.0, ge=0)
    apply_stages: tuple[int, ...] = ()


class Model(Settings):
    """A section."""

    width: int = Field(default=32, ge=1)
    use_film: bool = False
    gate: Gate = Gate()
    second_gate: Gate | None = None

    @model_validator(mode="after")
    def _contradiction(self) -> Model:
        if self.use_film and self.width < 2:
            raise ValueError("E_WIDTH: film needs a width of 2 or more")
        return self


class Imported(Settings):
    """A section whose key is no Python name."""

    stages: tuple[int, ...] | None = None


class SmallConfig(RunConfig):
    """What a family's config looks like."""

    model: Model = Model()
    import_: Imported = Field(default=Imported(), alias="import")
    cache: str = operational("auto")


GOOD: dict[str, Any] = {"family": "small"}


def faults_of(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(raw, SmallConfig, "config.yaml")
    return str(caught.value)


def test_defaults_fill_what_is_absent() -> None:
    config = validate(GOOD, SmallConfig, "config.yaml")
    assert config.model.width == 32
    assert config.trainer == TrainerConfig()
    assert config.run == "default"


def test_settings_are_frozen() -> None:
    config = validate(GOOD, SmallConfig, "config.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3


def test_every_fault_is_reported_at_once() -> None:
    text = faults_of(
        {
            "run": ".hidden",
            "seed": -1,
            "model": {"widht": 8, "use_film": 1, "gate": {"strength": "much"}},
            "trainer": {"max_steps": 3, "max_epochs": 2},
        }
    )
    assert "config.yaml: 7 faults" in text
    for part in (
        "family: required, and absent",
        "run: '.hidden' is no run name",
        "seed: Input should be greater than or equal to 0 (found -1)",
        "model.widht: unknown key; did you mean 'model.width'?",
        "model.use_film: Input should be a valid boolean (found 1)",
        "model.gate.strength: Input should be a valid number (found 'much')",
        "trainer: max_steps and max_epochs contradict each other",
    ):
        assert part in text
    assert "`stageline init`" in text


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        pytest.param({"trianer": {}}, "trianer: unknown key; did you mean 'trainer'?", id="misspelt-section"),
        pytest.param({"model": {"wdth": 1}}, "did you mean 'model.width'?", id="misspelt-key"),
        pytest.param({"learning_rate": 1.0}, "did you mean 'trainer.learning_rate'?", id="wrong-section"),
        pytest.param({"model": {"max_steps": 1}}, "did you mean 'trainer.max_steps'?", id="key-of-another-section"),
        pytest.param({"model": {"lerning_rate": 1}}, "did you mean 'trainer.learning_rate'?", id="misspelt-elsewhere"),
        pytest.param({"model": {"second_gate": {"strenth": 1}}}, "'model.second_gate.strength'", id="optional-section"),
        pytest.param({"imports": {}}, "did you mean 'import'?", id="alias"),
        pytest.param({"import": {"stage": [1]}}, "did you mean 'import.stages'?", id="in-alias"),
        pytest.param({"model": {"zzzzzz": 1}}, "known here: width, use_film, gate, second_gate", id="nothing-near"),
    ],
)
def test_an_unknown_key_names_the_nearest(raw: dict[str, Any], hint: str) -> None:
    text = faults_of({**GOOD, **raw})
    assert hint in text
    assert text.startswith("E_UNKNOWN_KEY: ")


def test_a_fault_keeps_the_code_of_its_rule() -> None:
    with pytest.raises(ConfigError) as caught:
        validate({**GOOD, "model": {"use_film": True, "width": 1}}, SmallConfig, "config.yaml")
    assert caught.value.code == "E_WIDTH"
    assert "model: E_WIDTH: film needs a width of 2 or more" in caught.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("seed", "1", id="text-for-integer"),
        pytest.param("seed", 1.5, id="fraction-for-integer"),
        pytest.param("seed", True, id="truth-for-integer"),
        pytest.param("run", 12, id="number-for-text"),
        pytest.param("model", None, id="null-for-section"),
        pytest.param("model", [1], id="list-for-section"),
        pytest.param("stages", "film", id="text-for-list"),
    ],
)
def test_a_value_of_another_type_is_not_converted(field: str, value: object) -> None:
    assert f"- {field}: " in faults_of({**GOOD, field: value})


@pytest.mark.parametrize(
    "run", ["", ".", "..", ".a", "a b", "a/b", "a" * 81, "a\n", "ä", "A:b"], ids=lambda run: repr(run)[:12]
)
def test_what_is_no_run_name_is_refused(run: str) -> None:
    assert "is no run name" in faults_of({**GOOD, "run": run})


@pytest.mark.parametrize("seed", [2**64, 10**30])
def test_a_seed_has_64_bits(seed: int) -> None:
    assert "seed: Input should be less than or equal to 18446744073709551615" in faults_of({**GOOD, "seed": seed})
    assert validate({**GOOD, "seed": 2**64 - 1}, SmallConfig, "config.yaml").seed == 2**64 - 1


def test_two_ways_to_say_the_warm_up_contradict_each_other() -> None:
    text = faults_of({**GOOD, "trainer": {"warmup_steps": 5, "warmup_fraction": 0.1}})
    assert "trainer: warmup_fraction and warmup_steps contradict each other" in text


@pytest.mark.parametrize("run", ["a", "0", "a-b", "a--b", "A.b_C-1", "_a", "anyres-e2p.2026", "a" * 80])
def test_dns_safe_run_names_pass(run: str) -> None:
    assert validate({**GOOD, "run": run}, SmallConfig, "x").run == run


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object()], ids=["nan", "inf", "set", "object"])
def test_what_is_no_json_is_refused(value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        validate({**GOOD, "seed": value}, SmallConfig, "config.yaml")
    assert "config.yaml" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_setting_is_infinite_however_it_is_made(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        TrainerConfig(learning_rate=value)
    with pytest.raises(ConfigError, match=f"trainer.learning_rate: {value} is no finite number"):
        validate({**GOOD, "trainer": {"learning_rate": value}}, SmallConfig, "config.yaml")


def test_a_long_value_is_shortened_in_the_message() -> None:
    text = faults_of({**GOOD, "seed": "x" * 10_000})
    assert len(text) < 1_000


def test_dotted_fields_lists_leaves_by_their_yaml_spelling() -> None:
    keys = dotted_fields(SmallConfig)
    assert "trainer.keep.last" in keys
    assert "model.gate.strength" in keys
    assert "import.stages" in keys
    assert "trainer" not in keys
    without = dotted_fields(SmallConfig, with_operational=False)
    assert set(keys) - set(without) >= {"run", "root", "cache", "trainer.keep.last", "trainer.num_workers"}
    assert "trainer.learning_rate" in without


@pytest.mark.parametrize(("word", "found"), [("trianer", "trainer"), ("model", "model"), ("qqq", None), ("", None)])
def test_nearest(word: str, found: str | None) -> None:
    assert nearest(word, ["trainer", "model"]) == found


def test_the_schema_accepts_what_we_accept_and_refuses_what_we_refuse() -> None:
    schema = json_schema(SmallConfig)
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    assert validator.is_valid({"family": "small", "model": {"gate": {"strength": 2}}, "import": {"stages": [1]}})
    for bad in ({}, {"family": 1}, {"family": "small", "modle": {}}, {"family": "small", "trainer": {"max_steps": 0}}):
        assert not validator.is_valid(bad)


def test_every_key_of_the_schema_says_what_it_is_or_speaks_for_itself() -> None:
    trainer = json_schema(SmallConfig)["$defs"]["TrainerConfig"]["properties"]
    assert trainer["learning_rate"]["description"].startswith("Peak learning rate")
    assert trainer["metrics_port"]["description"]
