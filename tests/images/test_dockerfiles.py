"""Rules that the Dockerfiles keep: any builder takes them, they run anywhere, and a change of the source is cheap."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import tomllib

import pytest

from .recipes import IMAGES, ROOT, arguments_of, environment_of, instructions, load_build

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ORDINARY = {"ARG", "FROM", "RUN", "ENV", "COPY", "WORKDIR", "LABEL", "USER", "ENTRYPOINT", "CMD"}
SOURCES = {"components", "pipelines", "scripts", "src", "pyproject.toml", "setup.py", "README.md", "LICENSE"}

pytestmark = pytest.mark.parametrize("image", IMAGES)


def position(image: str, name: str, part: str) -> int:
    """Which instruction it is, the only one of its kind."""
    (found,) = [at for at, (kind, text) in enumerate(instructions(image)) if kind == name and part in text]
    return found


def test_any_builder_takes_it(image: str) -> None:
    assert {name for name, _ in instructions(image)} <= ORDINARY
    text = (ROOT / "images" / image / "Dockerfile").read_text()
    assert not re.search(r"--mount|--link|--chmod|<<|# syntax", text)
    # COPY between stages would need 5 GB twice where a builder keeps no layers.
    assert len(arguments_of(image, "FROM")) == 1


def test_the_base_is_an_argument_with_a_default_that_is_pinned_to_a_release(image: str) -> None:
    assert instructions(image)[0] == ("ARG", f"BASE_IMAGE={load_build().BASE_IMAGE}")
    assert arguments_of(image, "FROM") == ["${BASE_IMAGE}"]
    assert load_build().BASE_IMAGE == "python:3.11-slim-bookworm"
    assert ":latest" not in (ROOT / "images" / image / "Dockerfile").read_text()


def test_dependencies_come_before_the_source_and_from_the_hashes(image: str) -> None:
    install = position(image, "RUN", f"-r /opt/requirements/{image}.txt")
    command = instructions(image)[install][1]
    assert command.count("--require-hashes") == command.count(" install ") == 2
    assert "--build-constraints /opt/requirements/build.txt" in command
    copied = [text for name, text in instructions(image)[:install] if name == "COPY"]
    assert copied == [
        f"requirements/uv.txt requirements/build.txt requirements/{image}.txt /opt/requirements/",
    ]
    later = {word for name, text in instructions(image)[install:] if name == "COPY" for word in text.split()[:-1]}
    assert later == SOURCES


def test_what_differs_from_build_to_build_is_declared_after_the_dependencies(image: str) -> None:
    """An argument that changes makes every later layer anew."""
    install = position(image, "RUN", f"-r /opt/requirements/{image}.txt")
    before = {text.partition("=")[0] for name, text in instructions(image)[:install] if name == "ARG"}
    assert not before & {"VERSION", "REVISION", "IMAGE"}
    assert {"VERSION", "REVISION", "IMAGE"} <= {text.partition("=")[0] for text in arguments_of(image, "ARG")}
    assert "${VERSION}" not in str(instructions(image)[:install])


def test_nothing_is_installed_after_the_source_but_the_source(image: str) -> None:
    last = instructions(image)[position(image, "RUN", "/opt/source")][1]
    for flag in ("--no-index", "--no-deps", "--no-build-isolation"):
        assert flag in last
    assert "rm -rf /opt/source" in last


def test_no_cache_stays_in_a_layer(image: str) -> None:
    for command in arguments_of(image, "RUN"):
        assert command.count("pip install") == command.count("--no-cache-dir") + command.count("/uv pip install")
        if "/uv pip install" in command:
            assert "UV_NO_CACHE=1" in command
            assert "rm -rf /tmp/* ~/.cache" in command
        if "apt-get update" in command:
            assert "rm -rf /var/lib/apt/lists/*" in command


def test_the_user_is_a_number_and_not_root(image: str) -> None:
    (user,) = arguments_of(image, "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    names = [name for name, _ in instructions(image)]
    assert "RUN" not in names[names.index("USER") :]
    assert "COPY" not in names[names.index("USER") :]


def test_command_and_args_of_a_pod_mean_what_they_say(image: str) -> None:
    assert arguments_of(image, "ENTRYPOINT") == ["[]"]
    assert arguments_of(image, "CMD") == ['["stageline", "--help"]']


def test_everything_is_written_below_tmp(image: str) -> None:
    """One writable mount is enough under a read-only root."""
    environment = environment_of(image)
    folders = {name for name in environment if re.search(r"_CACHE|CONFIG|DATA|_HOME$|_DIR$", name)}
    assert folders >= {"XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"}
    assert {name for name in folders if not environment[name].startswith("/tmp/")} == set()
    if image == "trainer":
        assert folders >= {"HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "MPLCONFIGDIR"}


def test_where_packages_come_from_is_not_kept(image: str) -> None:
    arguments = {text for text in arguments_of(image, "ARG") if "=" not in text}
    assert arguments == {*load_build().BUILD_ENVIRONMENT, "NETRC", "BASE_IMAGE"}
    assert not set(load_build().BUILD_ENVIRONMENT) & set(environment_of(image))
    text = (ROOT / "images" / image / "Dockerfile").read_text()
    assert not re.search(r"https?://|--index-url|--extra-index-url", text)


def test_the_labels(image: str) -> None:
    (text,) = arguments_of(image, "LABEL")
    labels = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', text))
    assert labels["title"] == f"stageline {image}"
    assert labels["licenses"] == PROJECT["license"]
    assert labels["version"] == "${VERSION}"
    assert labels["revision"] == "${REVISION}"
    assert "created" not in labels  # given by build.py where it is known: otherwise every build would differ


def test_a_build_without_arguments_says_the_version_of_the_source(image: str) -> None:
    assert f"VERSION={PROJECT['version']}" in arguments_of(image, "ARG")


def test_the_identity_is_written_where_the_image_says_it_is(image: str) -> None:
    (command,) = [text for text in arguments_of(image, "RUN") if "stageline.build" in text]
    assert 'python -m stageline.build --write "$STAGELINE_BUILD"' in command
    assert environment_of(image)["STAGELINE_BUILD"] == "/opt/stageline/build.json"


def test_the_images_differ_where_they_must_and_nowhere_else(image: str) -> None:
    def plain(name: str) -> list[tuple[str, str]]:
        kept = [(kind, text) for kind, text in instructions(name) if kind != "LABEL"]
        return [(kind, re.sub(r"\s+(HF|TORCH|TRITON|TORCHINDUCTOR|MPL|CUDA)\w+=\S+", "", t)) for kind, t in kept]

    assert plain(image) == [(kind, text.replace("trainer", image)) for kind, text in plain("trainer")]


def test_the_context_holds_what_is_copied_and_little_else(image: str) -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = {word for text in arguments_of(image, "COPY") for word in text.split()[:-1]}
    assert copied <= kept
    assert kept <= SOURCES | {f"requirements/{name}.txt" for name in ("build", "uv", *IMAGES)}
    for pattern in ("**/__pycache__", "**/*.egg-info"):
        assert pattern in lines


def test_the_context_is_small(image: str) -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False).stdout
    files = [name for name in listed.splitlines() if name.split("/")[0] in SOURCES and (ROOT / name).is_file()]
    if not files:
        pytest.skip("not a checkout")
    assert sum((ROOT / name).stat().st_size for name in files) < 4e6
    assert not fnmatch.filter(files, "*.safetensors")
