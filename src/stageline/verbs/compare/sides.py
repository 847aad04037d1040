"""The two sides of a comparison: finding an evaluation by any of its names, its rows, what may stand beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stageline.checkpoint.identity import RUN_NAME
from stageline.data.tables import csv_rows
from stageline.errors import DataError, PlanError
from stageline.families import load_config
from stageline.store import Store, open_below, open_store
from stageline.work.evaluations import (
    EVALUATIONS,
    METRICS,
    ROWS,
    EvaluationRecord,
    find_evaluation,
    find_evaluations,
)

Key = tuple[str, str]
"""(sample id, mode)"""


@dataclass(frozen=True)
class Side:
    """One of the two evaluations: the record, and which of its checkpoints ("" for a single one)."""

    run: Store
    record: EvaluationRecord
    name: str = ""

    @property
    def checkpoint(self) -> Mapping[str, Any]:
        return self.record.checkpoints[self.name]

    @property
    def title(self) -> str:
        return f"{self.record.reference.uri}{f'#{self.name}' if self.name else ''}"

    def metrics(self) -> set[str]:
        """Names of its metrics."""
        head = f"{self.name}." if self.name else ""
        return {name.removeprefix(head) for name in self.record.metrics if name.startswith(head)}

    def rows(self) -> dict[Key, Mapping[str, str]]:
        """Its rows by sample and mode."""
        text = self.run.get(f"{EVALUATIONS}/{self.record.name}/{ROWS}").decode()
        found = [row for row in csv_rows(text) if row.get("checkpoint", "") in ("", self.name)]
        rows: dict[Key, Mapping[str, str]] = {(row.get("id", ""), row.get("mode", "")): row for row in found}
        if len(rows) != len(found) or not rows:
            raise DataError(
                f"{self.title}: its {len(found)} rows cannot be told apart by id and mode",
                remedy="evaluate the checkpoint again with this version",
            )
        return rows

    def told(self) -> dict[str, Any]:
        """What a comparison says of it."""
        keys = ("run", "stage", "step", "uri", "digest", "content")
        return {
            "evaluation": str(self.record.reference),
            "name": self.name,
            **{key: self.checkpoint.get(key) for key in keys},
            "data": self.record.inputs,
        }


def find_side(named: str, root: str) -> Side:
    """The evaluation that a name means. PlanError where there is none, or more than one."""
    text, sign, name = named.rpartition("#") if "#" in named else (named, "", "")
    run, record = _find(text if sign else named, root)
    if name not in record.checkpoints:
        several = ", ".join(f"{text or named}#{known}" for known in record.checkpoints if known)
        raise (
            PlanError(
                f"{named!r}: the evaluation is of {len(record.checkpoints)} checkpoints", remedy=f"name one: {several}"
            )
            if several
            else PlanError(f"{named!r}: the evaluation is of one checkpoint", remedy=f"name it as {text!r}")
        )
    return Side(run, record, name)


def _find(named: str, root: str) -> tuple[Store, EvaluationRecord]:
    if named.endswith((".yaml", ".yml")) and Path(named).is_file():
        config = load_config(named)
        return _only(open_store(config.root).child("runs", config.run), named)
    uri, sign, digest = named.partition("@sha256:")
    store = open_below(uri.removesuffix(f"/{METRICS}"))
    if store.exists(METRICS):
        above, between, name = store.uri.rpartition(f"/{EVALUATIONS}/")
        run = open_below(above) if between else None
        found = find_evaluation(run, name) if run is not None else None
        if run is None or found is None:
            raise PlanError(f"{named!r} is no evaluation of a run", remedy=f"they lie in <run>/{EVALUATIONS}/")
        if sign and found.reference.digest != digest:
            raise PlanError(
                f"{uri!r} is another evaluation than the one named: digest {found.reference.digest}, expected {digest}",
                remedy="name it anew, or find out who replaced it",
            )
        return run, found
    if store.folders(EVALUATIONS) or store.exists(RUN_NAME):
        return _only(store, named)
    runs = open_store(root).child("runs")
    if "/" not in named and runs.exists(f"{named}/{RUN_NAME}"):
        return _only(runs.child(named), named)
    if re.fullmatch(r"[0-9a-f]{8,64}", named):
        hits = [
            (runs.child(run), name)
            for run in runs.folders()
            for name in runs.folders(f"{run}/{EVALUATIONS}")
            if name.startswith(named) and runs.exists(f"{run}/{EVALUATIONS}/{name}/{METRICS}")
        ]
        if len(hits) == 1:
            found = find_evaluation(*hits[0])
            assert found is not None
            return hits[0][0], found
        if hits:
            raise PlanError(
                f"{named!r} means {len(hits)} evaluations",
                remedy=f"name one: {', '.join(run.child(EVALUATIONS, name).uri for run, name in hits)}",
            )
    raise PlanError(
        f"there is no evaluation {named!r}",
        remedy="name an evaluation's folder, a run's folder or a config; `stageline runs show` lists evaluations",
    )


def _only(run: Store, named: str) -> tuple[Store, EvaluationRecord]:
    """The one evaluation of a run."""
    found = find_evaluations(run)
    if len(found) == 1:
        return run, found[0]
    if not found:
        raise PlanError(f"{named!r}: nothing has been evaluated at {run.uri}", remedy="`stageline evaluate` first")
    lines = "\n".join(f"  {record.reference.uri}" for record in found)
    raise PlanError(f"{named!r} has {len(found)} evaluations:\n{lines}", remedy="name one of them")


def refuse_itself(one: Side, other: Side) -> None:
    """PlanError where both sides are one evaluation, or the same weights measured in the same way on the same data."""
    same = one.record.name == other.record.name and one.name == other.name
    settings = [side.record.plain.get("settings") for side in (one, other)]
    equal = one.checkpoint.get("content") == other.checkpoint.get("content") and settings[0] == settings[1]
    if same or (equal and one.record.inputs == other.record.inputs):
        why = "they are one evaluation" if same else "their checkpoints hold the same weights and were asked the same"
        raise PlanError(
            f"{one.title} and {other.title} are not compared: {why}",
            remedy="name evaluations of two checkpoints, or of one checkpoint with two settings",
        )
