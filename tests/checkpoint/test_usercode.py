"""The user's own Python files: they count by content, travel with the run, and are executed only when that is asked."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from stageline.checkpoint.usercode import code_digests, keep_code, load_code, read_code
from stageline.config import RunConfig, fingerprint, semantic
from stageline.errors import ConfigError
from stageline.store import open_store


def config_of(root: Path, *code: Path | str) -> RunConfig:
    return RunConfig(family="toy", run="a", root=str(root), code=tuple(map(str, code)))


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_counts_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    here = write(tmp_path / "here", "own.py", "A = 1\n")
    there = write(tmp_path / "there", "own.py", "A = 1\n")
    assert code_digests(config_of(tmp_path, here)) == code_digests(config_of(tmp_path, there))
    assert fingerprint(semantic(config_of(tmp_path, here))) == fingerprint(semantic(config_of(tmp_path)))
    there.write_text("A = 2\n")
    assert code_digests(config_of(tmp_path, here)) != code_digests(config_of(tmp_path, there))
    assert code_digests(config_of(tmp_path)) == {}


def test_kept_files_are_executed_where_the_user_s_are_not(tmp_path: Path) -> None:
    path = write(tmp_path / "user", "own.py", "VALUE = 41 + 1\n")
    config = config_of(tmp_path / "root", path)
    kept = keep_code(config)
    assert code_digests(kept) == code_digests(config)
    assert keep_code(kept) == kept
    shutil.rmtree(tmp_path / "user")
    name = f"stageline_user_{code_digests(kept)['own.py'][:16]}"
    assert [file.data for file in read_code(kept)] == [b"VALUE = 41 + 1\n"]
    assert name not in sys.modules
    module = load_code(kept)["own.py"]
    assert module.VALUE == 42
    assert load_code(kept)["own.py"] is module
    shutil.move(tmp_path / "root", tmp_path / "moved")
    assert read_code(kept, open_store(tmp_path / "moved" / "runs" / "a"))
    with pytest.raises(ConfigError, match=r"own\.py: its text"):
        load_code(kept)


def test_a_kept_text_that_was_changed_is_not_executed(tmp_path: Path) -> None:
    kept = keep_code(config_of(tmp_path, write(tmp_path / "user", "own.py", "raise SystemExit(1)  # first\n")))
    (text,) = (tmp_path / "runs" / "a" / "code").iterdir()
    text.write_text("raise SystemExit(2)\n")
    with pytest.raises(ConfigError, match="is another than the one that was named"):
        load_code(kept)


def test_every_file_that_cannot_be_is_named(tmp_path: Path) -> None:
    one = write(tmp_path / "one", "own.py", "")
    two = write(tmp_path / "two", "own.py", "")
    with pytest.raises(ConfigError) as caught:
        code_digests(config_of(tmp_path, one, two, tmp_path / "gone.py", write(tmp_path, "notes.txt", "")))
    for words in ("'own.py' stands twice", "gone.py' cannot be read", "notes.txt' is no Python file"):
        assert words in str(caught.value)


def test_a_file_that_raises_is_told_and_not_remembered(tmp_path: Path) -> None:
    config = config_of(tmp_path, write(tmp_path, "own.py", "import nothing_of_this_name\n"))
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"own\.py ends with ModuleNotFoundError"):
            load_code(config)
