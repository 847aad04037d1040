"""What the documents tell people to type exists: make targets, and what CI calls."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_readme_gives_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_every_make_command_of_a_document_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    asked = set(re.findall(r"(?m)(?:^\s*|`)make (?:--[a-z-]+ )*([a-z][a-z-]*)", text))
    assert asked - TARGETS == set()


def test_make_lists_its_targets_and_makes_no_environment(tmp_path: Path) -> None:
    shown = subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), "-C", str(ROOT), "--no-print-directory"],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")},
    ).stdout
    for target in ("demo", "test", "test-slow", "lint", "format", "lock", "render", "bench", "clean"):
        assert re.search(rf"^  make {target} +\w", shown, re.MULTILINE), target


@pytest.mark.parametrize(
    ("python", "found"),
    [
        pytest.param("#!/bin/sh\n[ $1 = --version ] && { echo Python 3.9.18; exit 0; }\nexit 1\n", "3.9.18", id="old"),
        pytest.param(None, "no Python that runs", id="absent"),
    ],
)
def test_a_python_that_is_too_old_or_absent_is_refused_in_words(tmp_path: Path, python: str | None, found: str) -> None:
    name = tmp_path / "python"
    if python is not None:
        name.write_text(python)
        name.chmod(0o755)
    result = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory", "env", f"PYTHON={name}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "Python 3.11 or newer is needed" in result.stderr
    assert found in result.stderr
    assert "make PYTHON=" in result.stderr


def test_ci_runs_both_tiers_and_is_valid_bash() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert text.index("make --no-print-directory test ") < text.index("make --no-print-directory test-slow ")
