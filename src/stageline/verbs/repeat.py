"""`predict --id`: single rows of an evaluation made again, with the pictures that a whole one has no room for.

The family's own evaluation makes them, told that all other rows are finished: a row is then computed within its old
batch, from the same prepared data, with the evaluation's own settings, and comes out as it was, bit for bit.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stageline.checkpoint.layout import CheckpointRef, resolve
from stageline.contract import PredictedFile, Row
from stageline.data.prepared import SET_NAME, SETS, Progress, open_prepared, silent
from stageline.errors import CheckpointError, DataError, Faults, PlanError
from stageline.families import load_family, parse_config
from stageline.store import Reference, Store, open_store
from stageline.verbs.admitted import OF_THE_USER, admit_model
from stageline.verbs.compare.sides import Side, find_side
from stageline.verbs.evaluate.rows import RowLog, as_json, key_of_row
from stageline.verbs.predict import execute_code, raw_config, written
from stageline.work.data import evaluation_names
from stageline.work.evaluations import EVALUATIONS, find_evaluations

NUM_NEAR = 5
TIMES = ("_ms", "_seconds")
"""How names of measured times end: they differ whenever a row is made."""
Rows = dict[tuple[str, str], dict[str, Any]]


def repeat_rows(
    uri: str,
    ids: Sequence[str],
    overrides: Iterable[str] = (),
    *,
    evaluation: str | None = None,
    target: str | Path,
    run_code: bool = False,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Rows of an evaluation of a checkpoint once more, one mapping per row and mode, in their old order.

    uri: any name of the checkpoint.  ids: of rows.  overrides: what is to be different; without them, what comes out
    equals what the evaluation has.  evaluation: which one, as `compare` is told; None is the only one of the
    checkpoint's run that measures this checkpoint and has these rows.  target: folder for the files.
    Each mapping holds the row, its files, the evaluation, and `differs`: fields that are not as they were.
    DataError for ids that no row has; PlanError where no evaluation, or more than one, can be meant.
    """
    ref = resolve(uri)
    side, rows = _find_rows(ref, ids, evaluation)
    record = side.record
    raw = {**raw_config(ref), **_asked(side)}
    config = parse_config(raw, overrides, f"config of {record.reference.uri}")
    execute_code(config, ref, run_code=run_code)
    data = open_prepared(_data_of(side, config.root), evaluation_names(config), config.data.cache_bytes)
    built, model, _ = admit_model(config, ref)
    wanted = {key: row for key, row in rows.items() if key[0] in ids}
    others = {key: row for key, row in rows.items() if key[0] not in ids}
    found = _Repeated()
    load_family(config.family).evaluate(built, model, data, others, found, progress)
    results = (
        {**row, "evaluation": record.reference.uri, "differs": _differing(row, wanted.get(key, {})), **files}
        for key, (row, files) in found.rows.items()
    )
    return list(written(results, Path(target)))


