"""Receipts: what a step answered before, valid for the same question while every object it rests on is unchanged.

This is what makes an unchanged run end in seconds: only the standard library and the store are loaded, and each digest
is computed anew. Without a valid receipt the step decides by itself, from config and checkpoints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from stageline import __version__
from stageline.config import is_sealed, seal
from stageline.config.bounds import read_json
from stageline.errors import StoreError
from stageline.printing import one_line
from stageline.store import NotFoundError, Store


@dataclass(frozen=True)
class Receipt:
    """answer: what the step returned.  hashes: object -> SHA-256 of its bytes. Keys are below the root."""

    answer: Mapping[str, Any]
    hashes: Mapping[str, str]


def receipt_key(run: str, item: str) -> str:
    """Where the receipt of a step lies below the root."""
    return f"runs/{run}/pipeline/receipts/{item}.json"


def question(item: str, *parts: str) -> str:
    """SHA-256 of everything the answer depends on. parts: config and references, as given to the step."""
    text = json.dumps([__version__, item, *parts], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_receipt(root: Store, run: str, item: str, asked: str) -> Receipt | None:
    """The receipt for the same question, if everything it rests on is still what it was; None otherwise."""
    try:
        plain = read_json(root.get(receipt_key(run, item)))
    except (NotFoundError, ValueError):  # none, or half of one: the step decides by itself
        return None
    if not is_sealed(plain) or plain.get("question") != asked:
        return None
    answer, hashes = plain.get("answer"), plain.get("hashes")
    if not (_is_answer(answer) and isinstance(hashes, dict) and all(isinstance(h, str) for h in hashes.values())):
        return None  # of another form than ours: the step decides by itself
    receipt = Receipt(answer, hashes)
    try:
        changed = any(_hash(root, key) != sha256 for key, sha256 in receipt.hashes.items())
    except (NotFoundError, StoreError):  # gone, or a name that is none: the step decides by itself
        return None
    return None if changed else receipt


def _is_answer(answer: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a step can go on with it: a reference on one line, and two mappings."""
    if not isinstance(answer, dict) or not isinstance(answer.get("reference"), str):
        return False
    named = one_line(answer["reference"]) == answer["reference"]
    return named and isinstance(answer.get("metadata"), dict) and isinstance(answer.get("metrics", {}), dict)


def _hash(root: Store, key: str) -> str:
    total = hashlib.sha256()
    for chunk in root.stream(key):
        total.update(chunk)
    return total.hexdigest()


def write_receipt(root: Store, run: str, item: str, asked: str, receipt: Receipt) -> None:
    """Leave a receipt for the next run."""
    plain = seal({"question": asked, "answer": dict(receipt.answer), "hashes": dict(receipt.hashes)})
    root.put(receipt_key(run, item), (json.dumps(plain, indent=1, ensure_ascii=False) + "\n").encode())


def below(root: Store, uri: str) -> str | None:
    """The key of a URI below the root, or None where it lies elsewhere."""
    head = root.uri.rstrip("/") + "/"
    return uri[len(head) :] if uri.startswith(head) else None


def rest_on(root: Store, uri: str, hashes: Mapping[str, str]) -> Receipt | None:
    """A receipt without an answer, resting on one committed folder: name -> SHA-256 of the files in it."""
    key = below(root, uri)
    if key is None:
        return None
    return Receipt({}, {f"{key}/{name}": sha256 for name, sha256 in hashes.items()})
