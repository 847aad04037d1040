"""Tables as CSV text that reads back as it was written, whatever the cells hold."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

MAX_LINE = 2**22
"""Characters, chosen here."""


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """UTF-8 text with a header, RFC 4180 quoting, lines that end in a line feed; an absent or None cell is empty.

    columns: their order.  rows: column -> cell; one with a column beyond those is a ValueError.
    """
    # With "\n" as its line end Python's writer leaves a carriage return in a cell unquoted, and no reader takes that.
    end, lines = "\r\n", []
    for row in ({name: name for name in columns}, *rows):
        line = io.StringIO()
        csv.DictWriter(line, columns, restval="", lineterminator=end).writerow(row)
        lines.append(line.getvalue().removesuffix(end))
    return "".join(f"{line}\n" for line in lines)


def csv_rows(text: str) -> list[dict[str, str]]:
    """The rows of such a text, column -> cell."""
    return list(csv.DictReader(io.StringIO(text, newline="")))


def bounded_lines(file: TextIO) -> Iterator[str]:
    """The lines of a table that somebody else wrote; csv.Error for one longer than MAX_LINE."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise csv.Error(f"a line of more than {MAX_LINE:,} characters (MAX_LINE)")
        yield line
