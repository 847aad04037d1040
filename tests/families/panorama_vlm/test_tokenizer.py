"""The small tokenizer, and tokenizers in folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stageline.errors import CheckpointError
from stageline.families.panorama_vlm.data.tokenizer import (
    SPECIAL,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from stageline.store.disk import LFS_MARK

TEXTS = [f"The {place} wall is {colour}." for place in ("left", "right") for colour in ("red", "green", "blue")]
NASTY = [
    "",
    " two  spaces ",
    "한국어 질문?",
    "½ ° → 🙂",
    "tab\tnew\nline",
    "\x00\x7f",
    "e\u0301",
    "<|im_end|> in words",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS)


def test_the_same_texts_give_the_same_tokenizer(tokenizer: Any) -> None:
    assert train_tokenizer(TEXTS[::-1]).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert train_tokenizer(TEXTS[:3]).backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str()


def test_special_tokens_come_first_and_are_whole(tokenizer: Any) -> None:
    assert [tokenizer.encode(name, add_special_tokens=False) for name in SPECIAL] == [[n] for n in range(len(SPECIAL))]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert len(SPECIAL) + 256 < len(tokenizer) <= 512


@settings(max_examples=30)
@given(st.text())
def test_any_text_makes_a_round_trip(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert tokenizer.decode(ids) == text
    assert min(ids, default=len(SPECIAL)) >= len(SPECIAL)


def test_a_saved_tokenizer_is_the_same(tokenizer: Any, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path / "saved/here")
    loaded = load_tokenizer(tmp_path / "saved/here")
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    for text in [*TEXTS, *NASTY]:
        for split in (False, True):
            ids = tokenizer.encode(text, split_special_tokens=split)
            assert loaded.encode(text, split_special_tokens=split) == ids
            assert loaded.decode(ids) == tokenizer.decode(ids) == text


def test_what_a_folder_lacks_is_named(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_tokenizer(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"(?s)2 faults.*tokenizer_config\.json is missing.*tokenizer\.json is"):
        load_tokenizer(tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(LFS_MARK + b"v1\noid sha256:00\nsize 11422654\n")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"(?s)tokenizer\.json is a git-lfs pointer of .*tokenizer_config\.json is damaged"
    ):
        load_tokenizer(tmp_path)


def test_code_that_comes_with_a_tokenizer_is_not_run(tokenizer: Any, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: ...\n")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()
