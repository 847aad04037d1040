"""A report as a test reads it: elements, texts, table rows."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser

from stageline.store import Store
from stageline.verbs.report import build_report

VOID = {"meta", "br", "hr", "img", "col"}


class Page(HTMLParser):
    """Elements with attributes, text per element, and a check that everything opened is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.numbers: dict[str, list[str]] = {}
        self.cells: list[list[str]] = []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("th", "td") and self.cells:
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if self.cells and self.open and ({"th", "td"} & set(self.open)):
            self.cells[-1][-1] += data

    def of(self, name: str) -> Iterator[dict[str, str | None]]:
        return (attrs for tag, attrs in self.elements if tag == name)

    def row(self, first: str) -> list[str]:
        return next(row for row in self.cells if row and row[0] == first)


def report_of(store: Store) -> tuple[Page, str]:
    uri = build_report(store.uri)
    assert uri == f"{store.uri}/report.html"
    text = store.get("report.html").decode()
    return Page(text), text
