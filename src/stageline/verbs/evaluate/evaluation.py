"""Making an evaluation: the checkpoint through admission, the family's metrics, files, and metrics.json last."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stageline import __version__
from stageline.checkpoint.layout import resolve
from stageline.config import RunConfig, seal
from stageline.contract import Evaluation
from stageline.data.prepared import Progress, materialise, silent
from stageline.errors import CheckpointError
from stageline.families import family_config, load_family
from stageline.store import Reference, Store, open_store
from stageline.store.scratch import scratch_folder
from stageline.telemetry import finite_json
from stageline.verbs.admitted import admit_model
from stageline.work.evaluations import (
    EVALUATIONS,
    METRICS,
    SCHEMA,
    EvaluationRecord,
    evaluation_fingerprint,
    evaluation_settings,
    find_evaluation,
    refuse_damaged,
)


def evaluate_checkpoint(config: RunConfig, checkpoint: str, data: str, progress: Progress = silent) -> EvaluationRecord:
    """The family's metrics of one checkpoint, or the committed evaluation of the same weights, mode and data.

    checkpoint: any name of a checkpoint.  data: reference of prepared data.
    CheckpointError where admission refuses the checkpoint; DataError for damaged data.
    """
    ref = resolve(checkpoint)
    if ref.metadata.family != config.family:
        raise CheckpointError(
            f"{ref.uri} is of family {ref.metadata.family!r}, the config is of {config.family!r}",
            remedy="use a config of the checkpoint's family",
        )
    reference = Reference.parse(data)
    run = open_store(config.root).child("runs", config.run)
    name = evaluation_fingerprint(config, ref.content, ref.metadata.facts, reference.digest)
    found = find_evaluation(run, name)
    if found is not None:
        refuse_damaged(run, found)
        return found
    own, model, notes = admit_model(config, ref)
    with scratch_folder("data") as scratch:
        folder = materialise(reference, scratch)
        evaluation = load_family(config.family).evaluate(own, model, folder, progress)
    store = run.child(EVALUATIONS, name)
    files = _write_files(store, evaluation)
    plain = {
        "schema": SCHEMA,
        "metrics": dict(evaluation.metrics),
        "num_samples": dict(evaluation.num_samples),
        "provenance": dict(evaluation.provenance),
        "notes": list(notes),
        "checkpoint": {
            "uri": ref.uri,
            "digest": ref.digest,
            "content": ref.content,
            "stage": ref.metadata.stage,
            "step": ref.metadata.step,
            "run": ref.metadata.run,
        },
        "data": {"uri": reference.uri, "digest": reference.digest},
        "settings": evaluation_settings(config),
        "files": files,
        "stageline_version": __version__,
    }
    store.put(METRICS, (json.dumps(seal(finite_json(plain)), indent=1, ensure_ascii=False) + "\n").encode())
    made = find_evaluation(run, name)
    assert made is not None
    return replace(made, reused=False)


def _write_files(store: Store, evaluation: Evaluation) -> dict[str, str]:
    """Rows and pictures of an evaluation; returns name -> SHA-256."""
    blobs = {"rows.csv": rows_to_csv(evaluation.rows)}
    for name, pixels in evaluation.panels.items():
        blobs[f"{name}.png"] = panel_to_png(pixels)
    for name, blob in blobs.items():
        store.put(name, blob)
    return {name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()}


def rows_to_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """One line per sample; the columns are all keys in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def panel_to_png(pixels: Any) -> bytes:
    """pixels: (H, W, 3) or (H, W) uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def default_checkpoint(config: RunConfig) -> str:
    """The URI of the last selected stage of the config's own run."""
    last = family_config(config.family).selected(config)[-1]
    return open_store(config.root).child("runs", config.run, last.name).uri
