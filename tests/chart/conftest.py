"""The chart rendered by the real helm: once per value set. In CI helm must be there; elsewhere its absence is said."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/stageline"
Documents = list[dict[str, Any]]


class StrictLoader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that stands twice in a mapping."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        assert not twice, f"{twice} stand twice{node.start_mark}"
        return super().construct_mapping(node, deep)


@cache
def helm_program() -> str:
    found = subprocess.run([sys.executable, ROOT / "scripts/clients.py"], capture_output=True, text=True, check=False)
    return str(Path(found.stdout.strip(), "helm")) if found.returncode == 0 else found.stderr


@pytest.fixture(scope="session")
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Calls helm in the root of the tree; with the same words once, for what it answers depends on nothing else."""
    program = helm_program()
    if not program.endswith("/helm"):
        if os.environ.get("CI"):
            pytest.fail(program)
        pytest.skip(program)

    @cache
    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)

    return call


@pytest.fixture(scope="session")
def render(helm: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., Documents]:
    """Renders a value set of helm/stageline/ci (none: the defaults), hooks included, with further arguments of helm.

    A key that stands twice in one mapping, of which YAML readers take either, fails it.
    """

    @cache
    def documents(name: str = "", *arguments: str) -> Documents:
        values = ["-f", f"helm/stageline/ci/{name}-values.yaml"] if name else []
        result = helm("template", "stageline", "helm/stageline", "-n", "stageline", *values, *arguments)
        assert result.returncode == 0, result.stderr
        return [document for document in yaml.load_all(result.stdout, StrictLoader) if document]

    return documents
