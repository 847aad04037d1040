"""Files of the user's own that make data (`data.code`): part of the data, executed by who prepares, kept for pods."""

from __future__ import annotations

import hashlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stageline.checkpoint.usercode import code_digests, keep_code, load_code, name_code, named_code
from stageline.cli.configuration import raw_preset
from stageline.config import RunConfig, fingerprint, semantic
from stageline.errors import ConfigError
from stageline.families import family_config, load_family, parse_config
from stageline.families.film_flow.data import sources
from stageline.plan import make_plan
from stageline.store import open_store
from stageline.verbs.prepare import prepare_data
from stageline.work.data import hash_sources, run_splits, split_fingerprints

OWN = '''
"""Masks of everything that film_flow makes, turned round."""
from dataclasses import replace
from stageline.families.film_flow.data import sources
plain = sources.open_source
def open_source(config, split):
    found = plain(config, split)
    return replace(found, label_origin="turned round by {name}")
sources.open_source = open_source
'''


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user's file changes is undone after each test."""
    monkeypatch.setattr(sources, "open_source", sources.open_source)


def tiny(root: Path, *code: Path, run: str = "a") -> RunConfig:
    own = [f"data.code={[str(path) for path in code]}"] if code else []
    return parse_config(
        raw_preset("film_flow", "tiny"), [f"root={root}", f"run={run}", "data.num_train=2", "data.num_val=1", *own]
    )


def write(path: Path, name: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OWN.replace("{name}", name))
    return path


def keys_of(config: RunConfig) -> dict[str, str]:
    splits = run_splits(config, family_config(config.family))
    return split_fingerprints(config, splits, hash_sources(splits))


def test_without_files_the_data_are_those_of_before(tmp_path: Path) -> None:
    """The fingerprints are those that the same config had before there was such a setting."""
    raw = raw_preset("film_flow", "tiny")
    given = parse_config({**raw, "data": {**raw["data"], "code": []}}, [f"root={tmp_path}"])
    plain = parse_config(raw, [f"root={tmp_path}"])
    assert keys_of(given) == keys_of(plain)
    assert fingerprint(keys_of(plain)) == "37c5e32944429096ce93046fd931011ffefa1a46e269d754789224ed671c1e62"
    assert fingerprint(semantic(plain)) == fingerprint(semantic(given))


def test_a_file_counts_by_its_content_and_in_the_data_alone(tmp_path: Path) -> None:
    here, there = write(tmp_path / "here" / "own.py", "one"), write(tmp_path / "there" / "own.py", "one")
    assert keys_of(tiny(tmp_path, here)) == keys_of(tiny(tmp_path, there))
    assert not set(keys_of(tiny(tmp_path, here)).values()) & set(keys_of(tiny(tmp_path)).values())
    assert fingerprint(semantic(tiny(tmp_path, here))) == fingerprint(semantic(tiny(tmp_path)))
    write(there, "two")
    assert keys_of(tiny(tmp_path, here)) != keys_of(tiny(tmp_path, there))
    assert code_digests(tiny(tmp_path, here)) == {}, "not of the stages' own"


def test_preparing_executes_it_and_a_plan_does_not(tmp_path: Path) -> None:
    path = write(tmp_path / "user" / "own.py", "me")
    config = tiny(tmp_path / "root", path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    module = f"stageline_user_{digest[:16]}"
    assert make_plan(config)["prepare_data"].action == "run"
    assert module not in sys.modules
    made = prepare_data(config)
    assert module in sys.modules
    assert made.splits["train"].facts["labels"] == "turned round by me"
    assert open_store(config.root).get(f"runs/a/code/{digest}.py") == path.read_bytes()
    assert make_plan(config)["prepare_data"].action == "reuse"
    assert prepare_data(tiny(tmp_path / "root")).splits["train"].digest != made.splits["train"].digest


def test_a_pod_has_the_text_without_the_file(tmp_path: Path) -> None:
    """As submitted: the config names the kept text, which prepares the same data anew."""
    path = write(tmp_path / "user" / "own.py", "me")
    config = keep_code(tiny(tmp_path / "root", path))
    assert config == name_code(tiny(tmp_path / "root", path))
    shutil.rmtree(tmp_path / "user")
    made = prepare_data(config)
    shutil.rmtree(tmp_path / "root" / "cache")
    assert make_plan(config)["prepare_data"].action == "run"
    assert prepare_data(config).splits == made.splits
    shutil.rmtree(tmp_path / "root" / "runs")
    assert prepare_data(config).reused, "what is there needs no text"
    shutil.rmtree(tmp_path / "root" / "cache")
    with pytest.raises(ConfigError, match=r"data\.code.*\n.*own\.py: its text"):
        prepare_data(config)


def test_a_file_that_is_gone_blocks_the_plan(tmp_path: Path) -> None:
    plan = make_plan(tiny(tmp_path, tmp_path / "gone.py"))
    assert plan["prepare_data"].action == "blocked"
    assert "gone.py' cannot be read" in plan["prepare_data"].reasons[0]


def test_readers_get_it_where_their_family_asks(tmp_path: Path) -> None:
    """Training, evaluation, prediction and `load` execute it for such a family alone, and `load` names it then."""
    config = tiny(tmp_path, write(tmp_path / "own.py", "a reader"))
    family = load_family("film_flow")
    assert named_code(config, family.code_sections) == ()
    assert load_code(config, sections=family.code_sections) == {}
    asking = replace(family, reads_with_code=True)
    assert named_code(config, asking.code_sections) == (str(tmp_path / "own.py"),)
    assert set(load_code(config, sections=asking.code_sections)) == {"own.py"}
