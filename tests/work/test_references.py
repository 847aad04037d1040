"""References that travel as text come out as they went in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageline.errors import StoreError
from stageline.store.references import WORD, decode, encode, join_pairs, split_pairs

TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["/data/my runs/a@sha256:" + "0" * 64, "s3://b/a=b,c/ä%20", "nvidia.com/gpu", "a photo, 'blue'\n"]),
)


@given(TEXTS)
def test_any_text_becomes_one_word_and_comes_back(text: str) -> None:
    word = encode(text)
    assert WORD.fullmatch(word)
    assert not set(word) & set(" \n\t=,'\"%") - {"%"}
    assert decode(word) == text


@given(st.dictionaries(TEXTS, TEXTS, max_size=4))
def test_any_pairs_come_back(pairs: dict[str, str]) -> None:
    assert split_pairs(join_pairs(pairs)) == pairs


def test_an_ordinary_reference_stays_readable() -> None:
    text = "s3://bucket/runs/a/film/checkpoints/step-00000010@sha256:" + "0" * 64
    assert encode(text) == text
    assert split_pairs("default= extra=/a") == {"default": "", "extra": "/a"}


@pytest.mark.parametrize("text", ["a b", "role", "a=1 a=2", "a=%zz", "a=b=c"])
def test_what_no_encoding_makes_is_refused(text: str) -> None:
    with pytest.raises(StoreError):
        split_pairs(text)