class _Repeated:
    """The `Emit` that a family is given: keeps rows with their files."""

    in_full = True

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], tuple[dict[str, Any], dict[str, PredictedFile]]] = {}

    def __call__(
        self, row: Row, pictures: Mapping[str, Any] | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        plain, key = {str(name): as_json(value) for name, value in row.items()}, key_of_row(row)
        head = re.sub(r"[^\w.-]+", "-", "-".join(part for part in key if part))
        drawn = {name: PredictedFile(f"{head}-{name}.png", pixels) for name, pixels in (pictures or {}).items()}
        others = {name: PredictedFile(f"{head}-{name}", content) for name, content in (files or {}).items()}
        self.rows[key] = (plain, drawn | others)

    def end_batch(self) -> None:
        """Nothing: rows are kept as they come."""


def _find_rows(ref: CheckpointRef, ids: Sequence[str], evaluation: str | None) -> tuple[Side, Rows]:
    """The evaluation that is meant, and all of its rows of this checkpoint."""
    sides = _sides_of(ref) if evaluation is None else [_named_side(ref, evaluation)]
    tables = [(side, _rows_of(side)) for side in sides]
    having = [(side, rows) for side, rows in tables if set(ids) <= {name for name, _ in rows}]
    if not having:
        _refuse_unknown(ids, tables)
    if len(having) > 1:
        lines = "\n".join(f"  {side.title}: {_settings_beside(side, having)}" for side, _ in having)
        raise PlanError(
            f"{len(having)} evaluations of {ref.uri} have such rows:\n{lines}", remedy="name one with --evaluation"
        )
    return having[0]


def _sides_of(ref: CheckpointRef) -> list[Side]:
    """The evaluations of a checkpoint's weights in its own run."""
    if ref.root is None:
        raise PlanError(
            f"{ref.uri} lies in no run, so that nobody knows its evaluations", remedy="name one with --evaluation"
        )
    run = ref.root.child("runs", ref.metadata.run)
    sides = [
        Side(run, record, name)
        for record in find_evaluations(run)
        for name, checkpoint in record.checkpoints.items()
        if checkpoint.get("content") == ref.content
    ]
    if not sides:
        raise PlanError(
            f"nothing in {run.uri} is an evaluation of {ref.uri}",
            remedy="`stageline evaluate --checkpoint` it first, or name one that lies elsewhere with --evaluation",
        )
    return sides


def _named_side(ref: CheckpointRef, evaluation: str) -> Side:
    side = find_side(evaluation, "." if ref.root is None else ref.root.uri)
    if side.checkpoint.get("content") != ref.content:
        raise CheckpointError(
            f"{side.title} is an evaluation of {side.checkpoint.get('uri')}, not of {ref.uri}",
            remedy="name that checkpoint, or another evaluation",
        )
    return side


def _rows_of(side: Side) -> Rows:
    store = side.run.child(EVALUATIONS, side.record.name)
    rows = RowLog(store, lambda: None).of(side.name)
    if not rows:
        raise DataError(
            f"{side.title} has kept no rows that can be made again", remedy="delete that folder and evaluate anew"
        )
    return {key: dict(row) for key, row in rows.items()}


def _refuse_unknown(ids: Sequence[str], tables: Sequence[tuple[Side, Rows]]) -> None:
    known = list(dict.fromkeys(name for _, rows in tables for name, _ in rows))
    where = ", ".join(side.title for side, _ in tables)
    faults = Faults(DataError, f"rows of {where}", f"its {len(known)} ids stand in rows.csv of that folder")
    for name in ids:
        if name not in known:
            near = difflib.get_close_matches(name, known, NUM_NEAR, 0.5) or known[:NUM_NEAR]
            faults.add(f"there is no row {name!r}; near are {', '.join(map(repr, near))}")
    faults.raise_if_any()
    raise PlanError("no single evaluation has all of these rows", remedy="ask for them one by one")


def _settings_beside(side: Side, having: Sequence[tuple[Side, Rows]]) -> str:
    """Settings in which an evaluation differs from the others. One that it does not note has its default."""
    own, *others = (s.record.plain.get("settings", {}) for s in (side, *(other for other, _ in having)))
    keys = dict.fromkeys(key for settings in others for key in settings)
    told = [f"{key} {own.get(key, '(default)')}" for key in keys if any(o.get(key) != own.get(key) for o in others)]
    return ", ".join(told) or f"data {side.record.inputs[:12]}"


def _asked(side: Side) -> dict[str, Any]:
    """What the evaluation's config said about it; of one that did not note it, its settings alone."""
    plain = side.record.checkpoints[side.name] if side.name else side.record.plain
    noted: Mapping[str, Any] = plain.get("config", {"evaluate": side.record.plain.get("settings", {})})
    return {key: noted[key] for key in OF_THE_USER if key in noted}


def _data_of(side: Side, root: str) -> Reference:
    """The prepared data of an evaluation: below the root, which may have been moved, else where they were."""
    said: Mapping[str, str] = side.record.plain["data"]
    here: Store = open_store(root).child(SETS, said["uri"].rsplit("/", 1)[-1])
    return Reference(here.uri if here.exists(SET_NAME) else said["uri"], said["digest"])


def _differing(row: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Fields of a row that are not as they were, but for measured times."""
    return [key for key in {**before, **row} if row.get(key) != before.get(key) and not key.endswith(TIMES)]
