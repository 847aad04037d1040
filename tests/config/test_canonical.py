"""Fingerprints see what can change a result and nothing else; written YAML reads back equal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from stageline.config import (
    RetentionConfig,
    RunConfig,
    Settings,
    TrainerConfig,
    added,
    canonical_json,
    fingerprint,
    flatten,
    identity,
    operational,
    parse_yaml,
    semantic,
    to_yaml,
    validate,
)


class Part(Settings):
    """A section with both kinds of field."""

    depth: int = 2
    cache: str = operational("auto")


class Model(Settings):
    """A section that nests others in every way."""

    rate: float = 0.5
    parts: tuple[Part, ...] = (Part(),)
    named: dict[str, Part] = Field(default_factory=lambda: {"a": Part()})
    words: dict[str, str] = Field(default_factory=dict)


class TinyConfig(RunConfig):
    """What a family's config looks like."""

    family: str = "tiny"
    model: Model = Model()
    data: Part = Part()


OPERATIONAL_CHANGES: list[dict[str, Any]] = [
    {"run": "other"},
    {"root": "s3://bucket/a"},
    {"trainer": {"num_workers": 4}},
    {"trainer": {"threads": 3}},
    {"trainer": {"accelerator": "cpu"}},
    {"trainer": {"keep": {"last": 9}}},
    {"trainer": {"checkpoint_every_steps": 5}},
    {"trainer": {"metrics_port": 9090}},
    {"trainer": {"max_seconds": 2.0}},
    {"code": ["own/losses.py"]},
    {"model": {"parts": [{"cache": "off"}]}},
    {"model": {"named": {"a": {"cache": "off"}}}},
    {"data": {"cache": "off"}},
]
SEMANTIC_CHANGES: list[dict[str, Any]] = [
    {"seed": 1},
    {"trainer": {"learning_rate": 1e-3}},
    {"trainer": {"batch_size": 4}},
    {"trainer": {"processes": 2}},
    {"trainer": {"nodes": 2}},
    {"trainer": {"max_steps": 5}},
    {"trainer": {"warmup_steps": 5}},
    {"trainer": {"schedule_power": 2.0}},
    {"model": {"rate": 0.25}},
    {"model": {"parts": [{"depth": 3}]}},
    {"model": {"parts": []}},
    {"model": {"named": {"b": {}}}},
    {"model": {"words": {"k": "v"}}},
]


def config_of(raw: dict[str, Any]) -> TinyConfig:
    return validate(raw, TinyConfig, "test")


@pytest.mark.parametrize("change", OPERATIONAL_CHANGES, ids=json.dumps)
def test_operational_fields_leave_the_fingerprint_alone(change: dict[str, Any]) -> None:
    assert config_of(change) != config_of({})
    assert fingerprint(semantic(config_of(change))) == fingerprint(semantic(config_of({})))


