"""How a text that somebody else wrote is shown, and the one door to the terminal, where one argument is one line.

What moves a cursor, turns the order of letters or can't be seen becomes visible: `\\u001b`.

Escaped are the general categories Cc, Cf, Cs, Zl and Zp of Unicode, fillers without a shape, and U+FFFE and U+FFFF: so
a text can't hold colours, links or the clipboard (OSC 8, OSC 52), go back on its line, or begin another one. Letters of
every language stay as they are. This is the lowest layer; errors, records, events and the report all come here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

LONGEST_LINE = 1 << 16
"""Characters of one printed line; more is cut."""
_SHORT = {"\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r"}
_CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
_FORMAT = (
    r"\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    r"\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e007f"
)
_UNSEEN = (
    r"\u2028\u2029\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\ufff0-\ufff8\ufffe\uffff"
    r"\U000e0080-\U000e00ff\U000e01f0-\U000e0fff"
)
_VARIANTS = (
    r"|(?<![\xa9\xae\u203c\u2049\u20a0-\u3163\u3165-\ud7ff\uf900-\ufdff\ufe10-\ufefe\uff01-\uff9f\uffa1-\uffef"
    r"\U0001d400-\U0003ffff])[\ufe00-\ufe0f\U000e0100-\U000e01ef]"
    r"|(?<![\u1820-\u18aa])[\u180b-\u180d\u180f]"
)
"""They choose a form of the character before: seen behind symbols, ideographs and Mongolian letters alone."""
_UNSAFE = re.compile(f"[{_CONTROL}{_FORMAT}{_UNSEEN}\ud800-\udfff]{_VARIANTS}")
_UNSAFE_IN_LINE = re.compile(f"[\n{_CONTROL}{_FORMAT}{_UNSEEN}\ud800-\udfff]{_VARIANTS}")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def _visible(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}")


def _in_json(match: re.Match[str]) -> str:
    """The same in JSON, which writes what is beyond 16 bits as a pair."""
    return json.dumps(match[0])[1:-1] if match[0] != "\x7f" else "\\u007f"


def cut(text: str, longest: int) -> str:
    """At most `longest` characters of a text; the last of one that was longer is `…`."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def escaped(text: str, longest: int | None = None) -> str:
    """A text of several lines that may be shown: line ends and tabs stay. longest: characters, None for all."""
    if longest is None:
        return _UNSAFE.sub(_visible, text)
    return cut(_UNSAFE.sub(_visible, text[: longest + 1]), longest)


def one_line(value: object, longest: int = LONGEST_LINE) -> str:
    """A value that may be shown within one line: its line ends are visible, too. longest: characters."""
    return cut(_UNSAFE_IN_LINE.sub(_visible, str(value)[: longest + 1]), longest)


def escaped_values(value: Any) -> Any:
    """A JSON value with all its texts, keys too, as they may be shown."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, Mapping):
        return {escaped(str(key)): escaped_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [escaped_values(item) for item in value]
    return value


def without_colours(line: str) -> str:
    """A line without the colours that a program of others put in; whatever else it holds stays."""
    return _COLOUR.sub("", line)


def quoted_block(text: str) -> list[str]:
    """The lines of a text that is several: those after the first are indented, and none looks like a remedy.

    Whoever wrote a part of it can so neither begin a line of ours nor say what to do in our name.
    """
    first, *rest = escaped(text).split("\n")
    return [first, *(_below(line) for line in rest)]


def _below(line: str) -> str:
    bare = line.lstrip()
    if bare.startswith("->"):
        line = line.replace("->", r"\u002d>", 1)
    return line if line.startswith("  ") or not bare else f"  {line}"


def json_text(value: Any, indent: int | None = 1, default: Callable[[Any], Any] | None = None) -> str:
    """JSON that may be shown and says the same: letters as they are, everything else as JSON's own escapes."""
    return _UNSAFE.sub(_in_json, json.dumps(value, indent=indent, ensure_ascii=False, default=default))


def remedy_lines(remedy: str) -> list[str]:
    """A remedy of ours as it is shown below what it mends, nothing for none."""
    first, *rest = escaped(remedy).split("\n")
    return [f"  -> {first}", *(f"     {line}" for line in rest)] if remedy else []


def say(*lines: object, error: bool = False, flush: bool = True) -> None:
    """Print, one line per argument, an empty one for none. error: to standard error instead of standard output."""
    target = sys.stderr if error else sys.stdout
    print(*(one_line(line) for line in lines), sep="\n", file=target, flush=flush)


def say_block(text: str, *, error: bool = False) -> None:
    """Print a text of our own that has several lines, JSON and YAML: line ends stay."""
    print(escaped(text), file=sys.stderr if error else sys.stdout, flush=True)
