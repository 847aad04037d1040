"""`make images`: which builder, what it is told, and what is said where none can build."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .recipes import ROOT, load_build

build = load_build()
RECIPE = build.Recipe("trainer", "docker", "0.1.0", "abc-dirty")
BASE = "b@sha256:" + "0" * 64
DIGEST = "sha256:" + "7" * 64


def fake(folder: Path, name: str, code: str) -> None:
    """An executable in `folder`."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!{sys.executable}\nimport json, os, sys\n{code}\n")
    file.chmod(0o755)


RECORD = """
if sys.argv[1] not in ("version", "info", "--version"):
    names = [word for word in sys.argv if word.startswith("PIP_") or word.startswith("UV_")]
    seen = {"argv": sys.argv[1:], "cwd": os.getcwd(), "environment": {name: os.environ.get(name) for name in names}}
    with open(os.environ["RECORD"], "a") as file:
        file.write(json.dumps(seen) + chr(10))
"""
NO_ENGINE = "sys.exit('Cannot connect to the engine')"


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a fake builder writes what it was told; nothing else is on PATH but git."""
    git = Path("/usr/bin/git")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    if git.exists():
        (bin_folder / "git").symlink_to(git)
    monkeypatch.setenv("PATH", str(bin_folder))
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    for name in (*build.BUILD_ENVIRONMENT, "BUILDAH_ISOLATION"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "record"


@pytest.mark.parametrize("builder", ["docker", "podman", "buildah"])
def test_the_command_of_each_builder(builder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUILDAH_ISOLATION", raising=False)
    recipe = build.Recipe(
        "launcher", builder, "1.2", "abc", base_image="mine:1", registry="r:5000/team/", flags=("-q",)
    )
    own = {"buildah": ["--layers", "--isolation", "chroot"]}
    assert build.build_command(recipe, ["PIP_INDEX_URL"]) == [
        *(builder, "build", "--file", "images/launcher/Dockerfile"),
        *("--tag", "r:5000/team/stageline/launcher:1.2"),
        *own.get(builder, []),
        *("--build-arg", "BASE_IMAGE=mine:1"),
        *("--build-arg", "VERSION=1.2"),
        *("--build-arg", "REVISION=abc"),
        *("--build-arg", "IMAGE=r:5000/team/stageline/launcher:1.2"),
        *("--build-arg", "PIP_INDEX_URL"),
        *("-q", "."),
    ]


def test_labels_that_are_not_given_are_not_there() -> None:
    assert "--label" not in build.build_command(RECIPE)
    command = build.build_command(build.Recipe("trainer", "podman", "1", "a", created="2026-01-01T00:00:00Z"))
    assert command[command.index("--label") + 1] == "org.opencontainers.image.created=2026-01-01T00:00:00Z"


def test_the_settings_of_pip_reach_pip_and_uv_by_name_only() -> None:
    found = build.build_environment({"PIP_INDEX_URL": "secret", "PIP_CERT": "", "HOME": "/x", "SSL_CERT_FILE": "c"})
    assert found == {"PIP_INDEX_URL": "secret", "UV_DEFAULT_INDEX": "secret", "SSL_CERT_FILE": "c"}
    assert build.build_environment({"PIP_INDEX_URL": "a", "UV_DEFAULT_INDEX": "b"})["UV_DEFAULT_INDEX"] == "b"
    assert "secret" not in " ".join(build.build_command(RECIPE, list(found)))


def test_both_images_are_built_from_the_root_with_what_the_environment_says(
    record: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake(record.parent / "bin", "podman", RECORD)
    tags = build.build_images(environment={**os.environ, "PIP_INDEX_URL": "secret"}, base_image=BASE)
    assert tags == {name: f"stageline/{name}:{build.read_version()}" for name in ("launcher", "trainer")}
    launcher, trainer = (json.loads(line) for line in record.read_text().splitlines())
    assert launcher["cwd"] == trainer["cwd"] == str(ROOT)
    assert launcher["environment"] == {"PIP_INDEX_URL": "secret", "UV_DEFAULT_INDEX": "secret"}
    assert "images/trainer/Dockerfile" in trainer["argv"]
    assert f"REVISION={build.read_revision()}" in trainer["argv"]
    assert "secret" not in capfd.readouterr().out


def test_a_client_without_an_engine_is_passed_over(record: Path) -> None:
    fake(record.parent / "bin", "docker", NO_ENGINE)
    fake(record.parent / "bin", "buildah", RECORD)
    assert build.find_builder() == "buildah"
    with pytest.raises(build.BuildError, match=r"docker is there but does not answer: Cannot connect to the engine"):
        build.find_builder("docker")


def test_no_builder_is_said_in_words(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake(record.parent / "bin", "docker", NO_ENGINE)
    assert build.main([]) == 1
    said = capsys.readouterr().err
    assert "nothing here can build an image" in said
    assert "podman is not on PATH" in said
    assert "docker is there but does not answer" in said
    assert "-> install or start one of docker, podman, buildah" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--builder", "kaniko"], "BUILDER is 'kaniko'", id="builder"),
        pytest.param(["operator"], "there is no image operator", id="image"),
    ],
)
def test_what_does_not_exist_is_named(
    record: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert build.main(arguments) == 1
    assert said in capsys.readouterr().err


def test_a_failed_build_ends_the_call(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake(record.parent / "bin", "buildah", RECORD + "    sys.exit(125)")
    assert build.main(["--allow-tag"]) == 1
    assert "stageline/launcher:" in (said := capsys.readouterr().err)
    assert "could not be built (exit code 125)" in said
    assert len(record.read_text().splitlines()) == 1


def test_make_hands_its_variables_on(record: Path) -> None:
    fake(record.parent / "bin", "buildah", RECORD)
    variables = [
        f"BASE_IMAGE={BASE}",
        "REGISTRY=r.example/t",
        'BUILD_FLAGS=--volume /a:/b:ro --build-arg X="a b"',
        "IMAGES=trainer",
    ]
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run(
        ["/usr/bin/make", "-C", str(ROOT), "--no-print-directory", "images", f"PYTHON={sys.executable}", *variables],
        capture_output=True,
        text=True,
        check=False,
        env=clean,
    )
    assert done.returncode == 0, done.stderr
    (line,) = record.read_text().splitlines()
    argv = json.loads(line)["argv"]
    assert argv[-5:] == ["--volume", "/a:/b:ro", "--build-arg", "X=a b", "."]
    assert f"BASE_IMAGE={BASE}" in argv
    assert f"r.example/t/stageline/trainer:{build.read_version()}" in argv


def test_a_base_without_a_digest_is_refused_unless_that_is_said(
    record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(record.parent / "bin", "buildah", RECORD)
    for base in ([], ["--base-image=mine:1"], ["--base-image=mine@sha256:12"]):
        assert build.main(["--dry-run", *base]) == 1
        said = capsys.readouterr().err
        assert "has no digest" in said
        assert "ALLOW_TAG=1" in said
        assert build.main(["--dry-run", "--allow-tag", *base]) == 0
    assert build.main(["--dry-run", f"--base-image={BASE}"]) == 0


NOTES = f"""
def note(option, text):
    if option in sys.argv:
        open(sys.argv[sys.argv.index(option) + 1], "w").write(text)
