"""The documentation says what is so: commands parse, links resolve, keys, targets, files and exit codes exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from stageline import errors
from stageline.config import dotted_fields
from stageline.families import FAMILIES, family_config, parse_config
from stageline.kube.rights import RULES

ROOT = Path(__file__).parents[2]
FOLDERS = ("helm/stageline", "manifests")
"""Folders with a page of their own."""
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / folder / "README.md" for folder in FOLDERS)]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SECTIONS = ("trainer", "cluster", "model", "data", "evaluate", "import", "stage_overrides", "parents")


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(text: str) -> Iterator[str]:
    """Command lines of the program in code blocks, with continued lines joined; output has a mark of its own."""
    for language, block in FENCE.findall(text):
        if language in ("", "sh", "bash", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                stripped = line.removeprefix("$ ").strip()
                if stripped.startswith("stageline "):
                    yield stripped.partition(" #")[0]


def mentions(text: str) -> Iterator[str]:
    """Words in backticks outside of code blocks."""
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


COMMANDS = [(page_id(page), line) for page in PAGES for line in commands(page.read_text())]


@cache
def program() -> Any:
    import typer

    from stageline.cli import app

    return typer.main.get_command(app)


def root_options() -> set[str]:
    """Options of the program itself, without a command."""
    return {option for param in program().params for option in param.opts}


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words lead to, and what is left of them."""
    command, rest = program(), list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    return command, rest


@pytest.mark.parametrize(
    ("page", "line"), COMMANDS, ids=[f"{page}-{index}" for index, (page, _) in enumerate(COMMANDS)]
)
def test_documented_command_exists_with_its_options(page: str, line: str) -> None:
    words = shlex.split(line)[1:]
    if words[0].startswith("--"):
        assert set(words) <= root_options(), f"{line!r}: the program itself takes {sorted(root_options())}"
        return
    command, rest = find_command(words)
    assert not getattr(command, "commands", {}), f"{line!r} ends at a group"
    context = type(command).context_class(command, info_name=command.name)
    values, left, _ = command.make_parser(context).parse_args(rest)
    assert not left, f"{line!r}: nobody takes {left}"
    missing = [param.name for param in command.params if param.required and not values.get(param.name)]
    assert not missing, f"{line!r} lacks {missing}"


