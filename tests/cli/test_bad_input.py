"""Bad input on the command line: one sentence per fault, the remedy, the kind's exit code, and no traceback."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from guards import HANG_SECONDS
from PIL import Image

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
    pytest.param("run=.hidden", "'.hidden' is no run name", id="run-name"),
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
    code, err = refused(capsys, "plan", *TINY, f"root={tmp_path}", "model.learning_rate=1", "trainer.learning_rate=2")
    assert code == ConfigError.exit_code
    assert "contradicts trainer.learning_rate 2" in err


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
        pytest.param(("run", "mine.yaml"), "-c mine.yaml", id="file-without-c"),
        pytest.param(("plan", "configs/mine", "seed=1"), "-c configs/mine", id="file-without-ending"),
        pytest.param(("run", "tiny"), "--preset tiny", id="preset-alone"),
        pytest.param(("run", "film_flow"), "--family film_flow", id="family-alone"),
        pytest.param(("run", *TINY, "mine.yaml"), "-c mine.yaml", id="file-beside-a-preset"),
        pytest.param(("plan", "-c", "nowhere.yaml"), "nowhere.yaml", id="missing-file"),
        pytest.param(("plan", "-c", "x.yaml", "--family", "film_flow"), "contradict each other", id="both"),
        pytest.param(("plan", "--family", "film_flwo"), "did you mean 'film_flow'", id="family"),
        pytest.param(("plan", "--family", "film_flow", "--preset", "tny"), "did you mean 'tiny'", id="preset"),
        pytest.param(("train", "flim", *TINY), "did you mean 'film'", id="stage"),
        pytest.param(("train", "film", *TINY, "--parent", "runs/a/b"), "role=checkpoint", id="parent"),
        pytest.param(("schema", "--family", "film"), "there is no family 'film'", id="schema"),
        pytest.param(("schema",), "--family", id="schema-of-none"),
        pytest.param(("init",), "--family", id="init-of-none"),
        pytest.param(("pipeline", "compile"), "--family", id="compile-of-none"),
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


DECODER_STAGES = [
    ("[]", "E_EMPTY"),
    ("[0, 0]", "E_DUPLICATE"),
    ("[4]", "E_RANGE"),
    ("[-1]", "E_RANGE"),
    ("[true]", "E_TYPE"),
    ("[1.0]", "E_TYPE"),
    ("['1']", "E_TYPE"),
    ("none", "E_TYPE"),
    ("[0, 7]", "E_RANGE"),
]


@pytest.mark.parametrize(("value", "fault"), DECODER_STAGES)
def test_decoder_stages_of_the_nine_bad_kinds(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, value: str, fault: str
) -> None:
    override = f"model.vlm_film_decoder_stages={value}"
    code, err = refused(capsys, "run", *TINY, f"root={tmp_path}", override)
    assert code == ConfigError.exit_code
    assert err.startswith(f"error: {fault}: ")
    assert "model.vlm_film_decoder_stages" in err
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        pytest.param(("model.use_vlm_film=false",), "use_vlm_film", id="stages-without-film"),
        pytest.param(("data.train_bs=4", "trainer.batch_size=8"), "trainer.batch_size 8", id="two-names"),
        pytest.param(("model.image_size=64", "data.image_size=48"), "data.image_size 48", id="two-sizes"),
        pytest.param(("model.image_conditioning=dual",), "arch_name 'filmflow_concat'", id="two-architectures"),
        pytest.param(("model.junction_gating_config.apply_stages=[0]",), "E_GATE_STAGE", id="gate-without-film"),
        pytest.param(("data.train_dir=x",), "'folder' only", id="folder-of-made-data"),
        pytest.param(("model.sigma=0.5",), "E_CONTRADICTION", id="bridge-of-an-endpoint"),
    ],
)
def test_keys_that_contradict_each_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, overrides: tuple[str, ...], sentence: str
) -> None:
    code, err = refused(capsys, "plan", *TINY, f"root={tmp_path}", *overrides)
    assert code == ConfigError.exit_code
    assert sentence in err


def save(path: Path, height: int, width: int = 48, **levels: int) -> None:
    """A picture of two levels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width), levels.get("low", 0), np.uint8)
    pixels[5:9] = levels.get("high", 255)
    Image.fromarray(pixels).save(path)


def test_every_bad_picture_is_listed_at_once_with_its_path(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    train, val = tmp_path / "train", tmp_path / "val"
    for folder in (train, val):
        for name in ("fine", "empty", "corrupt", "alone", "sized"):
            save(folder / "image" / f"{name}.png", 48, low=40 if folder == train else 60)
            save(folder / "label" / f"{name}.png", 48)
    (train / "image" / "empty.png").write_bytes(b"")
    (val / "label" / "empty.png").write_bytes(b"")
    whole = (val / "image" / "corrupt.png").read_bytes()
    (val / "image" / "corrupt.png").write_bytes(whole[: len(whole) // 2])
    (train / "label" / "corrupt.png").write_bytes(b"no picture")
    (train / "label" / "alone.png").unlink()
    (val / "image" / "alone.png").unlink()
    save(train / "label" / "sized.png", 40)
    folders = ("data.name=folder", f"data.train_dir={train}", f"data.val_dir={val}")
    code, err = refused(capsys, "prepare", *TINY, f"root={tmp_path / 'root'}", *folders, "model.cond_source=image")
    assert code == DataError.exit_code
    for path in (
        train / "image" / "empty.png",
        val / "label" / "empty.png",
        val / "image" / "corrupt.png",
        train / "label" / "corrupt.png",
        train / "image" / "alone.png",
        val / "label" / "alone.png",
        train / "label" / "sized.png",
    ):
        assert any(str(path) in line for line in err.splitlines() if line.startswith("  - ")), f"{path}: {err}"
    assert "7 faults" in err
    assert "fine" not in err.partition("error:")[2]
    assert not list((tmp_path / "root").rglob("manifest.json"))


SECRET = "very/secret+key0000000000000000000000001"  # noqa: S105


def test_a_store_without_credentials(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for verb in ("plan", "prepare", "run"):
        code, err = refused(capsys, verb, *TINY, "root=s3://some-bucket/x")
        assert (code, "no credentials" in err) == (StoreError.exit_code, True), err
        assert "AWS_ACCESS_KEY_ID" in err
        assert SECRET not in err


class WithoutBuckets(BaseHTTPRequestHandler):
    """An S3 that has no bucket."""

    def answer(self) -> None:
        body = b"<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>"
        self.send_response(404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = answer  # the server looks for these names

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_a_store_without_the_bucket(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), WithoutBuckets) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTKEYID00000001")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        try:
            code, err = refused(capsys, "plan", *TINY, "root=s3://no-such-bucket/x")
        finally:
            server.shutdown()
            thread.join(HANG_SECONDS)
    assert (code, "no bucket" in err) == (StoreError.exit_code, True), err
    assert "no-such-bucket" in err
    assert "->" in err
    assert SECRET not in err
    assert "AKIATESTKEYID" not in err


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