note("--iidfile", "sha256:1d")
note("--digestfile", "{DIGEST}")
if sys.argv[1:3] == ["image", "inspect"]:
    print("other/trainer@{DIGEST}")
    print(sys.argv[-1].rpartition(":")[0] + "@{DIGEST}")
"""


@pytest.mark.parametrize("builder", ["docker", "podman", "buildah"])
def test_ids_are_printed_and_digests_of_what_was_pushed(
    record: Path, capfd: pytest.CaptureFixture[str], builder: str
) -> None:
    fake(record.parent / "bin", builder, RECORD + NOTES)
    build.build_images(["trainer"], base_image=BASE)
    said = capfd.readouterr().out
    assert "its id is sha256:1d" in said
    assert "by digest" not in said
    build.build_images(["trainer"], base_image=BASE, registry="r:5000/t", push=True)
    assert f"images: by digest r:5000/t/stageline/trainer@{DIGEST}\n" in capfd.readouterr().out


def test_pushing_without_a_registry_or_a_digest_is_refused(record: Path) -> None:
    fake(record.parent / "bin", "docker", RECORD)
    with pytest.raises(build.BuildError, match="no registry to push to"):
        build.build_images(base_image=BASE, push=True)
    with pytest.raises(build.BuildError, match="does not tell its digest"):
        build.build_images(["trainer"], base_image=BASE, registry="r", push=True)


@pytest.mark.parametrize(
    "registry", ["https://registry.example", "registry.example/team ", "a/B", "r:5000/t:1", "-a", "a//b"]
)
def test_a_registry_that_no_tag_can_begin_with_is_refused_before_anything_is_built(registry: str, record: Path) -> None:
    fake(record.parent / "bin", "docker", RECORD)
    with pytest.raises(build.BuildError, match=r"is no registry\.example:5000/team"):
        build.build_images(["launcher"], registry=registry, allow_tag=True)
    assert not record.exists()


@pytest.mark.parametrize(
    "registry", ["registry.example/team", "localhost:5000", "10.89.0.2:5000/a/b_c/", "Registry.Example"]
)
def test_a_registry_is_taken(registry: str, record: Path) -> None:
    fake(record.parent / "bin", "docker", RECORD)
    made = build.build_images(["launcher"], registry=registry, allow_tag=True, dry_run=True)
    assert made["launcher"].startswith(f"{registry.rstrip('/')}/stageline/launcher:")


def test_flags_whose_quotation_has_no_end_are_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--allow-tag", "--dry-run", "--build-flags=--volume 'a b"]) == 1
    assert "BUILD_FLAGS" in capsys.readouterr().err
