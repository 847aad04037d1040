"""Commands that look: init, plan, schema, help; what they print and what they leave alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from guards import HANG_SECONDS

import stageline
from stageline.cli import main
from stageline.cli.configuration import raw_preset, read_config, split_overrides
from stageline.cli.starter import starter_yaml
from stageline.cli.training import ending_on_signals
from stageline.config import fingerprint, flatten, note_once, semantic
from stageline.errors import CheckpointError, InterruptedRunError, PlanError
from stageline.families import FAMILIES, family_config, load_config, parse_config
from stageline.layers.ema import LEFTOVER_FRACTION, leftover_fraction
from stageline.stage import num_steps, stage_config
from stageline.work.evaluations import asked_checkpoints

TINY = ["--family", "film_flow", "--preset", "tiny"]
PRESETS = [(family, preset) for family in FAMILIES for preset in family_config(family).presets]
VERBS = ["init", "plan", "prepare", "train", "evaluate", "predict", "schema"]
VERBS += ["run", "report", "runs", "pipeline", "checkpoint", "job"]


@pytest.mark.parametrize(("family", "preset"), PRESETS)
def test_the_starter_config_reads_back_as_its_preset(tmp_path: Path, family: str, preset: str) -> None:
    file = tmp_path / "sub" / "config.yaml"
    assert main(["init", "--family", family, "--preset", preset, "-o", str(file)]) == 0
    written, meant = load_config(file), parse_config(raw_preset(family, preset))
    assert written == meant
    assert fingerprint(semantic(written)) == fingerprint(semantic(meant))


@pytest.mark.parametrize(("family", "preset"), PRESETS)
def test_a_shipped_preset_warns_about_nothing(caplog: pytest.LogCaptureFixture, family: str, preset: str) -> None:
    note_once.cache_clear()
    record, config = family_config(family), parse_config(raw_preset(family, preset))
    for stage in record.selected(config):
        own = stage_config(config, stage)
        record.check(own, stage)
        steps = num_steps(own, stage, 64)
        assert steps is not None
        if own.trainer.use_ema:
            assert leftover_fraction(own.trainer.ema_decay, steps) < LEFTOVER_FRACTION
    assert not caplog.records


@pytest.mark.parametrize(("family", "preset"), PRESETS)
def test_a_starter_config_names_each_setting_once(family: str, preset: str) -> None:
    config = parse_config(raw_preset(family, preset))
    stated = flatten(yaml.safe_load(starter_yaml(config, preset)))
    names = [name for key in stated for name in config.spellings(key)]
    assert sorted(names) == sorted(set(names))
    text = starter_yaml(config, preset)
    assert text.count("image_size:") <= 1
    assert "Another name of" not in text


def test_the_starter_config_documents_its_keys(tmp_path: Path) -> None:
    text = starter_yaml(parse_config(raw_preset("film_flow", "tiny")), "tiny")
    assert "# Optimizer steps of the stage" in text
    assert "# max_steps: null" in text
    assert "batch_size: 8" in text


def test_every_key_behind_a_hash_in_the_starter_is_a_key(tmp_path: Path) -> None:
    text = starter_yaml(parse_config(raw_preset("film_flow", "tiny")), "tiny")
    trainer = text[text.index("trainer:") : text.index("\nmodel:")]
    keys = [line.strip()[2:].split(":")[0] for line in trainer.splitlines() if line.startswith("  # ")]
    known = set(family_config("film_flow").config.model_fields["trainer"].annotation.model_fields)  # type: ignore[union-attr]
    assert known <= {*keys, *(line.strip().split(":")[0] for line in trainer.splitlines())}


def test_the_starter_shows_the_section_cluster_briefly_and_rightly() -> None:
    text = starter_yaml(parse_config(raw_preset("film_flow", "tiny")), "tiny")
    section = text[text.index("# cluster:") : text.index("\nmodel:")]
    assert len(section.splitlines()) < 10
    shown = yaml.safe_load("\n".join(line.removeprefix("# ") for line in section.splitlines() if line.startswith("#")))
    shown["cluster"]["image"] = "registry.example.org/stageline/trainer:1"
    parse_config({**raw_preset("film_flow", "tiny"), **shown})


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("mine: yes\n")
    assert main(["init", "--family", "film_flow", "-o", str(file)]) == 2
    assert file.read_text() == "mine: yes\n"


def test_plan_as_json_and_as_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", *TINY, f"root={tmp_path / 'r'}", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [item["action"] for item in plan["items"]] == ["run"] * 5
    assert main(["plan", *TINY, f"root={tmp_path / 'r'}", "stages=[film]"]) == 0
    table = capsys.readouterr().out
    assert "not selected" in table
    assert "never recorded" in table
    assert not (tmp_path / "r").exists()


def test_the_plan_names_what_the_command_line_replaces(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", *TINY, f"root={tmp_path}", "trainer.max_steps=30", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [item["steps"] for item in plan["items"] if item["kind"] == "stage"] == [30, 30]
    for stage in ("backbone", "film"):
        assert f"stage_overrides.{stage}.trainer.max_steps: the command line takes its place" in plan["notes"]


def test_a_blocked_plan_is_shown_and_ends_in_its_code(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    override = "parents.film.default=runs/nobody/backbone"
    assert main(["plan", *TINY, f"root={tmp_path}", override]) == PlanError.exit_code
    assert "blocked" in capsys.readouterr().out


def test_checkpoints_typed_in_a_folder_are_named_for_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the command line; a file's are relative to its root."""
    monkeypatch.chdir(tmp_path)
    Path("mine/film").mkdir(parents=True)
    file = tmp_path / "config.yaml"
    named = {"parents": {"film": {"default": "mine/film"}}, "evaluate": {"checkpoints": {"a": "mine/film"}}}
    file.write_text(yaml.safe_dump({**raw_preset("film_flow", "tiny"), **named}))
    typed = ["parents.film.default=./mine/film", "evaluate.checkpoints={a: mine/film, b: film, c: ~/x}"]
    root = f"root={tmp_path / 'root'}"
    plain = read_config(file, None, None, [root])
    assert plain.parents["film"]["default"] == "mine/film"
    assert asked_checkpoints(plain) == {"a": "mine/film"}
    config = read_config(file, None, None, [root, *typed])
    assert config.parents["film"]["default"] == str(tmp_path / "mine/film")
    home = str(Path("~/x").expanduser())
    assert asked_checkpoints(config) == {"a": str(tmp_path / "mine/film"), "b": "film", "c": home}
    for none in ("none", "''"):
        assert read_config(file, None, None, [root, f"parents.film.default={none}"]).parents != plain.parents
    inside = read_config(file, None, None, ["root=.", *typed])
    assert inside.parents["film"]["default"] == asked_checkpoints(inside)["a"] == "mine/film"


