"""YAML: what surprises in YAML 1.1 is plain here, and every bad line is named at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from stageline.config import parse_yaml, read_yaml, set_dotted
from stageline.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("on", "on", id="on-is-a-word"),
        pytest.param("off", "off", id="off-is-a-word"),
        pytest.param("yes", "yes", id="yes-is-a-word"),
        pytest.param("NO", "NO", id="no-is-a-word"),
        pytest.param("true", True, id="true"),
        pytest.param("False", False, id="false"),
        pytest.param("1e-4", 1e-4, id="exponent-without-point"),
        pytest.param("-1E+3", -1000.0, id="signed-exponent"),
        pytest.param(".5", 0.5, id="leading-point"),
        pytest.param("3.", 3.0, id="trailing-point"),
        pytest.param("010", 10, id="no-octal"),
        pytest.param("0x10", "0x10", id="no-hexadecimal"),
        pytest.param("12:30", "12:30", id="no-base-60"),
        pytest.param("1_000", "1_000", id="no-underscores"),
        pytest.param("2026-01-31", "2026-01-31", id="no-date"),
        pytest.param(".inf", ".inf", id="no-infinity"),
        pytest.param(".nan", ".nan", id="no-nan"),
        pytest.param("=", "=", id="no-value-tag"),
        pytest.param("~", None, id="tilde"),
        pytest.param("null", None, id="null"),
        pytest.param("", None, id="empty"),
        pytest.param("'1'", "1", id="quoted"),
        pytest.param("[2, 3]", [2, 3], id="list"),
        pytest.param("{a: {b: on}}", {"a": {"b": "on"}}, id="mapping"),
    ],
)
def test_a_plain_word_means_what_it_shows(text: str, value: object) -> None:
    parsed = parse_yaml(text, "test")
    assert parsed == value
    assert type(parsed) is type(value)


def test_every_key_that_stands_twice_is_named_with_both_lines() -> None:
    text = "a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\na: 2\n"
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "film.yaml")
    assert "film.yaml: 1 fault" in str(caught.value)
    assert "line 6: the key 'a' stands twice (first in line 1)" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        parse_yaml("x: {c: 1, c: 2}\ny: {d: 1, d: 2}", "film.yaml")
    assert "2 faults" in str(caught.value)


@pytest.mark.parametrize("key", ["1", "true", "null", "1.5"])
def test_a_key_that_is_no_text_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="is no text; put it in quotes"):
        parse_yaml(f"{key}: x", "test")


def test_a_key_made_of_a_list_is_refused() -> None:
    with pytest.raises(ConfigError, match="made of several values"):
        parse_yaml("? [a, b]\n: 1", "test")


def test_a_merge_key_is_not_a_duplicate() -> None:
    text = "base: &base {x: 1, y: 1}\nother:\n  <<: *base\n  y: 2\n"
    assert parse_yaml(text, "test")["other"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("text", ["!!python/object/apply:os.getcwd []", "!!binary aGk=", "!!set {a}", "!other 1"])
def test_tags_construct_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match="is no kind of config value"):
        parse_yaml(f"a: {text}", "test")


@pytest.mark.parametrize("text", ["a: [", "a: 1\n b: 2", "\t- x", "a: *nowhere", "--- a\n--- b\n"])
def test_broken_yaml_says_where(text: str) -> None:
    with pytest.raises(ConfigError, match=r"film\.yaml is not YAML"):
        parse_yaml(text, "film.yaml")


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("family: film_flow\n", encoding="utf-8")
    assert read_yaml(file) == {"family": "film_flow"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "no config file at", id="absent"),
        pytest.param(b"", "holds nothing", id="empty"),
        pytest.param(b"- a\n- b\n", "holds a list", id="list"),
        pytest.param(b"\xff\xfe\x00", "cannot be read", id="not-utf-8"),
    ],
)
def test_a_file_that_is_no_config_says_why(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(file)
    assert "config.yaml" in str(caught.value)
    assert caught.value.remedy


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)


def test_set_dotted_tells_what_is_in_the_way() -> None:
    target = {"a": {"b": 1}}
    assert set_dotted(target, "a.b.c", 2) == "a.b"
    assert target == {"a": {"b": 1}}
    assert set_dotted(target, "a.c.d", 2) is None
    assert target == {"a": {"b": 1, "c": {"d": 2}}}
