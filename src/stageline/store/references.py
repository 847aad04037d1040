"""References as text where several are joined into one: each percent-encoded, so that any path, prompt and key works.

Only what passes through KFP from step to step is written so; jobs and files hold lists and JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

from stageline.errors import StoreError

WORD = re.compile(r"(?:[A-Za-z0-9_.~/:@-]|%[0-9A-F]{2})*")


def encode(text: str) -> str:
    """One word without space, `=`, comma or quotation mark; an ordinary reference stays as it is. text: any."""
    return quote(text, safe="/:@", errors="surrogateescape")


def decode(word: str) -> str:
    """The text of an encoded word. StoreError for what `encode` never makes."""
    if not WORD.fullmatch(word):
        raise StoreError(
            f"{word!r} is no encoded reference", remedy="hand it on as the step before gave it, percent-encoded"
        )
    return unquote(word, errors="surrogateescape")


def join_pairs(pairs: Mapping[str, str]) -> str:
    """`name=reference` words between spaces. pairs: name -> reference; an empty one is none."""
    return " ".join(f"{encode(name)}={encode(text)}" for name, text in pairs.items())


def split_pairs(text: str) -> dict[str, str]:
    """Name -> reference of `name=reference` words; a name without a reference has "".

    StoreError for a word that is no pair, and for a name that comes twice.
    """
    found: dict[str, str] = {}
    for word in text.split():
        name, sign, reference = word.partition("=")
        if not sign or decode(name) in found:
            why = "expected name=reference" if not sign else "the name comes twice"
            raise StoreError(f"{word!r} in {text!r}: {why}", remedy="one word per name, percent-encoded")
        found[decode(name)] = decode(reference)
    return found
