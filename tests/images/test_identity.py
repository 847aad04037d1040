"""What a process says it was built from: in an image, in a checkout, and where nobody knows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import stageline
from stageline.build import Build, find_build, image_reference, main, read_build
from stageline.cli import main as command_line

REVISION = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "registry.example/team/stageline/trainer@sha256:" + "a" * 64


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process as if in an image."""
    file = tmp_path / "build.json"
    named = ["--image", "stageline/trainer:0.1.0", "--base-image", "python:3.11-slim-bookworm"]
    main(["--write", str(file), "--version", stageline.__version__, "--revision", f"{REVISION}-dirty", *named])
    monkeypatch.setenv("STAGELINE_BUILD", str(file))
    return file


def test_an_image_says_what_was_written_at_its_build(image: Path) -> None:
    assert find_build() == Build(
        version=stageline.__version__,
        revision=REVISION,
        dirty=True,
        image="stageline/trainer:0.1.0",
        base_image="python:3.11-slim-bookworm",
        origin="image",
    )


def test_the_digest_that_the_pod_names_wins_over_the_tag(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert image_reference() == "stageline/trainer:0.1.0"
    monkeypatch.setenv("STAGELINE_IMAGE", DIGEST)
    assert image_reference() == DIGEST
    assert find_build().revision == REVISION


def test_a_pod_whose_image_has_no_identity_still_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGELINE_IMAGE", DIGEST)
    assert image_reference() == DIGEST


def test_a_label_that_differs_from_the_source_ends_the_build(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"labelled '9\.9', but the source in it is"):
        main(["--write", str(tmp_path / "build.json"), "--version", "9.9"])
    assert not (tmp_path / "build.json").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(None, "FileNotFoundError", id="absent"),
        pytest.param("{", "JSONDecodeError", id="half"),
        pytest.param("[]", "TypeError", id="list"),
        pytest.param('{"schema": "stageline-build/1"}', "KeyError", id="field"),
        pytest.param(
            '{"schema": "stageline-build/9", "version": "", "revision": "", "image": "", "base_image": ""}',
            "this version reads stageline-build/1",
            id="schema",
        ),
    ],
)
def test_an_identity_that_cannot_be_read_is_unknown_and_said_so(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    file = tmp_path / "build.json"
    if content is not None:
        file.write_text(content)
    found = read_build(file)
    assert (found.revision, found.dirty, found.origin) == ("unknown", None, "unknown")
    assert reason in found.note
    assert str(file) in found.note
    assert found.note in found.to_text()
    assert found.to_json()["note"] == found.note


def test_an_image_without_a_revision_says_so(tmp_path: Path) -> None:
    main(["--write", str(tmp_path / "build.json")])
    found = read_build(tmp_path / "build.json")
    assert (found.revision, found.dirty, found.origin) == ("unknown", None, "image")
    assert "without a revision" in found.to_text()


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def asked_in(root: Path) -> dict[str, object]:
    """What a copy of the package in `root/src` says, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "stageline.build"],
        env={"PYTHONPATH": str(root / "src"), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_a_checkout_says_its_commit_and_whether_files_differ(tmp_path: Path) -> None:
    package = tmp_path / "src" / "stageline"
    package.mkdir(parents=True)
    own = Path(stageline.__file__).parent
    for name in ("__init__.py", "build.py"):
        (package / name).write_text((own / name).read_text())
    assert asked_in(tmp_path)["note"] == "installed outside an image, not run from a checkout"

    (tmp_path / "pyproject.toml").touch()
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "m")
    git(tmp_path, "tag", "v1")
    revision = git(tmp_path, "rev-parse", "HEAD")
    clean = {"version": stageline.__version__, "revision": revision, "dirty": False, "origin": "checkout"}
    assert asked_in(tmp_path) == clean

    (tmp_path / "pyproject.toml").write_text("# changed")
    assert asked_in(tmp_path) == {**clean, "dirty": True}

    (tmp_path / ".git/HEAD").write_text("damaged")
    assert asked_in(tmp_path)["revision"] == "unknown"
    assert "git gave no answer" in str(asked_in(tmp_path)["note"])


def test_the_command_line_says_it(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["--version"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines() == [
        f"stageline {stageline.__version__}",
        f"revision {REVISION}, with changes that are not committed (image)",
        "image stageline/trainer:0.1.0 (from python:3.11-slim-bookworm)",
    ]
    assert command_line(["--version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == find_build().to_json()


def test_json_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["--json", "plan"]) == 2
    assert "belongs to --version" in capsys.readouterr().err


def test_asking_loads_nothing_heavy() -> None:
    heavy = {"torch", "pydantic", "numpy", "yaml", "typer"}
    code = f"import sys, stageline.build as b; b.find_build(); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
