"""Quarantine: rows of the sources that cannot be used, listed with class and reason and never replaced. No torch.

A family's reader gives them to the split's writer; the split's manifest holds them, so that whoever uses the split, an
hour or a year later, lists them again in the run: `runs/<run>/quarantine/<split>.csv`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stageline.data.tables import csv_text
from stageline.errors import DataError
from stageline.store import Store

QUARANTINE = "quarantine"
COLUMNS = ("row", "source", "file", "class", "message")


@dataclass(frozen=True)
class SetAside:
    """One row that cannot be used.

    row: its number in `source`, from 1.  source: the list it stands in, "" where rows are files themselves.
    file: its picture, or what else could not be read.  kind: class of the fault, one word.  message: the fault.
    """

    row: int
    file: str
    kind: str
    message: str
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """By the columns of the list."""
        values = (self.row, self.source, self.file, self.kind, self.message)
        return dict(zip(COLUMNS, values, strict=True))

    @classmethod
    def from_json(cls, plain: Any) -> SetAside:
        """Back from `to_json`; ValueError for anything else."""
        whole = isinstance(plain, Mapping) and set(plain) == set(COLUMNS) and type(plain["row"]) is int
        if not whole or not all(isinstance(plain[name], str) for name in COLUMNS[1:]):
            raise ValueError(f"no row of a quarantine: {plain!r}")
        return cls(plain["row"], plain["file"], plain["class"], plain["message"], plain["source"])


class QuarantineError(DataError):
    """More rows cannot be used than the config allows.

    set_aside: split -> all of its rows that cannot be used; the message may show some of them only.
    """

    def __init__(self, message: str, *, remedy: str = "", set_aside: Mapping[str, Sequence[SetAside]]) -> None:
        super().__init__(message, remedy=remedy)
        self.set_aside = dict(set_aside)


def counts_of(rows: Iterable[SetAside]) -> dict[str, int]:
    """Class -> how many rows, by name."""
    kinds = [row.kind for row in rows]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def list_set_aside(run: Store, splits: Mapping[str, Sequence[SetAside]]) -> list[str]:
    """Write the list of each split into a run; one that has no such rows has no list. Returns a sentence for each.

    run: the run's directory.  splits: name -> rows of it that cannot be used.
    """
    told = []
    for name, rows in splits.items():
        key = f"{QUARANTINE}/{name}.csv"
        if not rows:
            if run.exists(key):  # of other sources, before
                run.delete(key)
            continue
        run.put(key, csv_text(COLUMNS, (row.to_json() for row in rows)).encode())
        kinds = ", ".join(f"{kind} {number}" for kind, number in counts_of(rows).items())
        rows_word = "row" if len(rows) == 1 else "rows"
        told.append(f"{name}: {len(rows)} {rows_word} set aside ({kinds}), listed in {run.uri}/{key}")
    return told