@pytest.mark.parametrize("change", SEMANTIC_CHANGES, ids=json.dumps)
def test_fields_that_can_change_a_result_change_the_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(semantic(config_of(change))) != fingerprint(semantic(config_of({})))


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_only_the_number_of_ranks_in_all_counts(nodes: int) -> None:
    spread = config_of({"trainer": {"nodes": nodes, "processes": 4 // nodes}})
    together = config_of({"trainer": {"processes": 4}})
    assert spread.trainer.world_size == 4
    assert semantic(spread) == semantic(together)
    assert semantic(spread)["trainer"]["processes"] == 4
    assert "nodes" not in semantic(spread)["trainer"]
    assert fingerprint(semantic(spread)) != fingerprint(semantic(config_of({})))


class Grown(TinyConfig):
    """A config whose class has got a field since it was first used."""

    power: float = added(1.0)
    extras: tuple[int, ...] = added(())


def test_a_field_that_was_added_is_no_part_of_the_fingerprint_at_its_default() -> None:
    before = semantic(config_of({}))
    assert semantic(validate({}, Grown, "test")) == before
    assert semantic(validate({"power": 1, "extras": []}, Grown, "test")) == before
    changed = semantic(validate({"power": 2.0, "extras": [3]}, Grown, "test"))
    assert changed == {**before, "power": 2.0, "extras": [3]}


def test_a_default_written_out_is_the_default() -> None:
    written = {"seed": 0, "model": {"rate": 0.5, "parts": [{"depth": 2}]}, "trainer": {"learning_rate": 0.0002}}
    assert fingerprint(semantic(config_of(written))) == fingerprint(semantic(config_of({})))


def test_the_fingerprint_is_fixed_for_good() -> None:
    # A change of this value makes every checkpoint ever written a stranger: it needs a new schema.
    assert fingerprint({"b": [1.0, True, None, "ä"], "a": {"x": 1e-4}}) == (
        "42f06f5baa0e9726296a79bd0a01bf6038fdd2061043a1bace032e6cb76feb87"
    )


def test_canonical_json_knows_one_spelling_per_value() -> None:
    assert canonical_json({"b": 1.0, "a": (1, 2)}) == '{"a":[1,2],"b":1}'
    assert canonical_json({"a": True}) != canonical_json({"a": 1})
    assert canonical_json(-0.0) == canonical_json(0) == "0"
    assert canonical_json("1") != canonical_json(1)
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_identity_takes_the_named_sections_only() -> None:
    assert set(identity(config_of({"trainer": {"learning_rate": 1e-3}}))) == {
        "family", "seed", "model.rate", "model.parts", "model.named.a.depth", "model.words", "data.depth",
    }  # fmt: skip
    assert identity(config_of({"trainer": {"learning_rate": 1e-3}})) == identity(config_of({"run": "b"}))
    assert identity(config_of({"model": {"rate": 0.25}})) != identity(config_of({}))


def test_identity_does_not_confuse_names_that_begin_alike() -> None:
    class Longer(TinyConfig):
        """`model_notes` is not part of `model`."""

        model_notes: str = "x"

    assert "model_notes" not in identity(Longer())


def test_flatten_keeps_lists_and_empty_mappings() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}


@pytest.mark.parametrize(
    "word",
    [
        "on",
        "off",
        "yes",
        "1e4",
        "1e-4",
        "010",
        "2026-01-31",
        "12:30",
        "0x10",
        "null",
        "~",
        "",
        " a ",
        "a: b",
        "#",
        "\x85",
        "\r",
        "a\nb",
    ],
)
def test_written_yaml_reads_back_equal_for_nasty_words(word: str) -> None:
    config = config_of({"root": word, "model": {"words": {word: word}}, "stages": [word]})
    assert config_of(parse_yaml(to_yaml(config), "written")) == config


printable = st.text(st.characters(blacklist_categories=("Cs",)), max_size=20)


@settings(max_examples=50)
@given(
    words=st.dictionaries(printable, printable, max_size=4),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    seed=st.integers(0, 2**62),
)
def test_written_yaml_reads_back_equal(words: dict[str, str], rate: float, seed: int) -> None:
    config = config_of({"seed": seed, "model": {"words": words, "rate": rate}})
    again = config_of(parse_yaml(to_yaml(config), "written"))
    assert again == config
    assert fingerprint(semantic(again)) == fingerprint(semantic(config))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | printable,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(printable, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(value=json_values)
def test_canonical_json_is_a_fixed_point(value: object) -> None:
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text
    assert json.loads(text) == value


def test_the_resolved_yaml_writes_defaults_out() -> None:
    plain = parse_yaml(to_yaml(config_of({})), "written")
    assert plain["trainer"]["keep"] == {"last": 2, "best": 1, "every_steps": 0, "unfinished": 1}
    assert set(plain["trainer"]) == set(TrainerConfig.model_fields)
    assert RetentionConfig(**plain["trainer"]["keep"]) == RetentionConfig()
