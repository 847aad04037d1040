"""HTML as escaped text: elements, tables and numbers of the report.

Every string that is not `Markup` is escaped on its way in, so that no value of a config, an event or an error can
become an element. Numbers are shown rounded and carry their exact value in a `<data>` element.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

from stageline.printing import escaped


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | Markup | Iterable["Child"] | None
MAX_TEXT = 300
"""Characters that are shown of one text of a row."""
VOID_ELEMENTS = frozenset({"meta", "br", "hr", "img", "col"})
_NO_SPACE_AROUND = re.compile(r"[^a-zA-Z0-9]+")


def escape(text: object) -> Markup:
    """Any value as HTML text; what `printing` makes visible is so here."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(escaped(str(text)), quote=True))


def join(children: Child) -> Markup:
    """Children in order, escaped where they are not Markup."""
    if children is None:
        return Markup("")
    if isinstance(children, str):
        return escape(children)
    return Markup("".join(join(child) for child in children))


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """One element. `class_` is class, `data_x` is data-x; None and False leave an attribute out."""
    shown = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        shown.append(f" {attribute}" if value is True else f' {attribute}="{escape(value)}"')
    opening = f"<{name}{''.join(shown)}>"
    if name in VOID_ELEMENTS:
        return Markup(opening)
    return Markup(f"{opening}{join(children)}</{name}>")


def link(path: str) -> Markup:
    """A file beside the report: its name, and an address that says nothing else, whatever it is called."""
    return tag("a", path, href="./" + quote(path.encode("utf-8", "surrogateescape"), safe="/"))


def anchor(text: str) -> str:
    """A text as an id: letters, digits and hyphens."""
    return _NO_SPACE_AROUND.sub("-", text).strip("-").lower() or "x"


def number(value: Any, digits: int = 4) -> Markup:
    """A number rounded to `digits` significant digits, its exact value in the element; other values as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return tag("span", str(value), class_="bad")
    return tag("data", rounded(value, digits), value=json.dumps(value))


def measured(value: float, decimals: int = 4) -> Markup:
    """A finite number with so many decimals, so that columns line up; whole ones from 10 on are counts."""
    if not math.isfinite(value) or (float(value).is_integer() and abs(value) >= 10):
        return number(value)
    return tag("data", f"{value:.{decimals}f}", value=json.dumps(value))


def rounded(value: float, digits: int = 4) -> str:
    """A number for people: whole ones with thin spaces, others with `digits` significant digits."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.{digits}g}"


def plain(value: Any) -> Markup:
    """A JSON value in one line."""
    if value is None:
        return tag("span", "none", class_="quiet")
    if isinstance(value, bool):
        return escape("yes" if value else "no")
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple) and not any(isinstance(item, dict | list | tuple) for item in value):
        return escape("[" + ", ".join(str(item) for item in value) + "]")
    return tag("code", json.dumps(value, ensure_ascii=False, sort_keys=True))


def table(
    head: Sequence[Child], rows: Iterable[Sequence[Child]], *, caption: str, class_: str = "", row_head: bool = True
) -> Markup:
    """A table with a caption; the first cell of each row is its heading unless `row_head` is off.

    class_: `numbers` for columns of numbers; `wide` for rows of texts, which a narrow page shows one below the other.
    """
    labels = {index: said for index, said in enumerate(head) if isinstance(said, str)} if class_ == "wide" else {}
    body = []
    for row in rows:
        cells = [
            tag("th", cell, scope="row") if row_head and index == 0 else tag("td", cell, data_label=labels.get(index))
            for index, cell in enumerate(row)
        ]
        body.append(tag("tr", cells))
    header = tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in head]))
    whole = tag("table", tag("caption", caption), header, tag("tbody", body), class_=class_ or None)
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def fold(summary: Child, *children: Child, is_open: bool = False, class_: str = "") -> Markup:
    """A part that opens on a click."""
    return tag("details", tag("summary", summary), *children, open=is_open, class_=class_ or None)


def interval_cell(low: float | None, text: str) -> Child:
    """An interval in a table, on one line; a sentence in the place of one breaks where it must. low: None there."""
    return text if low is None else tag("span", text, class_="unbroken")


def clipped(text: str) -> str:
    """At most MAX_TEXT characters of a text."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def count(number_of: int, noun: str) -> str:
    """1 session, 2 sessions."""
    return f"{number_of} {noun}{'' if number_of == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds for people: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if not math.isfinite(seconds):
        return str(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(num_bytes: float) -> str:
    """Bytes for people, in powers of 1000."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