@pytest.mark.parametrize(
    ("page", "line"), COMMANDS, ids=[f"{page}-{index}" for index, (page, _) in enumerate(COMMANDS)]
)
def test_documented_overrides_are_accepted(page: str, line: str) -> None:
    overrides = [word for word in shlex.split(line)[2:] if re.match(r"^[a-z_]+(\.[a-z_]+)*=", word)]
    parse_config(family_config("film_flow").presets["tiny"], overrides, line)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 15


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_mentioned_commands_exist(page: Path) -> None:
    for words in mentions(page.read_text()):
        if words.startswith("stageline ") and not words.startswith("stageline run "):
            named = re.split(r"[ .]", words)[1:]
            if named[0].startswith("--"):
                assert set(named) <= root_options(), f"{words!r}: the program itself has no such option"
                continue
            command, rest = find_command(named)
            assert command is not program(), f"{words!r} is no command"
            assert not (getattr(command, "commands", {}) and rest and rest[0].isalpha()), f"{words!r} is no command"


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as forges make them."""
    found = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_resolve(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        assert not target.startswith("/"), f"{target} is absolute"
        if re.match(r"^[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page_id(page)}: {target} does not exist"
        if anchor:
            assert anchor in anchors(path), f"{page_id(page)}: no heading {anchor!r} in {file}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_mentioned_keys_files_and_targets_exist(page: Path) -> None:
    # A family's own page knows its own keys; every other page may speak of any family's.
    families = [page.stem] if page.stem in FAMILIES else sorted(FAMILIES)
    keys = {key for family in families for key in dotted_fields(family_config(family).config)}
    known = {".".join(key.split(".")[:depth]) for key in keys for depth in range(1, key.count(".") + 2)}
    known |= {"cluster.yaml"}  # of the chart's ConfigMap
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in mentions(page.read_text()):
        key = re.match(rf"^((?:{'|'.join(SECTIONS)})(?:\.[a-z_]+)+)(?:[=: ].*)?$", words)
        if key and not key[1].startswith(("stage_overrides.", "parents.")) and not key[1].endswith(".safetensors"):
            assert key[1] in known, f"{page_id(page)}: there is no key {key[1]!r}"
        if re.match(r"^(src|components|pipelines|scripts|docs|tests|benchmarks|families)/", words):
            place = ROOT / "src" / "stageline" / words if words.startswith("families/") else ROOT / words
            in_guide = ROOT / "scripts" / page.stem / words
            assert place.exists() or in_guide.exists(), f"{page_id(page)}: {words} does not exist"
        if words.startswith("make ") and " " not in words[5:]:
            assert words[5:] in targets, f"{page_id(page)}: no target {words!r}"
    for _, block in FENCE.findall(page.read_text()):
        for target in re.findall(r"^make ([a-z-]+)", block, re.MULTILINE):
            assert target in targets, f"{page_id(page)}: no target {target!r}"


def test_exit_codes_in_the_table_are_those_of_the_errors() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| (fix|try again) \|$", (ROOT / "docs/training.md").read_text(), re.MULTILINE)
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.StagelineError)
    ]
    assert {int(code) for code, _ in rows} == {kind.exit_code for kind in kinds}
    for code, what in rows:
        assert (what == "try again") == (int(code) >= 128)


def test_every_decision_is_listed_and_names_what_was_not_chosen() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    for note in folder.glob("20*.md"):
        text = note.read_text()
        assert f"({note.name})" in index
        assert text.startswith(f"# {note.name[:10]} "), f"{note.name} does not begin with its date"
        assert "**Chosen.**" in text
        assert "**Not chosen" in text


def test_decoder_stage_table_is_what_the_model_has() -> None:
    from stageline.families.film_flow.config.film_plan import decoder_channels

    rows = re.findall(r"^\| (\d) \| \S+ \| (\d+) \| (\d+) \|$", (ROOT / "docs/film_flow.md").read_text(), re.MULTILINE)
    channels = decoder_channels(32, (1, 2, 3, 4))
    assert [(int(s), int(c), int(w)) for s, c, w in rows] == [(s, c, 2 * c) for s, c in enumerate(channels)]


def test_the_picture_says_what_the_launcher_may() -> None:
    """What docs/kubernetes.md says of it."""
    nouns = {
        **{"pytorchjobs": "PyTorchJobs", "leases": "Leases", "networkpolicies": "NetworkPolicies", "pods": "Pods"},
        **{"pods/log": "logs", "events": "events", "configmaps": "the defaults", "persistentvolumeclaims": "claims"},
        **{"serviceaccounts": "accounts", "namespaces": "the namespace", "localqueues": "queues"},
    }
    words = {"get": "read", "list": "read", "watch": "read"}

    def may(*parts: str) -> dict[str, str]:
        rules = [(nouns[rule.resource], rule.verbs) for rule in RULES if rule.part in parts]
        order = ("create", "read", "patch", "update", "delete")
        return {noun: ", ".join(sorted({words.get(v, v) for v in verbs}, key=order.index)) for noun, verbs in rules}

    launch = may("launch", "network")
    sentences = [f"{noun}: {verbs}." for noun, verbs in launch.items() if verbs != "read"]
    sentences.append(", ".join(noun for noun, verbs in launch.items() if verbs == "read") + ": read.")
    doctor = may("doctor")
    assert set(doctor.values()) == {"read"}
    sentences.append(f"For doctor also {', '.join(noun for noun in doctor if noun not in launch)}: read.")
    lines = re.findall(r"<text[^>]*>([^<]*)</text>", (ROOT / "docs/kubernetes.svg").read_text())
    told = " ".join(lines[lines.index("May do") :])
    assert [sentence for sentence in sentences if sentence not in told] == []
