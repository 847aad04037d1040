"""Rows of CSV files: one panorama, one query, its references; and the rows that are set aside.

A row that cannot be used goes into quarantine with its number, file, class and reason. It is never replaced by another
one, so a row is always the same picture with the same text. What is wrong with a whole file (columns, quoting, numbers)
is an error that lists every fault. Pictures are looked at by a function that the caller gives. No torch.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from stageline.config.bounds import open_regular, read_json
from stageline.data import quarantine
from stageline.data.tables import bounded_lines
from stageline.errors import ConfigError, DataError, Faults

QUERY_TEMPLATE = 'In this panoramic image, please provide a concise but detailed description of "{query}".'
"""What makes a sentence of a noun."""
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("url", "image", "image_path", "path"),
    "instruction": ("instruction", "question"),
    "query": ("query",),
    "response": ("response", "annotation", "caption", "answer"),
    "references": ("references",),
    "id": ("id",),
    "split": ("split",),
    "erp_hfov_deg": ("erp_hfov_deg",),
    "erp_vfov_deg": ("erp_vfov_deg",),
}
"""What a column means -> the names it may have, in any case. A `query` is wrapped by the template; an `instruction`
stands as it is and wins where a file has both."""
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MAX_FIELD = 65_536
"""Longest cell, in characters: longer ones are a quote that was never closed."""
IMAGE_KINDS = ("missing", "empty", "not_an_image", "truncated", "too_small", "too_large", "not_equirectangular")
ROW_KINDS = ("url_not_cached", "empty_query", "empty_response", "duplicate_id")
KINDS = (*IMAGE_KINDS, *ROW_KINDS)
"""All classes of rows that are set aside."""
SHOWN = 20
"""Rows of a quarantine that an error lists."""
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
URL_SUFFIX = re.compile(r"\.(jpe?g|png|webp)", re.IGNORECASE)


class ImageFault(Protocol):
    """What is wrong with a picture file: one of `IMAGE_KINDS`, and a sentence."""

    @property
    def kind(self) -> str: ...

    @property
    def message(self) -> str: ...


CheckImage = Callable[[Path, float | None, float | None], ImageFault | None]
"""(file, horizontal and vertical field of view in degrees where a row declares one) -> what is wrong, or None"""


@dataclass(frozen=True)
class Row:
    """One usable row.

    index: its place among all rows read, from 0; rows set aside keep theirs.  number: its place in its CSV, from 1.
    id: the file's own, else made of `index`.  image: the cell.  path: the picture's file.  query: the whole sentence.
    response: what is trained, "" where there is no text.  references: what predictions are compared with.
    erp_hfov_deg, erp_vfov_deg: declared field of view of a partial panorama.
    """

    index: int
    number: int
    csv: Path
    id: str
    image: str
    path: Path
    query: str = ""
    response: str = ""
    references: tuple[str, ...] = ()
    erp_hfov_deg: float | None = None
    erp_vfov_deg: float | None = None


@dataclass(frozen=True)
class SetAside:
    """One row in quarantine: the class of its first fault, a message with all of them."""

    row: Row
    kind: str
    message: str

    def listed(self) -> quarantine.SetAside:
        """As it stands in the list of the run."""
        row = self.row
        return quarantine.SetAside(row.number, str(row.path), self.kind, self.message, str(row.csv))


@dataclass(frozen=True)
class Table:
    """All rows of a split. Both lists are in the order of the files."""

    rows: tuple[Row, ...]
    set_aside: tuple[SetAside, ...]

    @property
    def num_read(self) -> int:
        return len(self.rows) + len(self.set_aside)

    @property
    def counts(self) -> dict[str, int]:
        """Class -> number of rows set aside, for the classes that occur."""
        found = [aside.kind for aside in self.set_aside]
        return {kind: found.count(kind) for kind in KINDS if kind in found}


def read_rows(
    files: Sequence[Path],
    check_image: CheckImage,
    *,
    split: str | None = None,
    image_root: Path | None = None,
    url_cache: Path | None = None,
    query_template: str = QUERY_TEMPLATE,
    with_text: bool = True,
) -> Table:
    """The rows of CSV files, one after the other.

    files: UTF-8, comma-separated, with a header.
    check_image: looks at a picture file; called once per file and declared field of view.
    split: leaves out rows whose column `split` names another one.
    image_root: folder that image cells are relative to; None: the folder of their CSV.
    url_cache: folder in which pictures of http(s) addresses lie under `cached_name`. Nothing is downloaded.
    query_template: a sentence with `{query}`, for files with a column `query` alone.
    with_text: query and response are needed; False: the image column is enough.

    Raises DataError with every fault of every file, ConfigError for a template without `{query}`.
    """
    if query_template.count("{query}") != 1:
        raise ConfigError(
            f"data.query_template {query_template!r} has not exactly one {{query}}",
            remedy="write {query} where the row's query goes; '{query}' alone leaves it as it is",
        )
    faults = Faults(DataError, "rows", "mend the CSV files")
    cells = [cell for file in files for cell in _read_file(file, faults, with_text=with_text)]
    cells = [cell for cell in cells if not split or cell.split in ("", split)]
    faults.raise_if_any()
    looked_at: dict[tuple[Path, float | None, float | None], ImageFault | None] = {}
    first: dict[str, Row] = {}
    good, bad = [], []
    for index, cell in enumerate(cells):
        row = replace(cell.row, index=index, id=cell.row.id or f"row-{index:06d}")
        found: list[tuple[str, str]] = []
        path, problem = locate_image(row.image, image_root or row.csv.parent, url_cache)
        row = replace(row, path=path)
        if problem:
            found.append(problem)
        else:
            key = (path, row.erp_hfov_deg, row.erp_vfov_deg)
            if key not in looked_at:
                looked_at[key] = check_image(*key)
            fault = looked_at[key]
            found += [(fault.kind, fault.message)] if fault else []
        if with_text:
            row = replace(row, query=row.query if cell.whole_query else query_template.replace("{query}", row.query))
            found += [("empty_query", "the query is empty")] if not cell.has_query else []
            found += [("empty_response", "the response is empty")] if not row.response else []
        if row.id in first:
            same = first[row.id]
            found.append(("duplicate_id", f"the id {row.id!r} stands in row {same.number} of {same.csv.name} already"))
        first.setdefault(row.id, row)
        if found:
            bad.append(SetAside(row, found[0][0], "; ".join(message for _, message in found)))
        else:
            good.append(row)
    return Table(tuple(good), tuple(bad))


def check_quarantine(table: Table, on_bad: str, max_bad_fraction: float, split: str = "") -> None:
    """Raise QuarantineError where rows set aside are not allowed (`on_bad: error`), too many, or all there are.

    on_bad: `quarantine` or `error`.  max_bad_fraction: share of the rows read, in [0, 1].  split: name of the list.
    """
    if on_bad not in ("quarantine", "error"):
        raise ConfigError(f"data.on_bad is {on_bad!r}", remedy="use quarantine or error")
    if not table.num_read:
        raise DataError("the CSV files have no rows", remedy="give files with rows")
    num_bad = len(table.set_aside)
    allowed = max_bad_fraction if on_bad == "quarantine" else 0.0
    if table.rows and num_bad <= allowed * table.num_read:
        return
    faults = Faults(
        DataError,
        f"{num_bad} of {table.num_read} rows cannot be used ({num_bad / table.num_read:.1%}, allowed {allowed:.1%})",
        "mend them, or raise data.max_bad_fraction" if on_bad == "quarantine" else "mend them, or set data.on_bad",
    )
    for aside in table.set_aside[:SHOWN]:
        faults.add(f"{aside.row.csv.name} row {aside.row.number}: {aside.kind}: {aside.row.path}: {aside.message}")
    if num_bad > SHOWN:
        faults.add(f"... and {num_bad - SHOWN} more: {table.counts}")
    try:
        faults.raise_if_any()
    except DataError as error:
        listed = {split: tuple(aside.listed() for aside in table.set_aside)}
        raise quarantine.QuarantineError(error.message, remedy=error.remedy, set_aside=listed) from None


def named_images(files: Sequence[Path], image_root: Path | None, url_cache: Path | None) -> tuple[Path, ...]:
    """The picture files that CSV files name, each once, whether or not they are there; () for files with faults.

    image_root, url_cache: as for `read_rows`. Holds no text.
    """
    faults = Faults(DataError, "rows", "mend the CSV files")
    found = {
        locate_image(cell.row.image, image_root or file.parent, url_cache)[0]: None
        for file in files
        for cell in _read_file(file, faults, with_text=False)
    }
    return () if faults.found else tuple(found)


def locate_image(value: str, root: Path, url_cache: Path | None) -> tuple[Path, tuple[str, str] | None]:
    """The file that an image cell means, and the class and message of what is wrong with the cell.

    root: folder of relative paths.  url_cache: folder of fetched pictures.
    """
    if not value or "\0" in value:
        return root, ("missing", "the image cell is empty" if not value else "the image cell holds a zero byte")
    if not URL.match(value):
        return root / value, None
    if urlsplit(value).scheme.lower() not in ("http", "https"):
        return Path(value), ("url_not_cached", f"{value!r}: only addresses with http and https can be fetched")
    name = cached_name(value)
    path = (url_cache or Path()) / name
    if url_cache is None or not path.is_file():
        where = f"is not in {str(url_cache)!r} (as {name})" if url_cache else "has no local cache to lie in"
        return path, ("url_not_cached", f"{value!r} {where}; fetch_images.py fetches it")
    return path, None


def cached_name(url: str) -> str:
    """File name of a fetched picture: the SHA-256 of its address, and the address's suffix if it is a picture's."""
    path = urlsplit(url).path
    suffix = path[path.rfind(".") :] if "." in path else ""
    known = URL_SUFFIX.fullmatch(suffix)
    return hashlib.sha256(url.encode()).hexdigest()[:40] + (suffix.lower() if known else ".img")


@dataclass(frozen=True)
class _Cell:
    """A row as read. has_query: its query is not empty.  whole_query: it is a sentence, not a noun."""

    row: Row
    split: str
    has_query: bool
    whole_query: bool


def _read_file(path: Path, faults: Faults, *, with_text: bool) -> Iterator[_Cell]:
    number = 0
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(bounded_lines(file), strict=True)
            columns = _find_columns(path, next(reader, []), faults, with_text=with_text)
            if columns is None:
                return
            for record in filter(None, reader):
                number += 1
                where = f"{str(path)!r} row {number} (line {reader.line_num})"
                cell = _parse(path, number, record, columns, faults, where)
                if cell is not None:
                    yield cell
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        what = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else "is not readable as a CSV file"
        faults.add(f"{str(path)!r}: {what} behind row {number}: {error}")


def _find_columns(path: Path, header: list[str], faults: Faults, *, with_text: bool) -> dict[str, int] | None:
    """Meaning -> place of the column, "" -> number of columns; None and faults where the file cannot be read so."""
    names = [name.strip().lower() for name in header]
    shown = f"columns found: {', '.join(header) or 'none'}"
    columns, before = {"": len(header)}, len(faults.found)
    for meaning, aliases in COLUMNS.items():
        places = [place for place, name in enumerate(names) if name in aliases]
        if len(places) > 1:
            faults.add(f"{str(path)!r}: {len(places)} columns mean {meaning!r}, expected one of them; {shown}")
        if places:
            columns[meaning] = places[0]
    needed = [("image", ["image"])]
    if with_text:
        needed += [("query", ["instruction", "query"]), ("response", ["response", "references"])]
    for what, meanings in needed:
        if not any(meaning in columns for meaning in meanings):
            accepted = ", ".join(alias for meaning in meanings for alias in COLUMNS[meaning])
            faults.add(f"{str(path)!r}: no column for the {what}; {shown}; accepted: {accepted}")
    return columns if len(faults.found) == before else None


def _parse(
    path: Path, number: int, record: list[str], columns: Mapping[str, int], faults: Faults, where: str
) -> _Cell | None:
    before = len(faults.found)
    if len(record) != columns[""]:
        faults.add(f"{where}: {len(record)} cells, expected {columns['']}")
        return None
    longest = max(map(len, record))
    if longest > MAX_FIELD:
        faults.add(f"{where}: a cell of {longest:,} characters, at most {MAX_FIELD:,}; is a quote never closed?")
        return None

    def cell(meaning: str) -> str:
        return record[columns[meaning]].strip() if meaning in columns else ""

    def angle(meaning: str, most: float) -> float | None:
        text = cell(meaning)
        if text and not (re.fullmatch(r"\d+(\.\d+)?", text) and 0 < float(text) <= most):
            faults.add(f"{where}: {meaning} is {text!r}, expected degrees in (0, {most:g}]")
            return None
        return float(text) if text else None

    listed, split = _references(cell("references"), faults, where), cell("split").lower()
    if "split" in columns and split not in SPLITS:
        faults.add(f"{where}: split {cell('split')!r}, expected one of {', '.join(SPLITS)}")
    whole = "instruction" in columns
    query, response = cell("instruction" if whole else "query"), cell("response")
    row = Row(
        index=0,
        number=number,
        csv=path,
        id=cell("id"),
        image=cell("image"),
        path=path,
        query=query,
        response=response or (listed[0] if listed else ""),
        references=listed or ((response,) if response else ()),
        erp_hfov_deg=angle("erp_hfov_deg", 360),
        erp_vfov_deg=angle("erp_vfov_deg", 180),
    )
    return _Cell(row, SPLITS.get(split, ""), bool(query), whole) if len(faults.found) == before else None


def _references(text: str, faults: Faults, where: str) -> tuple[str, ...]:
    if not text:
        return ()
    try:
        listed = read_json(text)
    except ValueError:
        listed = None
    if not isinstance(listed, list) or not all(isinstance(item, str) and item.strip() for item in listed):
        faults.add(f"{where}: references {text[:60]!r}, expected a JSON list of texts that are not empty")
        return ()
    return tuple(item.strip() for item in listed)
