"""Other programs' spellings of keys: one home per setting, whichever name it was given by."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageline.config import KeyFault, KeySpellings, RunConfig, Settings, get_key, put_key, validate
from stageline.errors import ConfigError

TABLE = KeySpellings(
    moved={"model.net.lr": "trainer.learning_rate", "bs": "trainer.batch_size"},
    same=(("model.size", "data.image.size"),),
    values={"trainer.accelerator": {"gpu": "cuda"}},
    refused={"model.old": "nothing reads it"},
    refused_prefixes={"debug_": "take it out"},
    refused_anywhere={"junk": "never read"},
    read=lambda raw, _faults: put_key(raw, "model.read", True),
)


class Model(Settings):
    size: int = 1
    read: bool = False


class Image(Settings):
    size: int = 1


class Data(Settings):
    image: Image = Image()


class Spelt(RunConfig):
    family: str = "spelt"
    model: Model = Model()
    data: Data = Data()
    SPELLINGS: ClassVar[KeySpellings] = TABLE


def faults(raw: dict[str, Any]) -> list[KeyFault]:
    return TABLE.normalise(raw)[1]


@given(st.integers(min_value=1, max_value=64), st.floats(min_value=1e-6, max_value=1.0))
def test_a_published_key_of_any_depth_is_read_as_ours(size: int, rate: float) -> None:
    published = {"bs": size, "model": {"net": {"lr": rate}, "size": size}}
    plain, found = TABLE.normalise(published)
    assert found == []
    assert get_key(plain, "trainer.batch_size") == size
    assert get_key(plain, "trainer.learning_rate") == rate
    assert get_key(plain, "data.image.size") == size
    assert get_key(plain, "model.net.lr") is None
    assert published["bs"] == size, "the raw mapping is left alone"
    again, found = TABLE.normalise(plain)
    assert (again, found) == (plain, []), "reading is idempotent"


def test_both_names_with_other_values_contradict_each_other_and_equal_ones_do_not() -> None:
    assert faults({"bs": 4, "trainer": {"batch_size": 4}}) == []
    (fault,) = faults({"bs": 4, "trainer": {"batch_size": 8}})
    assert fault.code == "E_CONTRADICTION"
    assert "4 contradicts trainer.batch_size 8" in fault.sentence
    (fault,) = faults({"model": {"size": 1}, "data": {"image": {"size": 2}}})
    assert fault.path == ("model", "size")
    (fault,) = faults({"stage_overrides": {"a": {"bs": 4, "trainer.batch_size": 8}}})
    assert fault.path == ("stage_overrides", "a", "bs")


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"model": {"old": 1}}, ("model", "old")),
        ({"model": {"deep": {"debug_this": 1}}}, ("model", "deep", "debug_this")),
        ({"model": {"deep": {"junk": 1}}}, ("model", "deep", "junk")),
    ],
)
def test_a_refused_key_says_why(raw: dict[str, Any], path: tuple[str, ...]) -> None:
    (fault,) = faults(raw)
    assert (fault.path, fault.code) == (path, "E_REFUSED_KEY")


def test_a_refused_prefix_counts_in_its_section_alone() -> None:
    assert faults({"data": {"debug_this": 1, "junk": 1}}) == []


def test_a_config_is_read_through_its_table_and_all_faults_come_at_once() -> None:
    config = validate({"family": "spelt", "bs": 3, "trainer": {"accelerator": "gpu"}, "model": {"size": 5}}, Spelt, "x")
    assert (config.trainer.batch_size, config.trainer.accelerator, config.data.image.size) == (3, "cuda", 5)
    assert config.model.read
    with pytest.raises(ConfigError) as caught:
        validate({"family": "spelt", "bs": 3, "trainer": {"batch_size": 4, "nope": 1}, "model": {"old": 1}}, Spelt, "x")
    for words in ("E_CONTRADICTION", "E_REFUSED_KEY", "trainer.nope"):
        assert words in str(caught.value)


def test_every_name_of_a_setting_is_found_from_each() -> None:
    assert Spelt.spellings("bs") == Spelt.spellings("trainer.batch_size") == ("bs", "trainer.batch_size")
    assert set(Spelt.spellings("model.size")) == {"model.size", "data.image.size"}


RULES = KeySpellings(
    rename=lambda key: (
        "stage_overrides." + key.removeprefix("per.").replace("lr", "trainer.learning_rate")
        if key.startswith("per.")
        else key.replace("bs", "trainer.batch_size")
    ),
)


def test_names_that_follow_a_rule_are_read_as_ours_in_stages_too() -> None:
    raw = {"bs": 3, "per": {"film": {"lr": 0.5}}, "stage_overrides": {"film": {"bs": 4}}}
    wanted = {
        "trainer": {"batch_size": 3},
        "stage_overrides": {"film": {"trainer": {"learning_rate": 0.5, "batch_size": 4}}},
    }
    assert RULES.normalise(raw) == (wanted, [])
    assert RULES.at_home(raw) == wanted
    assert RULES.normalise(wanted) == (wanted, [])


def test_two_names_by_a_rule_contradict_each_other_and_stay_for_validation_to_say() -> None:
    raw = {"per": {"film": {"lr": 0.5}}, "stage_overrides": {"film": {"trainer.learning_rate": 0.25}}}
    (fault,) = RULES.normalise(raw)[1]
    assert fault.path == ("per", "film", "lr")
    assert "contradicts stage_overrides.film.trainer.learning_rate 0.25" in fault.sentence
    assert RULES.at_home(raw) == raw
