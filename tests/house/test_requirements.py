"""The locks: every package pinned and hashed, no host named, and equal to what pyproject.toml pins."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = {"launcher.txt": ("pipelines", "cluster"), "trainer.txt": ("train", "vlm", "cluster")}
LOCKS = ["lock.txt", "uv.txt", "build.txt", *IMAGES]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def entries(name: str) -> list[str]:
    """One text per requirement: continuation lines joined."""
    return (ROOT / "requirements" / name).read_text().replace("\\\n", " ").splitlines()


def pins(name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for entry in entries(name):
        package, version = entry.split()[0].split("==")
        found.setdefault(package, set()).add(version)
    return found


def declared() -> list[tuple[str, str]]:
    """(package, version) of every pin in pyproject.toml."""
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    return [(m[1].lower(), m[2]) for line in lines if (m := re.fullmatch(r"([\w.-]+)(?:\[\w+\])?==([\w.]+)", line))]


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_pinned_and_hashed(name: str) -> None:
    assert entries(name)
    for entry in entries(name):
        assert re.match(r"[a-z0-9-]+==[\w.]+ ", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_host_and_no_path(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    assert not re.search(r"://|@ |--index|--extra-index|--find-links|file:|\.org|\.com|(?m:^-)", text)


def test_what_the_project_pins_is_what_the_lock_installs() -> None:
    locked = pins("lock.txt")
    assert len(declared()) > 20
    for package, version in declared():
        assert locked[package] == {version}, package


def test_everything_the_project_asks_for_is_pinned() -> None:
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    free = [line for line in lines if "==" not in line and not line.startswith("stageline[")]
    # torch asks for this setuptools without an upper bound; the lock says which one.
    assert free == ["setuptools>=77.0.3"]


def test_the_launcher_installs_without_torch() -> None:
    launcher = pins("launcher.txt")
    assert not {"torch", "lightning-fabric", "scipy", "transformers", "triton"} & set(launcher)
    assert {"kfp", "kubernetes", "obstore", "pydantic", "typer"} <= set(launcher)


def test_the_trainer_installs_without_kfp() -> None:
    assert not {name for name in pins("trainer.txt") if name.startswith("kfp")}


def hashes(name: str) -> dict[str, set[str]]:
    return {entry.split()[0]: set(re.findall(r"--hash=(\S+)", entry)) for entry in entries(name)}


@pytest.mark.parametrize("name", ["build.txt", *IMAGES])
def test_what_an_image_installs_is_what_was_tested(name: str) -> None:
    """The same versions and the same files as in lock.txt; `make lock` writes all of them."""
    tested = hashes("lock.txt")
    for package, files in hashes(name).items():
        assert files == tested[package], package


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_has_what_its_extras_ask_for(name: str) -> None:
    found = pins(name)
    wanted = [*PROJECT["dependencies"], *(line for extra in IMAGES[name] for line in EXTRAS[extra])]
    assert {re.split(r"[=<>\[]", line)[0].lower() for line in wanted} <= set(found)


def test_the_extras_say_what_the_documents_promise() -> None:
    assert {"cluster", "pipelines", "train", "vlm", "all", "dev"} <= set(EXTRAS)
    assert EXTRAS["all"] == ["stageline[cluster,pipelines,train,vlm]"]
    assert not [line for line in PROJECT["dependencies"] if line.startswith(("torch", "kfp", "safetensors"))]
