"""Making an evaluation: checkpoints through admission, rows as the family makes them, metrics.json last.

One process makes an evaluation at a time, under a lease in its folder. What an interrupted one has written is kept, and
the next one computes the rest only.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stageline import __version__
from stageline.checkpoint.layout import CheckpointRef, StageDir, resolve_named
from stageline.checkpoint.lease import StageLease, await_free, lease_wait_seconds
from stageline.checkpoint.usercode import keep_code, load_code
from stageline.config import RunConfig, seal
from stageline.contract import Evaluation, Row
from stageline.data.prepared import PreparedData, Progress, open_prepared, silent
from stageline.errors import CheckpointError, ConfigError, Faults, PlanError
from stageline.families import load_family
from stageline.printing import say
from stageline.store import Reference, Store, open_store
from stageline.telemetry import finite_json
from stageline.verbs.admitted import admit_model, stated
from stageline.verbs.evaluate.baselines import keep_baselines
from stageline.verbs.evaluate.rows import RowLog, as_json, key_of_row, rows_to_csv
from stageline.work.data import evaluation_names
from stageline.work.decision import decide_evaluation
from stageline.work.evaluations import (
    EVALUATIONS,
    METRICS,
    NOT_FINITE,
    ROWS,
    SCHEMA,
    EvaluationRecord,
    asked_checkpoints,
    evaluation_settings,
    find_evaluation,
    refuse_damaged,
)
from stageline.work.given import Given
from stageline.work.work import refuse_blocked


def evaluate_checkpoint(
    config: RunConfig, checkpoint: str | Mapping[str, str], data: str, progress: Progress = silent
) -> EvaluationRecord:
    """The family's metrics of one checkpoint or several, or the committed evaluation of the same weights, mode, data.

    checkpoint: any name of a checkpoint, or name -> checkpoint for several, which are loaded one at a time.
    data: reference of prepared data.
    The scores of the family's trivial methods lie beside them (`baselines`).
    CheckpointError where admission refuses a checkpoint; DataError for damaged data; BusyError where another process
    makes this very evaluation.
    """
    record = _evaluated(config, checkpoint, data, progress)
    keep_baselines(config, record, data)
    return record


def _evaluated(
    config: RunConfig, checkpoint: str | Mapping[str, str], data: str, progress: Progress
) -> EvaluationRecord:
    named = {"": checkpoint} if isinstance(checkpoint, str) else dict(checkpoint)
    run = open_store(config.root).child("runs", config.run)
    work = decide_evaluation(config, given=Given(data, checkpoints=named))
    refuse_blocked(work)
    refs, name, reference = work.checkpoints, work.fingerprint, Reference.parse(data)
    _refuse_foreign(config, refs)
    if found := _reused(run, name):
        return found
    store = run.child(EVALUATIONS, name)
    place = StageDir.at(store)
    await_free(place, lease_wait_seconds(), lambda text: say(f"evaluate: {text}"), lambda: False)
    with StageLease.acquire(place, f"{config.run}/evaluate") as lease:
        if found := _reused(run, name):  # made by whoever had the lease before
            return found
        with RowLog(store, lease.check) as log:
            if log.num_found:
                say(f"evaluate: {log.num_found} rows are there already", error=True)
            load_code(keep_code(config), sections=load_family(config.family).code_sections)
            opened = open_prepared(reference, evaluation_names(config), config.data.cache_bytes)
            parts = {key: _Part(config, ref, opened, log, key).make(progress) for key, ref in refs.items()}
            log.flush()
            log.put({ROWS: rows_to_csv([_shown(key[0], row) for key, row in log.rows.items()])})
            plain = {
                "schema": SCHEMA,
                "family": config.family,
                **_joined(parts),
                "data": {"uri": reference.uri, "digest": reference.digest, "inputs": work.inputs},
                "settings": evaluation_settings(config),
                "files": dict(sorted(log.files.items())),
                "stageline_version": __version__,
            }
            lease.check()
            store.put(METRICS, (json.dumps(seal(finite_json(plain)), indent=1, ensure_ascii=False) + "\n").encode())
    made = find_evaluation(run, name)
    assert made is not None
    return replace(made, reused=False)


def _refuse_foreign(config: RunConfig, refs: Mapping[str, CheckpointRef]) -> None:
    faults = Faults(CheckpointError, "checkpoints to evaluate", "use a config of the checkpoint's family")
    for ref in refs.values():
        if ref.metadata.family != config.family:
            faults.add(f"{ref.uri} is of family {ref.metadata.family!r}, the config is of {config.family!r}")
    faults.raise_if_any()


def _reused(run: Store, name: str) -> EvaluationRecord | None:
    found = find_evaluation(run, name)
    if found is not None:
        refuse_damaged(run, found)
    return found


def _shown(checkpoint: str, row: Row) -> Row:
    """A row as it stands in the table of an evaluation; with several checkpoints its first column says of which."""
    return {"checkpoint": checkpoint, **row} if checkpoint else row


class _Part:
    """The evaluation of one checkpoint, and the `Emit` that its family is given.

    data: the prepared data.  log: gets rows and files.  name: what the checkpoint is called, "" for a single one.
    """

    in_full = False

    def __init__(self, config: RunConfig, ref: CheckpointRef, data: PreparedData, log: RowLog, name: str) -> None:
        self.config, self.ref, self.data, self.log, self.name = config, ref, data, log, name

    def make(self, progress: Progress) -> dict[str, Any]:
        """What metrics.json says of it. The model lives only in here."""
        own, model, notes = admit_model(self.config, self.ref)
        family = load_family(self.config.family)
        found = family.evaluate(own, model, self.data, self.log.of(self.name), self, progress)
        self._take_rest(found)
        metadata = self.ref.metadata
        metrics = {name: as_json(value) for name, value in found.metrics.items()}
        return {
            "metrics": metrics,
            "reasons": {n: found.reasons.get(n, NOT_FINITE) for n, value in metrics.items() if value is None},
            "num_samples": dict(found.num_samples),
            "provenance": dict(found.provenance),
            "measured": dict(found.measured),
            "notes": list(notes),
            "config": {key: value for key, value in stated(own).items() if key in ("data", "evaluate")},
            "checkpoint": {
                "uri": self.ref.uri,
                "digest": self.ref.digest,
                "content": self.ref.content,
                "stage": metadata.stage,
                "step": metadata.step,
                "run": metadata.run,
            },
        }

    def __call__(
        self, row: Row, pictures: Mapping[str, Any] | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Take one finished row of the family."""
        self.log.add(self.name, row, self._blobs(pictures or {}, files or {}))

    def end_batch(self) -> None:
        """Keep the rows that came."""
        self.log.flush()

    def _take_rest(self, found: Evaluation) -> None:
        """Rows and files that the family gives at its end."""
        there = self.log.of(self.name)
        for row in found.rows:
            if key_of_row(row) not in there:
                self(row)
        self.log.put(self._blobs(found.panels, found.files))

    def _blobs(self, pictures: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, bytes]:
        folder = f"{self.name}/" if self.name else ""
        drawn = {f"{folder}{name}.png": panel_to_png(pixels) for name, pixels in pictures.items()}
        return {**drawn, **{f"{folder}{name}": blob for name, blob in files.items()}}


