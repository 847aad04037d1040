"""The locks: every package pinned and hashed, no host named, and equal to what pyproject.toml pins."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ["lock.txt", "launcher.txt", "uv.txt"]
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
    launcher, full = pins("launcher.txt"), pins("lock.txt")
    assert not {"torch", "lightning-fabric", "scipy", "transformers", "triton"} & set(launcher)
    assert {"kfp", "obstore", "pydantic", "typer"} <= set(launcher)
    for package, versions in launcher.items():
        assert versions <= full[package], package


def test_the_extras_say_what_the_documents_promise() -> None:
    assert {"pipelines", "train", "vlm", "all", "dev"} <= set(EXTRAS)
    assert EXTRAS["all"] == ["stageline[pipelines,train,vlm]"]
    assert not [line for line in PROJECT["dependencies"] if line.startswith(("torch", "kfp", "safetensors"))]
