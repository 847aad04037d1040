"""How much a text that somebody else wrote may ask for: YAML with its aliases, JSON, shapes of arrays.

Every reader of such texts comes here, so that each rule stands once. What is too large is refused before anything is
made from it, with the limit and the name it has here; the parser of JSON stops at a thousand levels by itself.
Limits are chosen here unless a source is named.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Collection
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

import yaml

MAX_YAML_BYTES = 2**20
MAX_YAML_NODES = 100_000
"""Values, keys and lists of a document once every alias stands for what it names."""
MAX_DEPTH = 100
"""Levels of lists and mappings, in YAML and JSON; a schema of Kubernetes has about fifty."""
MAX_JSON_BYTES = 64 * 2**20
MAX_DIGITS = 300
"""Of a whole number: it is a finite one as a float, too."""
LONG_NUMBER = re.compile(rb"[0-9]{%d}" % MAX_DIGITS)
MAX_AXES = 16
MAX_ARRAY_BYTES = 2**62
MAX_PIXELS = 89_478_485
"""Default of `data.max_pixels`: of 3 bytes each, a quarter of a GiB (as Pillow warns from)."""
PARSER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class TooLargeError(ValueError):
    """A text asks for more than is given."""


def check_yaml(text: str) -> None:
    """Refuse a text whose documents would be too large: TooLargeError, or what the parser says of it.

    Reads events one after the other and holds one number per anchor, so that it costs what the text costs.
    """
    size = len(text.encode("utf-8", errors="surrogatepass"))
    if size > MAX_YAML_BYTES:
        raise TooLargeError(f"it has {size} bytes, at most {MAX_YAML_BYTES} are read (MAX_YAML_BYTES)")
    anchors: dict[str, int | None] = {}
    """Anchor -> nodes behind it; None while it is still open."""
    open_nodes: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=PARSER):
        if isinstance(event, yaml.CollectionStartEvent):
            if len(open_nodes) == MAX_DEPTH:
                raise TooLargeError(f"it is nested deeper than {MAX_DEPTH} levels (MAX_DEPTH)")
            open_nodes.append((event.anchor, total))
            if event.anchor:
                anchors[event.anchor] = None
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                anchors[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                anchors[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            behind = anchors.get(str(event.anchor), 1)  # one that nothing defines is the parser's to refuse
            if behind is None:
                raise TooLargeError(f"*{event.anchor} stands inside of what it names, without end")
            total += behind
        if total > MAX_YAML_NODES:
            raise TooLargeError(
                f"it has more than {MAX_YAML_NODES} values once aliases stand for what they name (MAX_YAML_NODES)"
            )


def _number(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise TooLargeError(f"it holds a number of {len(text)} digits, at most {MAX_DIGITS} are read (MAX_DIGITS)")
    return int(text)


def read_json(data: bytes | str, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value of a JSON text. data: as it was read.  max_bytes: most of it.

    TooLargeError, a ValueError, for a text that is too long or nested too deep; ValueError for one that is no JSON.
    """
    raw = data.encode("utf-8", errors="surrogatepass") if isinstance(data, str) else data
    if len(raw) > max_bytes:
        raise TooLargeError(f"it has {len(raw)} bytes, at most {max_bytes} are read")
    too_deep = f"it is nested deeper than {MAX_DEPTH} levels (MAX_DEPTH)"
    try:
        value = json.loads(data, parse_int=_number if LONG_NUMBER.search(raw) else None)
    except RecursionError as error:  # at a thousand levels
        raise TooLargeError(too_deep) from error
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = chain.from_iterable(v.values() if type(v) is dict else v for v in level if type(v) in (dict, list))
        level = [v for v in inner if type(v) in (dict, list)]
        if not level:
            return value
    raise TooLargeError(too_deep)


def open_regular(path: Path) -> BufferedReader:
    """A file of a user's, opened to be read, links followed; OSError also for a pipe, which would be waited for."""
    found = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise OSError(errno.EINVAL, "Is no regular file", str(path))
    return os.fdopen(found, "rb")


def read_whole(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of a file that somebody else wrote; TooLargeError before more than `max_bytes` are read, or OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise TooLargeError(f"it has {size} bytes, at most {max_bytes} are read")
        return file.read(size)


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value of JSON is a number of things: an integer from 0 on that a file can hold."""
    return type(value) is int and 0 <= value < 2**63


def shape_fault(shape: Any, item_bytes: int = 1) -> str:
    """What is wrong with the shape of an array that a file describes; "" for one that can be made.

    shape: as it was read.  item_bytes: of one element. An axis of 0 does not make the others free.
    """
    if not isinstance(shape, Collection) or isinstance(shape, str | bytes):
        return f"its shape is {shape!r:.80}"
    if len(shape) > MAX_AXES:
        return f"it has {len(shape)} axes, at most {MAX_AXES} are read (MAX_AXES)"
    if not all(is_count(size) for size in shape):
        return f"its shape is {list(shape)!r:.80}, expected counts"
    size = item_bytes
    for length in shape:
        size *= max(length, 1)
    return f"its shape {list(shape)} asks for {size} bytes" if size > MAX_ARRAY_BYTES else ""