def _joined(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """metrics.json of several checkpoints: metrics are named `<checkpoint>.<metric>`, equal provenance stands once."""
    if list(parts) == [""]:
        plain = dict(parts[""])
        checkpoint = plain.pop("checkpoint")
        return {**plain, "checkpoint": checkpoint, "checkpoints": {"": checkpoint}}

    def flat(field: str) -> dict[str, Any]:
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part[field].items()}

    said = [part["provenance"] for part in parts.values()]
    shared = {key: value for key, value in said[0].items() if all(key in p and p[key] == value for p in said)}
    own = {
        name: {
            **part["checkpoint"],
            "provenance": {key: value for key, value in part["provenance"].items() if key not in shared},
            "measured": part["measured"],
            "notes": part["notes"],
            "config": part["config"],
        }
        for name, part in parts.items()
    }
    tables = {field: flat(field) for field in ("metrics", "reasons", "num_samples")}
    return {**tables, "provenance": shared, "notes": [], "checkpoints": own}


def panel_to_png(pixels: Any) -> bytes:
    """pixels: (H, W, 3) or (H, W) uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def named_checkpoints(config: RunConfig, checkpoint: str | None = None, data: str = "") -> dict[str, str]:
    """Name -> reference of what is to be evaluated.

    checkpoint: any name that the config could have for one; it contradicts `evaluate.checkpoints`. None takes those, or
    else the last selected stage of the config's own run, as it was trained with these settings.
    data: reference of prepared data; "" goes by what preparing would find.
    PlanError where a stage that is meant is not trained with these settings.
    """
    asked = asked_checkpoints(config)
    if asked and checkpoint is not None:
        raise ConfigError(
            f"--checkpoint and evaluate.checkpoints ({', '.join(asked)}) contradict each other",
            remedy="give one of them",
        )
    if checkpoint is not None:
        return {"": str(resolve_named(checkpoint, config.root).reference)}
    work = decide_evaluation(config, given=Given(data))
    refuse_blocked(work)
    if work.action == "not evaluated":
        raise PlanError(
            f"there is nothing to evaluate: {'; '.join(work.reasons)}",
            remedy="select a stage that is evaluated, or name its checkpoint with --checkpoint",
        )
    if not work.checkpoints:
        raise PlanError(
            f"there is nothing to evaluate yet: {'; '.join(work.reasons)}",
            remedy="train it first, undo the change, or name a checkpoint with --checkpoint",
        )
    return {name: str(ref.reference) for name, ref in work.checkpoints.items()}
