"""What lies in a run directory, read for the report: everything there is, and what of it cannot be read.

A report is wanted most when something went wrong, so a file that is missing is normal here, and one that cannot be read
becomes a line of the report instead of an error. Credentials are redacted on the way in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from stageline.checkpoint.layout import CheckpointRef, StageDir
from stageline.errors import StagelineError
from stageline.store import Store
from stageline.telemetry import read_events, read_failure, redact

T = TypeVar("T")
Json = Mapping[str, Any]
OTHER_FOLDERS = frozenset({"pipeline", "evaluations"})


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint. metadata: the JSON of its metadata file."""

    uri: str
    digest: str
    content: str
    metadata: Json


@dataclass(frozen=True)
class StageRecord:
    """One stage directory. name: `<stage>` or `<stage>/<variant>`.  committed: ascending by step."""

    name: str
    config: str
    events: Sequence[Json]
    failure: Json | None
    lease: Json | None
    best: Checkpoint | None
    last: Checkpoint | None
    committed: Sequence[Checkpoint]


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation. metrics: its metrics.json.  pictures: file name and bytes."""

    fingerprint: str
    metrics: Json
    pictures: Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class RunRecord:
    """A run as it lies there. unreadable: sentences about files that are damaged."""

    name: str
    uri: str
    run: Json
    plan: Json
    stages: Sequence[StageRecord]
    evaluations: Sequence[EvaluationRecord]
    failure: Json | None
    unreadable: Sequence[str]


@dataclass
class Reader:
    """Reads one run directory and notes what cannot be read."""

    store: Store
    faults: list[str] = field(default_factory=list)

    def attempt(self, what: str, action: Callable[[], T], otherwise: T) -> T:
        """The action's result; where it cannot be had, `otherwise` and a line in the report."""
        try:
            return action()
        except (StagelineError, ValueError, KeyError) as error:
            sentence = error.message if isinstance(error, StagelineError) else f"{type(error).__name__}: {error}"
            self.faults.append(redact(f"{what}: {sentence}"))
            return otherwise

    def json(self, store: Store, key: str) -> Json:
        """A JSON mapping, redacted; empty where the file is absent."""

        def read() -> Json:
            if not store.exists(key):
                return {}
            value = json.loads(store.get(key))
            if not isinstance(value, dict):
                raise ValueError(f"holds a {type(value).__name__}, expected a mapping")
            found: Json = redact(value)
            return found

        return self.attempt(key, read, {})

    def stage(self, name: str) -> StageRecord:
        """One stage directory."""
        store = self.store.child(*name.split("/"))
        place = stage_dir(self.store, name)
        text = self.attempt(
            f"{name}/config.yaml", lambda: store.get("config.yaml").decode() if store.exists("config.yaml") else "", ""
        )
        committed = self.attempt(f"{name}/checkpoints", lambda: [view(ref) for ref in place.committed()], [])
        pointers: dict[str, Checkpoint | None] = {}
        for pointer in ("best", "last"):
            pointers[pointer] = self.attempt(f"{name}/{pointer}.ckpt", lambda p=pointer: view_of(place.pointer(p)), None)  # type: ignore[misc]
        return StageRecord(
            name=name,
            config=redact(text),
            events=self.attempt(f"{name}/events", lambda: redact(read_events(store)), []),
            failure=self.attempt(f"{name}/failure.json", lambda: redact(read_failure(store)), None),
            lease=self.json(store, "lease.json") or None,
            best=pointers["best"],
            last=pointers["last"],
            committed=committed,
        )

    def evaluation(self, fingerprint: str) -> EvaluationRecord | None:
        """One evaluation directory; None while it has no metrics yet."""
        store = self.store.child("evaluations", fingerprint)
        metrics = self.json(store, "metrics.json")
        if not metrics:
            return None
        names = [info.key for info in store.list() if info.key.endswith(".png")]
        pictures = [
            (name, self.attempt(f"evaluations/{fingerprint}/{name}", lambda n=name: store.get(n), b""))  # type: ignore[misc]
            for name in names
        ]
        return EvaluationRecord(fingerprint, metrics, pictures)


def read_run(store: Store) -> RunRecord:
    """Everything in a run directory."""
    reader = Reader(store)
    run, plan = reader.json(store, "run.json"), reader.json(store, "plan.json")
    stages = [reader.stage(name) for name in stage_names(store, run)]
    folders = store.folders("evaluations")
    evaluations = [found for name in folders if (found := reader.evaluation(name)) is not None]
    failure = reader.attempt("failure.json", lambda: redact(read_failure(store)), None)
    name = str(run.get("run") or store.uri.rsplit("/", 1)[-1])
    return RunRecord(name, redact(store.uri), run, plan, stages, evaluations, failure, reader.faults)
