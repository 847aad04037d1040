"""What documents and notes tell a platform team to type exists: commands of helm and kubectl, flags, values."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ..report.test_docs import FENCE, PAGES, mentions, page_id
from .conftest import helm_program
from .test_objects import CHART, ROOT, Render, defaults
from .test_values import VALUES, Helm, paths

KNOWN = {".".join(where) for where, _ in paths(VALUES)}
TEXTS = [*PAGES, CHART / "templates/NOTES.txt"]
HEADS = sorted(set(VALUES) - {"launcher", "trainer", "cluster", "labels", "annotations", "enabled"})
"""First words of values that are no sections of a config."""
OTHERS = ("kfp.local",)
"""Words that look like values and are none."""


def commands(path: Path) -> Iterator[list[str]]:
    """Words of each line of helm and kubectl, in blocks and in backticks; a template's expression is one."""
    text = re.sub(r"\{\{-?.*?-?\}\}", "X", path.read_text()) if path.suffix == ".txt" else path.read_text()
    blocks = [block for _, block in FENCE.findall(text)] or ([text] if path.suffix == ".txt" else [])
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:helm|kubectl) [^`]+)`", FENCE.sub("", text))
    for line in lines:
        for part in line.replace("\n", " ").partition(" #")[0].split(" | "):
            words = part.strip().removeprefix("$ ")
            if words.startswith(("helm ", "kubectl ")):
                yield shlex.split(words.replace("…", "X"))


COMMANDS = [(page_id(path), words) for path in TEXTS for words in commands(path)]


@cache
def told(program: str, *words: str) -> tuple[int, str]:
    found = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    return found.returncode, found.stdout


def test_there_are_commands_to_check() -> None:
    assert {words[0] for _, words in COMMANDS} == {"helm", "kubectl"}
    assert {page for page, words in COMMANDS if words[0] == "helm"} >= {"README.md", "docs/kubernetes.md"}


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}-{n}" for n, (page, _) in enumerate(COMMANDS)])
def test_a_documented_command_and_its_flags_exist(helm: Helm, page: str, words: list[str]) -> None:
    program = str(Path(helm_program()).with_name(words[0]))
    plain = [word for before, word in pairwise(words) if not word.startswith("-") and before != "-n"]
    code, text = told(program, *plain, "--help")
    assert code == 0, f"{page}: there is no {shlex.join(words[:1] + plain)}"
    text += told(program, "options")[1] if words[0] == "kubectl" else ""
    flags = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))
    asked = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert asked - flags == set(), f"{page}: {shlex.join(words)}"
    sets = [value for option, value in pairwise(words) if option in ("--set", "--set-string")]
    assert {part.partition("=")[0] for value in sets for part in value.split(",")} <= KNOWN


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_a_documented_value_exists(path: Path) -> None:
    named = [re.match(rf"((?:{'|'.join(HEADS)})(?:\.\w+)+)(?:=\S*)?$", words) for words in mentions(path.read_text())]
    found = {name[1] for name in named if name and not name[1].endswith((".md", ".yaml"))}
    assert found - KNOWN - {*OTHERS} == set()


def test_whoever_applies_an_optional_manifest_is_told_what_the_chart_would_set_besides(render: Render) -> None:
    """One switch of the chart makes the object and the default that makes it of use; a plain file makes the object."""

    def leaves(values: dict[str, Any], where: str = "") -> Iterator[str]:
        for key, item in values.items():
            yield from leaves(item, f"{where}{key}.") if isinstance(item, dict) else [f"{where}{key}: {item}"]

    plain = set(leaves(defaults(render())))
    told = (ROOT / "manifests/README.md").read_text()
    optional = runpy.run_path(str(ROOT / "scripts/render_chart.py"))["OPTIONAL"]
    files = [path.stem for path in (ROOT / "manifests/optional").iterdir()]
    assert sorted(files) == sorted(optional)
    for name, (_, values) in optional.items():
        more = set(leaves(defaults(render("", "--set", ",".join(values))))) - plain
        assert [line for line in more if f"`{line}`" not in told] == [], name
        assert (more == set()) is (name == "kfp-role")
