"""Texts as metrics see them: words or characters, normalised; and the equality of whole texts.

A stand-in, without Java, for the PTB tokenizer of the COCO toolkit: NFKC, lower case, and every punctuation mark or
symbol is a border between words and dropped. Unlike there, a hyphen or an apostrophe inside a word is a border too
(`left-hand` is two words). Languages without spaces are split into characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping

BORDERS = "PSZC"
"""Unicode's general categories that stand between words: punctuation, symbols, separators, controls."""
INVISIBLE = "Cf"
"""Format characters (soft hyphen, joiners): removed without a border."""
ASCII_BORDERS = re.compile(r"[^0-9a-z]+")
MARKS = "M"
"""Combining marks belong to the character before them."""


def normalise(text: str) -> str:
    """NFKC, lower case, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, without punctuation."""
    text = normalise(text)
    if text.isascii():
        return tuple(ASCII_BORDERS.sub(" ", text).split())
    kept = []
    for character in text:
        kind = unicodedata.category(character)
        if kind != INVISIBLE:
            kept.append(" " if kind[0] in BORDERS else character)
    return tuple("".join(kept).split())


def characters_of(text: str) -> tuple[str, ...]:
    """The characters of a text without white space and punctuation, each with its combining marks."""
    found: list[str] = []
    for word in words_of(text):
        for place, character in enumerate(word):
            if place and unicodedata.category(character)[0] == MARKS:
                found[-1] += character
            else:
                found.append(character)
    return tuple(found)


TOKENIZERS: Mapping[str, Callable[[str], tuple[str, ...]]] = {"word": words_of, "char": characters_of}
"""What `metrics.tokenize` may name."""


def plain_text(text: str) -> str:
    """A text as `exact_match` compares it: normalised, punctuation at its end removed."""
    text = normalise(text)
    while text and unicodedata.category(text[-1])[0] in "PZ":
        text = text[:-1]
    return text
