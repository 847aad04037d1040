"""Whatever cells hold, a table reads back as it was written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stageline.data.tables import csv_rows, csv_text

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0")) | st.sampled_from(
    ["\r", "\n", "\r\n", '"', ",", "a\rb", ' "x" ', ""]
)


@given(st.lists(st.fixed_dictionaries({"one": CELLS, "two": CELLS})))
def test_a_table_reads_back(rows: list[dict[str, str]]) -> None:
    assert csv_rows(csv_text(("one", "two"), rows)) == rows


def test_cells_that_are_absent_or_none_are_empty() -> None:
    assert csv_text(("a", "b"), [{"a": None}, {"b": 2}]) == "a,b\n,\n,2\n"
