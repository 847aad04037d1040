"""What a run is called where its config does not say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stageline.errors import ConfigError
from stageline.families import FAMILIES, parse_config


@pytest.fixture(autouse=True)
def _toy_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "families"))
    monkeypatch.setitem(FAMILIES, "toy", "toy_family")


def test_the_family_names_a_run_once() -> None:
    config = parse_config({"family": "toy"}, ["seed=3", "trainer.batch_size=2"])
    assert config.run == "toy_S3.W2"
    plain = json.loads(config.model_dump_json(exclude_unset=True))
    assert parse_config(plain, ["seed=4"]).run == "toy_S3.W2", "what is stated travels with the config"


def test_a_run_that_is_named_keeps_its_name() -> None:
    assert parse_config({"family": "toy", "run": "Mine"}).run == "Mine"
    assert parse_config({"family": "toy"}, ["run=b"]).run == "b"


def test_a_family_without_a_rule_says_default() -> None:
    assert parse_config({"family": "film_flow"}).run == "default"


def test_faults_come_before_the_name() -> None:
    with pytest.raises(ConfigError, match="seed"):
        parse_config({"family": "toy", "seed": -1})
