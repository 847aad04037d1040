"""Words of the command line: what they take the place of, and what they mean by the type of their field."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest

from stageline.config import KeySpellings, RunConfig, apply_overrides, get_key, replaced_overrides
from stageline.errors import ConfigError
from stageline.families import family_config, parse_config, raw_preset
from stageline.stage import stage_config


def test_overrides_win_in_order_and_leave_the_original_alone() -> None:
    raw = {"model": {"width": 8, "film": [0]}, "run": "a"}
    merged = apply_overrides(
        raw, ["model.width=16", "model.film=[2, 3]", "trainer.keep.last=1", "model.width=32"], RunConfig
    )
    assert merged == {"model": {"width": 32, "film": [2, 3]}, "run": "a", "trainer": {"keep": {"last": 1}}}
    assert raw == {"model": {"width": 8, "film": [0]}, "run": "a"}


def test_an_override_may_hold_equal_signs_and_spaces() -> None:
    assert apply_overrides({}, ["data.path = s3://b/k?x=1"], RunConfig) == {"data": {"path": "s3://b/k?x=1"}}


def test_an_override_into_an_empty_section_makes_it() -> None:
    assert apply_overrides({"model": None}, ["model.width=8"], RunConfig) == {"model": {"width": 8}}


def test_all_bad_overrides_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(
            {"seed": 1}, ["noequals", "=1", "a..b=1", "seed.x=1", "a=[", "b={c: 1, c: 2}", "ok=1"], RunConfig
        )
    text = str(caught.value)
    assert "6 faults" in text
    for part in ("'noequals'", "'=1'", "'a..b=1'", "seed is a value and no section", "'a=['", "stands twice"):
        assert part in text


PER_STAGE: dict[str, Any] = {
    "trainer": {"max_steps": 5},
    "stage_overrides": {
        "a": {"trainer.max_steps": 80, "trainer.keep.last": 3, "model": {"width": 4, "gate": {"on": True}}},
        "b": {"trainer": {"max_steps": 250}},
    },
}


@pytest.mark.parametrize(
    ("key", "left", "replaced"),
    [
        pytest.param(
            "trainer.max_steps=1",
            {"a": {"trainer.keep.last": 3, "model": {"width": 4, "gate": {"on": True}}}},
            ["a.trainer.max_steps", "b.trainer.max_steps"],
            id="dotted-and-nested",
        ),
        pytest.param(
            "trainer={}",
            {"a": {"model": {"width": 4, "gate": {"on": True}}}},
            ["a.trainer.max_steps", "a.trainer.keep.last", "b.trainer"],
            id="what-lies-below",
        ),
        pytest.param(
            "model.gate.on=false",
            {
                "a": {"trainer.max_steps": 80, "trainer.keep.last": 3, "model": {"width": 4}},
                "b": {"trainer": {"max_steps": 250}},
            },
            ["a.model.gate.on"],
            id="one-leaf-of-a-section",
        ),
        pytest.param("trainer.max_step=1", PER_STAGE["stage_overrides"], [], id="names-that-begin-alike"),
    ],
)  # fmt: skip
def test_a_key_of_the_command_line_takes_the_place_of_stage_overrides(
    key: str, left: dict[str, Any], replaced: list[str]
) -> None:
    assert replaced_overrides(PER_STAGE, [key], RunConfig) == [f"stage_overrides.{name}" for name in replaced]
    assert apply_overrides(PER_STAGE, [key], RunConfig)["stage_overrides"] == left
    assert PER_STAGE["stage_overrides"]["a"]["trainer.max_steps"] == 80


@pytest.mark.parametrize("turned", [False, True])
def test_a_stage_override_of_the_command_line_wins_in_any_order(turned: bool) -> None:
    words = ["stage_overrides.a.trainer.max_steps=7", "trainer.max_steps=300"]
    merged = apply_overrides(PER_STAGE, words[::-1] if turned else words, RunConfig)
    assert merged["trainer"]["max_steps"] == 300
    assert merged["stage_overrides"]["a"]["trainer"] == {"max_steps": 7}
    assert "trainer.max_steps" not in merged["stage_overrides"]["a"]
    assert "b" not in merged["stage_overrides"]


def test_nothing_is_left_of_stage_overrides_that_are_all_replaced() -> None:
    raw = {"stage_overrides": {"a": {"trainer.max_steps": 80}}}
    assert apply_overrides(raw, ["trainer.max_steps=1"], RunConfig) == {"trainer": {"max_steps": 1}}


class Spelt(RunConfig):
    """A family with two names of one setting."""

    SPELLINGS: ClassVar[KeySpellings] = KeySpellings(moved={"model.rate": "trainer.learning_rate"})


@pytest.mark.parametrize("name", ["trainer.learning_rate", "model.rate"])
def test_a_key_takes_the_place_of_its_setting_under_every_name(name: str) -> None:
    raw = {
        "model": {"rate": 0.5, "width": 4},
        "stage_overrides": {"a": {"model.rate": 1, "trainer": {"learning_rate": 2}, "seed": 3}},
    }
    merged = apply_overrides(raw, [f"{name}=5e-1"], Spelt)
    section, key = name.split(".")
    assert merged[section][key] == 0.5
    assert merged["stage_overrides"] == {"a": {"seed": 3}}
    assert "rate" not in merged["model"] or name == "model.rate"
    in_stages = ["stage_overrides.a.model.rate", "stage_overrides.a.trainer.learning_rate"]
    others = ["model.rate"] if name != "model.rate" else []
    assert replaced_overrides(raw, [f"{name}=5e-1"], Spelt) == others + in_stages


@pytest.mark.parametrize(
    ("word", "left", "replaced"),
    [
        ("trainer.max_epochs=3", {"max_epochs": 3}, ["trainer.max_steps", "stage_overrides.a.trainer.max_steps"]),
        ("stage_overrides.a.trainer.max_epochs=3", {"max_steps": 9}, ["stage_overrides.a.trainer.max_steps"]),
        ("trainer.max_epochs=null", {"max_steps": 9, "max_epochs": None}, []),
        ("trainer.warmup_steps=5", {"max_steps": 9, "warmup_steps": 5}, []),
    ],
)
def test_a_key_takes_the_place_of_its_alternative_too(word: str, left: dict[str, Any], replaced: list[str]) -> None:
    raw = {"trainer": {"max_steps": 9}, "stage_overrides": {"a": {"trainer.max_steps": 8, "seed": 1}}}
    merged = apply_overrides(raw, [word], RunConfig)
    assert merged["trainer"] == left
    assert replaced_overrides(raw, [word], RunConfig) == replaced
    assert ("trainer.max_steps" in merged["stage_overrides"]["a"]) == (not replaced)


def test_of_two_words_for_one_key_the_last_counts_and_the_first_is_named() -> None:
    words = ["trainer.max_steps=3", "seed=1", "trainer.max_steps=4"]
    assert apply_overrides({}, words, RunConfig) == {"trainer": {"max_steps": 4}, "seed": 1}
    assert replaced_overrides({}, words, RunConfig) == ["trainer.max_steps=3"]


def film_flow(*words: str, **stated: Any) -> Any:
    """The tiny preset of film_flow with words of a command line."""
    return parse_config({**raw_preset("film_flow", "tiny"), **stated}, words)


def value_of(key: str, text: str) -> Any:
    """What a word makes of a key of film_flow."""
    return get_key(film_flow(f"{key}={text}").model_dump(by_alias=True), key)


def refusal(*words: str, **stated: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        film_flow(*words, **stated)
    return str(caught.value)


TEXTS = [
    *("vessel #1", "#", "vessel: thin", "12", "1e3", "-0.5", "true", "no", "2024-01-31", "12:30", "0x10", ".inf"),
    *("@a", "%b", "*c", "&d", "!e", "!!int 3", "- f", "? g", "| h", "> i", "`j`", "[k]", "[l", "{m: n}", "{", "a, b"),
    *("it's", 'say "so"', '"so" and "so"', "a = b", "a=b", "Gefäß", "血管", "~", "~5 vessels", "Null", "$HOME"),
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_field_of_text_takes_every_text_as_it_is(text: str) -> None:
    assert value_of("evaluate.prompt", text) == text
    assert value_of("model.vlm_film_config.prompt_templates.folder", text) == text
    assert value_of("evaluate.prompt", f"  {text} ") == text, "blanks around a word do not count"


@pytest.mark.parametrize(
    ("text", "value"),
    [("'12'", "12"), ("''", ""), ('""', ""), ("' a '", " a "), ("'null'", "null"), (r'"a\tb"', "a\tb"), ("null", None)],
)
def test_quotes_hold_what_has_no_other_way(text: str, value: str | None) -> None:
    assert value_of("evaluate.prompt", text) == value


@pytest.mark.parametrize("name", ["2024", "123e4567", "2024-01-01", "1e3", "true", "0755", "12_000", "1.0", "NULL"])
def test_a_run_may_be_named_by_digits(name: str) -> None:
    assert film_flow(f"run={name}").run == name
    assert film_flow(f"run='{name}'").run == name


@pytest.mark.parametrize("root", ["/data/a #1", "/data/a: b", "s3://b/k?x=1", "./~x", "12"])
def test_a_root_keeps_every_character(root: str) -> None:
    assert film_flow(f"root={root}").root == root


@pytest.mark.parametrize(
    ("text", "value"), [("1000", 1000), ("1e3", 1000), ("1.5E3", 1500), ("2000.0", 2000), ("+7", 7), ("010", 10)]
)
def test_a_whole_number_is_one_however_it_is_written(text: str, value: int) -> None:
    (item,) = apply_overrides({}, [f"model.channel_mult=[{text}]"], type(film_flow()))["model"]["channel_mult"]
    for found in (value_of("trainer.max_steps", text), item):
        assert found == value
        assert type(found) is int
    own = film_flow(f"stage_overrides.film.trainer.max_steps={text}")
    assert own.stage_overrides["film"]["trainer"] == {"max_steps": value}


@pytest.mark.parametrize(
    ("written", "value"), [(1e3, 1000), (1500.0, 1500), (2**53 * 1.0, 2**53)], ids=["1e3", "1500.0", "2**53"]
)
def test_a_whole_number_of_a_file_is_one_too(written: float, value: int) -> None:
    raw = {"trainer": {"max_steps": written}, "stage_overrides": {"film": {"trainer.batch_size": written}}}
    config = film_flow(**raw)
    assert type(config.trainer.max_steps) is int
    assert config.trainer.max_steps == value
    assert type(config.stage_overrides["film"]["trainer.batch_size"]) is int


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("1", 1.0), (".5", 0.5), ("3.", 3.0), ("1e3", 1000.0)])
def test_a_number_is_one_however_it_is_written(text: str, value: float) -> None:
    assert value_of("trainer.learning_rate", text) == value
    assert value_of("trainer.learning_rate", f" {text} ") == value


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "false", "False"])
def test_truth_has_two_words(text: str) -> None:
    assert value_of("trainer.use_ema", text) is (text.lower() == "true")


@pytest.mark.parametrize(
    ("word", "sentences"),
    [
        pytest.param("trainer.max_steps=1_000", ("trainer.max_steps", "write 1000"), id="underscore"),
        pytest.param("trainer.max_steps=0x10", ("trainer.max_steps", "write 16"), id="hexadecimal"),
        pytest.param("trainer.max_steps='12'", ("trainer.max_steps", "write 12"), id="number-in-quotes"),
        pytest.param("trainer.max_steps=1.5", ("trainer.max_steps", "1.5"), id="fraction"),
        pytest.param("trainer.max_steps=-3", ("trainer.max_steps", "greater than or equal to 1"), id="negative"),
        pytest.param("trainer.max_steps=1e9999999999", ("trainer.max_steps", "1e9999999999"), id="beyond-reckoning"),
        pytest.param("trainer.learning_rate= inf", ("trainer.learning_rate", "'inf'"), id="infinite"),
        pytest.param("trainer.learning_rate=.nan", ("trainer.learning_rate", "'.nan'"), id="nan"),
        pytest.param("trainer.learning_rate=1e999", ("trainer.learning_rate", "'1e999'"), id="too-large"),
        pytest.param("trainer.use_ema=yes", ("trainer.use_ema", "write true"), id="yes"),
        pytest.param("trainer.use_ema=off", ("trainer.use_ema", "write false"), id="off"),
        pytest.param("trainer.use_ema=1", ("trainer.use_ema", "write true"), id="one"),
        pytest.param("trainer.precision=16", ("trainer.precision", "'16-mixed'"), id="choice"),
        pytest.param("model.image_channels=2", ("model.image_channels", "1 or 3"), id="number-of-a-choice"),
        pytest.param("trainer=5", ("trainer is a section", "trainer.<key>"), id="section"),
        pytest.param("cluster.env=5", ("cluster.env", "cluster.env.<name>"), id="names"),
        pytest.param("run=null", ("run", "null is no value here"), id="null"),
        pytest.param("trainer.max_steps=None", ("trainer.max_steps", "is written null"), id="none-of-python"),
        pytest.param("stages=film", ("stages=[film]",), id="list"),
        pytest.param("model.channel_mult=(1,2)", ("model.channel_mult", "channel_mult=[1,2]"), id="tuple-of-python"),
        pytest.param("model.channel_mult.0=2", ("list is given whole", "model.channel_mult=["), id="item"),
        pytest.param("stage_overrides.film.model.channel_mult.1=2", ("list is given whole",), id="item-of-a-stage"),
        pytest.param("model.vlm_film_decoder_stages.0=2", ("list is given whole",), id="item-of-null"),
        pytest.param("trainer.max_steps.x=2", ("trainer.max_steps is a value",), id="below-a-value"),
        pytest.param("model.channel_mult=[1, 2", ("model.channel_mult", "not YAML"), id="broken-list"),
        pytest.param("model.channel_mult=[1, two]", ("model.channel_mult.1", "'two'"), id="item-of-a-list"),
        pytest.param("trainer.lr=1", ("did you mean 'trainer.learning_rate'?",), id="initials"),
        pytest.param("trainer.lrate=1", ("did you mean 'trainer.learning_rate'?",), id="beginnings"),
        pytest.param("trainer.valbatchsize=1", ("did you mean 'trainer.validation_batch_size'?",), id="of-three-words"),
        pytest.param("lr=1", ("did you mean 'trainer.learning_rate'?",), id="initials-elsewhere"),
        pytest.param("model.lr=1", ("did you mean 'trainer.learning_rate'?",), id="initials-of-one-home"),
        pytest.param("trainer.epochs=1", ("did you mean 'trainer.max_epochs'?",), id="shortened"),
        pytest.param("trainer.steps=1", ("'trainer.max_steps'",), id="one-of-its-words"),
        pytest.param("trainer.bs=1", ("did you mean 'trainer.batch_size'?",), id="short"),
        pytest.param("trainer.gpus=1", ("did you mean 'trainer.processes'?",), id="word-of-others"),
        pytest.param("trainer.keep.lst=1", ("did you mean 'trainer.keep.last'?",), id="misspelt"),
        pytest.param("model.lerning_rate=1", ("did you mean 'trainer.learning_rate'?",), id="misspelt-elsewhere"),
        pytest.param("data.data_root=here", ("data.data_root: unknown key; known here: ",), id="of-another-family"),
        pytest.param("seed=18446744073709551616", ("seed", "18446744073709551615"), id="65-bits"),
        pytest.param("seed=1e30", ("seed", "18446744073709551615"), id="65-bits-in-short"),
        pytest.param("seed=-1", ("seed", "greater than or equal to 0"), id="negative-seed"),
        pytest.param("mine.yaml", ("-c mine.yaml",), id="file"),
        pytest.param("tiny", ("--preset",), id="preset"),
        pytest.param("preset=tiny", ("--preset tiny",), id="option"),
        pytest.param("config=mine.yaml", ("-c mine.yaml",), id="option-of-a-file"),
        pytest.param("cluster.tolerations=[{key:a}]", ("toleration 0 has no ['key:a']",), id="no-blank-behind-a-colon"),
    ],
)  # fmt: skip
def test_what_does_not_fit_says_what_would(word: str, sentences: tuple[str, ...]) -> None:
    message = refusal(word)
    for sentence in sentences:
        assert sentence in message


@pytest.mark.parametrize("key", ["evaluate.prompt", "run", "root", "trainer.max_steps", "stages", "trainer.use_ema"])
@pytest.mark.parametrize("blank", ["", "  "])
def test_an_unset_variable_is_no_value(key: str, blank: str) -> None:
    assert f"'{key}={blank}': nothing stands behind `=`" in refusal(f"{key}={blank}")


@pytest.mark.parametrize("key", ["evaluate.prompt", "trainer.max_steps", "model.film_limit", "stages"])
def test_null_is_written(key: str) -> None:
    assert value_of(key, "null") is None


def test_the_items_of_a_list_are_typed_too() -> None:
    config = film_flow("stages=[film]", "code=[a.py, 2024.py, 12, 'b #1.py', ~]", "trainer.betas=[0.9, 1e-1]")
    assert config.code[:4] == ("a.py", "2024.py", "12", "b #1.py")
    assert config.trainer.betas == (0.9, 0.1)
    config = film_flow("evaluate.checkpoints={old: 12, new: runs/a/film}", "trainer.keep={last: 1e1}")
    assert config.evaluate.checkpoints == {"old": "12", "new": "runs/a/film"}
    assert config.trainer.keep.last == 10
    config = film_flow("stage_overrides.film={trainer.max_steps: 1e2, seed: 3}")
    assert config.stage_overrides == {
        "backbone": {"trainer.max_steps": 80},
        "film": {"trainer.max_steps": 100, "seed": 3},
    }


@pytest.mark.parametrize("name", ["nvidia.com/gpu", '"nvidia.com/gpu"', "'nvidia.com/gpu'"])
def test_a_name_with_dots_is_one_key(name: str) -> None:
    raw = {"cluster": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}
    for words in ([f"cluster.resources.limits.{name}=8"], ["cluster.resources.limits={nvidia.com/gpu: 8}"]):
        merged = apply_overrides(raw, words, RunConfig)
        assert merged["cluster"]["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    own = film_flow(f"stage_overrides.film.cluster.resources.limits.{name}=8", "trainer.processes=8")
    stage = stage_config(own, family_config("film_flow").stages["film"])
    assert stage.cluster.resources.limits == {"nvidia.com/gpu": "8"}


@pytest.mark.parametrize(
    ("stated", "sentences"),
    [
        pytest.param({"run": 2024}, ("run: ", 'run: "2024"'), id="year"),
        pytest.param({"run": math.inf}, ("run: ", "in quotes"), id="hash-of-digits-and-e"),
        pytest.param({"evaluate": {"prompt": 12}}, ('evaluate.prompt: ', 'prompt: "12"'), id="prompt"),
        pytest.param({"evaluate": {"prompt": {"vessel": "thin"}}}, ("evaluate.prompt: ", "in quotes"), id="colon"),
        pytest.param({"cluster": {"annotations": {"a": False}}}, ("annotations.a: ", 'a: "false"'), id="annotation"),
        pytest.param({"cluster": {"labels": {"b/c": 1}}}, ("labels.b/c: ", 'b/c: "1"'), id="label"),
        pytest.param({"cluster": {"node_selector": {"d": True}}}, ('d: "true"',), id="node-label"),
        pytest.param({"trainer": {"max_steps": "12"}}, ("trainer.max_steps: ", "write 12"), id="number-in-quotes"),
        pytest.param({"trainer": {"learning_rate": math.inf}}, ("trainer.learning_rate: inf is no finite",), id="inf"),
        pytest.param({"model": {"image_size": 64}, "data": {"image_size": 48}}, ("64 contradicts data.image_size 48",),
                     id="two-names"),
    ],
)  # fmt: skip
def test_a_value_of_a_file_that_does_not_fit_names_its_key_and_what_would(
    stated: dict[str, Any], sentences: tuple[str, ...]
) -> None:
    message = refusal(**stated)
    assert "1 fault" in message
    for sentence in sentences:
        assert sentence in message


def test_a_home_folder_is_written_out_where_the_config_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/somebody")
    words = ("root=~/lab", "data.train_dir=~/a", "data.val_dir=~", "data.name=folder", "model.cond_source=image")
    config = film_flow(
        *words, "code=[~/b.py]", "parents.film.default=~/c", "evaluate.checkpoints={d: ~/d}", "evaluate.prompt=~/e"
    )
    assert (config.root, config.data.train_dir, config.data.val_dir) == (
        "/users/somebody/lab", "/users/somebody/a", "/users/somebody",
    )  # fmt: skip
    assert config.code == ("/users/somebody/b.py",)
    assert config.parents == {"film": {"default": "/users/somebody/c"}}
    assert config.evaluate.checkpoints == {"d": "/users/somebody/d"}
    assert config.evaluate.prompt == "~/e", "a prompt is no path"
    assert film_flow(root="~/lab").root == "/users/somebody/lab", "in a file too"
    assert film_flow("root=s3://a/~/b").root == "s3://a/~/b"


@pytest.mark.parametrize("root", ["~/lab", "~", "~nobody-of-this-name/lab"])
def test_a_home_folder_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)  # a number that no user has
    message = refusal(f"root={root}")
    assert "root: " in message
    assert "no home folder is known" in message
