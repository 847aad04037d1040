"""Bad input on the command line: one sentence per fault, the remedy, the kind's exit code, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from stageline.cli import main
from stageline.errors import CheckpointError, ConfigError, DataError, PlanError, StoreError

TINY = ("--family", "film_flow", "--preset", "tiny")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """(exit code, stderr) of a command that must fail; stdout of it is not looked at."""
    code = main(list(arguments))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.err


KEYS = [
    pytest.param("model.model_chanels=8", "did you mean 'model.model_channels'", id="misspelt"),
    pytest.param("trainr.max_steps=8", "did you mean 'trainer'", id="misspelt-section"),
    pytest.param("trainer.batch_size=many", "trainer.batch_size", id="wrong-type"),
    pytest.param("trainer.batch_size=0", "trainer.batch_size", id="out-of-range"),
    pytest.param("run=No_Good", "'No_Good' is no run name", id="run-name"),
    pytest.param("colour=blue", "unknown key", id="unknown"),
    pytest.param("stages=[flim]", "did you mean 'film'", id="unknown-stage"),
    pytest.param("stage_overrides.flim.trainer.max_steps=1", "did you mean 'film'", id="override-of-unknown-stage"),
    pytest.param("stages=[]", "trains nothing", id="no-stages"),
    pytest.param("parents.film.defaut=x", "no role 'defaut'", id="unknown-role"),
    pytest.param("trainer.max_steps", "section.key=value", id="no-value"),
    pytest.param("model.gamma_scale=2.0", "gamma_scale", id="known-but-refused"),
    pytest.param("model.vlm_film_decoder_stages=[7]", "7", id="decoder-stage-out-of-range"),
]


@pytest.mark.parametrize(("override", "sentence"), KEYS)
def test_a_bad_key_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, override: str, sentence: str) -> None:
    code, err = refused(capsys, "plan", *TINY, f"root={tmp_path}", override)
    assert code == ConfigError.exit_code
    assert sentence in err
    assert "->" in err


def test_contradictions_are_named_with_both_sides(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, err = refused(capsys, "plan", *TINY, f"root={tmp_path}", "trainer.max_steps=3", "trainer.max_epochs=3")
    assert code == ConfigError.exit_code
    assert "max_steps and max_epochs contradict each other" in err
    code, err = refused(capsys, "plan", *TINY, f"root={tmp_path}", "model.learning_rate=0.5")
    assert code == ConfigError.exit_code
    assert "learning_rate" in err


def test_all_faults_come_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    overrides = ("model.model_chanels=8", "trainer.bach_size=3", "data.num_trian=2", "seed=-1")
    code, err = refused(capsys, "plan", *TINY, f"root={tmp_path}", *overrides)
    assert code == ConfigError.exit_code
    for known in ("model.model_channels", "trainer.batch_size", "data.num_train", "seed"):
        assert known in err
    assert "4 faults" in err


def test_a_key_that_stands_twice_in_the_file_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("family: film_flow\nrun: a\nrun: b\n")
    code, err = refused(capsys, "plan", "-c", str(file))
    assert code == ConfigError.exit_code
    assert "'run' stands twice" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(("plan",), "no config given", id="nothing"),
        pytest.param(("plan", "-c", "nowhere.yaml"), "nowhere.yaml", id="missing-file"),
        pytest.param(("plan", "-c", "x.yaml", "--family", "film_flow"), "contradict each other", id="both"),
        pytest.param(("plan", "--family", "film_flwo"), "did you mean 'film_flow'", id="family"),
        pytest.param(("plan", "--family", "film_flow", "--preset", "tny"), "did you mean 'tiny'", id="preset"),
        pytest.param(("train", "flim", *TINY), "did you mean 'film'", id="stage"),
        pytest.param(("train", "film", *TINY, "--parent", "runs/a/b"), "role=checkpoint", id="parent"),
        pytest.param(("schema", "--family", "film"), "there is no family 'film'", id="schema"),
    ],
)
def test_a_command_that_cannot_know_what_is_meant_says_so(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, err = refused(capsys, *arguments)
    assert code == ConfigError.exit_code
    assert sentence in err


def test_checkpoints_that_are_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, err = refused(capsys, "checkpoint", "show", str(tmp_path / "nowhere"))
    assert (code, "there is no checkpoint" in err) == (CheckpointError.exit_code, True)
    foreign = tmp_path / "old.ckpt"
    foreign.write_bytes(b"not a checkpoint")
    code, err = refused(capsys, "checkpoint", "verify", str(foreign))
    assert code == CheckpointError.exit_code
    code, err = refused(capsys, "checkpoint", "import", str(tmp_path / "gone.ckpt"), "--to", "imported")
    assert (code, "there is no file" in err) == (CheckpointError.exit_code, True)


def test_runs_that_are_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, err = refused(capsys, "runs", "show", "nobody", "--root", str(tmp_path))
    assert (code, "there is no run 'nobody'" in err) == (PlanError.exit_code, True)
    assert main(["runs", "list", "--root", str(tmp_path)]) == 0
    assert "no runs" in capsys.readouterr().out


def test_stores_that_refuse(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, err = refused(capsys, "plan", *TINY, "root=ftp://somewhere/x")
    assert (code, "'ftp' is no kind of store" in err) == (StoreError.exit_code, True)
    code, err = refused(capsys, "run", *TINY, "root=memory://lab")
    assert (code, "lives inside one process" in err) == (PlanError.exit_code, True)


def test_source_images_that_are_missing_are_all_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "train" / "image").mkdir(parents=True)
    (tmp_path / "train" / "label").mkdir()
    (tmp_path / "train" / "image" / "a.png").write_bytes(b"")
    code, err = refused(
        capsys,
        "prepare",
        *TINY,
        f"root={tmp_path}",
        "data.name=folder",
        f"data.train_dir={tmp_path / 'train'}",
        f"data.val_dir={tmp_path / 'val'}",
        "model.vlm_film_config.prompt_template=vessels",
    )
    assert code == DataError.exit_code, err
    assert "a.png" in err
    assert "val" in err
