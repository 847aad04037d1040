"""What a TIFF's directories say, read without Pillow and before it. No torch. Source: TIFF 6.0, section 2; BigTIFF."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value by its type."""

MAX_ENTRIES = 65_535
"""Of a directory: what a classic one can count. Further ones are left unread."""


@dataclass(frozen=True)
class Entry:
    """One tag. place: where it stands in the file.  offset: of its values, if they do not fit into it."""

    place: int
    tag: int
    kind: int
    values: int
    offset: int


def is_big_tiff(head: bytes) -> bool:
    """Whether Pillow reads a TIFF that begins so with offsets of 64 bits."""
    return head[2:3] == b"\x2b"


def directories(file: BinaryIO, most: int) -> Iterator[list[Entry]]:
    """The entries of the first directories, `most` of them, as far as they are there. The file is moved.

    Which form a file has is told as Pillow tells it, whatever else its head says: what counts is what will be read.
    """
    file.seek(0)
    head = file.read(16)
    if len(head) < 16:
        return
    order, is_big = ("<" if head[:2] == b"II" else ">"), is_big_tiff(head)
    formats = ("Q", "HHQQ", "Q") if is_big else ("H", "HHII", "I")
    count, entry, place = (order + letters for letters in formats)
    size = file.seek(0, io.SEEK_END)
    start = struct.unpack_from(place, head, 8 if is_big else 4)[0]
    for _ in range(most):
        if not 0 < start < size:
            return
        file.seek(start)
        found = file.read(struct.calcsize(count))
        if len(found) < struct.calcsize(count):
            return
        first, each = start + len(found), struct.calcsize(entry)
        there = min(struct.unpack(count, found)[0], (size - first) // each)
        parts = struct.iter_unpack(entry, file.read(min(there, MAX_ENTRIES) * each))
        yield [Entry(first + each * number, *part) for number, part in enumerate(parts)]
        file.seek(first + there * each)
        following = file.read(struct.calcsize(place))
        start = struct.unpack(place, following)[0] if len(following) == struct.calcsize(place) else 0