def test_a_parent_that_is_nowhere_is_told_with_both_places(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*TINY, f"root={tmp_path / 'r'}", "parents.film.default=runs/x/backbone", "--json"]
    assert main(["plan", *words]) == PlanError.exit_code
    told = capsys.readouterr().out
    assert str(tmp_path / "r/runs/x/backbone") in told
    assert f"nor anything at '{tmp_path / 'runs/x/backbone'}'" in told


def test_predicting_takes_its_checkpoint_from_the_working_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/x/film", "./runs/x/film", "../x"):
        assert main(["predict", "a.png", "--checkpoint", name]) == CheckpointError.exit_code
        assert f"there is no checkpoint at '{(tmp_path / name).resolve()}'" in capsys.readouterr().err


def test_the_schema_accepts_the_presets_and_refuses_what_they_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--family", "film_flow"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    config = parse_config(raw_preset("film_flow", "tiny"))
    plain = yaml.safe_load(config.model_dump_json(exclude_unset=True, by_alias=True))
    validator = jsonschema.Draft202012Validator(schema)
    assert list(validator.iter_errors(plain)) == []
    assert list(validator.iter_errors(plain | {"trainr": {}}))


def test_overrides_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b").touch()
    assert split_overrides(["x.png", "evaluate.k=3", "a=b", "dir/c=d"]) == (
        ["x.png", "a=b", "dir/c=d"],
        ["evaluate.k=3"],
    )
    named = ["cluster.resources.limits.nvidia.com/gpu=1", 'cluster.labels."a.b/c"=d', "cluster.labels.a.b/c=d"]
    assert split_overrides(["./a.b/c=d.png", "s3://a/b?c=d", *named]) == (["./a.b/c=d.png", "s3://a/b?c=d"], named)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main([verb, "--help"]) == 0
    assert "Usage:" in capsys.readouterr().out


PROBE = """
import sys
from stageline.cli import main
code = main(["--help"])
heavy = {"torch", "pydantic", "yaml", "rich.table", "obstore", "kfp", "numpy"} & set(sys.modules)
print(code, sorted(heavy))
"""


def test_the_help_of_init_lists_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--help"]) == 0
    text = capsys.readouterr().out
    for family in FAMILIES:
        assert any(family in line and ", ".join(family_config(family).presets) in line for line in text.splitlines())


def test_help_loads_nothing_that_takes_time() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=HANG_SECONDS
    )
    assert done.stdout.splitlines()[-1] == "0 []"


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`stageline schema | head -1`: the pipe breaks, quietly."""
    command = f"{sys.executable} -m stageline schema --family film_flow | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=HANG_SECONDS)
    assert done.stdout.strip() == "{"
    assert done.stderr == ""


def test_the_library_exposes_load_and_version_without_torch() -> None:
    code = "import sys, stageline; print(stageline.__version__, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANG_SECONDS
    )
    assert done.stdout.split() == [stageline.__version__, "False"]
    with pytest.raises(AttributeError):
        stageline.nothing  # noqa: B018


@pytest.mark.parametrize(("number", "word", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_what_stopped_a_command_is_said(number: int, word: str, code: int) -> None:
    with pytest.raises(InterruptedRunError, match=f"stopped by {word}") as caught, ending_on_signals("go on"):
        signal.raise_signal(number)
    assert (caught.value.exit_code, caught.value.remedy) == (code, "go on")
