"""What lies in a run directory, read for the report: everything there is, and what of it cannot be read.

A report is wanted most when something went wrong, so a file that is missing is normal here, and one that cannot be read
becomes a line of the report instead of an error. Credentials are redacted on the way in. Nothing outside the run
directory is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from stageline.checkpoint.layout import (
    CHECKPOINTS,
    OTHER_FOLDERS,
    CheckpointRef,
    Pointer,
    StageDir,
    open_checkpoint,
)
from stageline.config.bounds import read_json
from stageline.contract import Words
from stageline.data.quarantine import QUARANTINE
from stageline.data.tables import csv_rows
from stageline.data.told import DATA
from stageline.errors import PlanError, StagelineError
from stageline.families import family_words
from stageline.store import ObjectInfo, Store
from stageline.telemetry import FailureRecord, first_cause, read_events, read_failures, redact
from stageline.verbs.report.pictures import Media
from stageline.work.evaluations import BASELINES, COMPARISON, COMPARISONS, find_baselines, media_type

T = TypeVar("T")
Json = Mapping[str, Any]
RUN_FILES = ("run.json", "plan.json")


@dataclass(frozen=True)
class StageRecord:
    """One stage directory.

    name: `<stage>` or `<stage>/<variant>`.  config: its config.yaml.  committed: oldest first.
    best, last: what the pointers name; last is the newest committed one where there is no pointer yet.
    """

    name: str
    config: str
    events: Sequence[Json]
    failure: FailureRecord | None
    best: CheckpointRef | None
    last: CheckpointRef | None
    committed: Sequence[CheckpointRef]

    @property
    def is_final(self) -> bool:
        return any(ref.metadata.final for ref in self.committed)


@dataclass(frozen=True)
class EvaluationRecord:
    """The evaluation of one checkpoint; one of several checkpoints is as many of these.

    metrics: its metrics.json.  rows: its rows.csv.  media: its pictures and clips, read when they are shown.
    files: name -> its size and type, of all but pictures.  name: what the checkpoint is called among several.
    baselines: its record of trivial methods.
    """

    fingerprint: str
    metrics: Json
    rows: Sequence[Mapping[str, str]]
    media: Sequence[Media] = ()
    files: Mapping[str, Json] = field(default_factory=dict)
    name: str = ""
    baselines: Json = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """A run as it lies there.

    comparisons: of its evaluations with others.  words: the family's.  unreadable: sentences about damaged files.
    quarantine: split -> its list of rows that were set aside.  data: split -> what was told of it.
    """

    name: str
    uri: str
    run: Json
    plan: Json
    stages: Sequence[StageRecord]
    evaluations: Sequence[EvaluationRecord]
    events: Sequence[Json]
    failure: FailureRecord | None
    unreadable: Sequence[str]
    comparisons: Sequence[Json] = ()
    quarantine: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)
    data: Json = field(default_factory=dict)
    words: Words = field(default_factory=Words)


@dataclass
class Reader:
    """Reads one run directory and notes what cannot be read.

    brief: leave out rows, pictures, clips and the events of what is finished; enough to say how far a run got.
    """

    store: Store
    brief: bool = False
    faults: list[str] = field(default_factory=list)

    def attempt(self, what: str, action: Callable[[], T], otherwise: T) -> T:
        """The action's result; where it cannot be had, `otherwise` and a line in the report."""
        try:
            return action()
        except (StagelineError, ValueError, KeyError) as error:
            sentence = error.message if isinstance(error, StagelineError) else f"{type(error).__name__}: {error}"
            self.faults.append(redact(sentence if what in sentence else f"{what}: {sentence}"))
            return otherwise

    def json(self, key: str) -> Json:
        """A JSON mapping, redacted; empty where the file is absent."""

        def read() -> Json:
            if not self.store.exists(key):
                return {}
            value = read_json(self.store.get(key))
            if not isinstance(value, dict):
                raise StagelineError(f"holds a {type(value).__name__}, expected a mapping")
            found: Json = redact(value)
            return found

        return self.attempt(key, read, {})

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders in a folder."""
        return self.attempt(prefix, lambda: self.store.folders(prefix), [])

    def is_stage(self, folder: str) -> bool:
        """Whether a folder holds what a stage writes."""
        return self.attempt(folder, lambda: is_stage_dir(self.store.child(*folder.split("/"))), False)

    def text(self, key: str) -> str:
        """A text file, redacted; empty where it is absent."""

        def read() -> str:
            return redact(self.store.get(key).decode("utf-8")) if self.store.exists(key) else ""

        return self.attempt(key, read, "")

    def events(self, folder: str) -> Sequence[Json]:
        """The events of a directory; a damaged line costs what follows it."""
        store = self.store.child(*folder.split("/")) if folder else self.store
        return self.attempt(f"{folder or '.'}/events", lambda: redact_events(read_events(store)), [])

    def failure(self, folder: str) -> FailureRecord | None:
        """The record of the first cause in a directory; what is no record becomes a line of the report."""
        store = self.store.child(*folder.split("/")) if folder else self.store
        none: tuple[list[FailureRecord], list[FailureRecord]] = ([], [])
        found, damaged = self.attempt(f"{folder or '.'}/failure.json", lambda: read_failures(store), none)
        self.faults += [f"{folder or '.'}: {record.sentence}" for record in damaged]
        return first_cause(found)

    def pointer(self, directory: StageDir, name: Pointer) -> CheckpointRef | None:
        """The checkpoint a pointer names."""
        return self.attempt(f"{directory.uri}/{name}.ckpt", lambda: directory.pointer(name), None)

    def committed(self, directory: StageDir) -> list[CheckpointRef]:
        """Every committed checkpoint that can be read, oldest first."""
        found = []
        none: list[str] = []
        for name in self.attempt(directory.uri, directory.step_dirs, none):
            store = directory.step_store(name)
            if self.attempt(store.uri, lambda name=name: directory.is_committed(name), False):  # type: ignore[misc]
                found.append(self.attempt(store.uri, lambda place=store: open_checkpoint(place), None))  # type: ignore[misc]
        return [ref for ref in found if ref is not None]

    def stage(self, name: str) -> StageRecord:
        """One stage directory."""
        directory = StageDir.at(self.store.child(*name.split("/")))
        committed = self.committed(directory)
        last = self.pointer(directory, "last")
        return StageRecord(
            name=name,
            config=self.text(f"{name}/config.yaml"),
            events=[] if self.brief and any(ref.metadata.final for ref in committed) else self.events(name),
            failure=self.failure(name),
            best=self.pointer(directory, "best"),
            last=last or (committed[-1] if committed else None),
            committed=committed,
        )

    def quarantine(self) -> dict[str, Sequence[Mapping[str, str]]]:
        """Every list of rows that were set aside."""
        none: list[ObjectInfo] = []
        keys = [info.key for info in self.attempt(QUARANTINE, lambda: self.store.list(QUARANTINE), none)]
        return {key.rsplit("/", 1)[-1].removesuffix(".csv"): csv_rows(self.text(key)) for key in keys}

    def evaluation(self, fingerprint: str) -> list[EvaluationRecord]:
        """One evaluation directory, one record per checkpoint; nothing while it has no metrics yet."""
        folder = f"evaluations/{fingerprint}"
        metrics = self.json(f"{folder}/metrics.json")
        if not metrics:
            return []
        store = self.store.child("evaluations", fingerprint)

        def reading(key: str) -> Callable[[], bytes]:
            return lambda: self.attempt(f"{folder}/{key}", lambda: store.get(key), b"")

        media = [
            Media(info.key, info.size, reading(info.key))
            for info in ([] if self.brief else store.list())
            if info.key.endswith(".png") or media_type(info.key) == "video/mp4"
        ]
        rows = [] if self.brief else csv_rows(self.text(f"{folder}/rows.csv"))
        listed = metrics.get("files")
        files = {
            name: entry
            for name, entry in (listed.items() if isinstance(listed, Mapping) else ())
            if isinstance(entry, Mapping) and not name.endswith(".png") and name != "rows.csv"
        }
        whole = EvaluationRecord(fingerprint, metrics, rows, media, files)
        none: dict[str, Any] = {}
        beside = none if self.brief else self.attempt(f"{folder}/{BASELINES}", lambda: find_baselines(store), none)
        whole = replace(whole, baselines=redact(beside))
        several = metrics.get("checkpoints")
        names = [name for name in several if name] if isinstance(several, Mapping) else []
        return [part_of(whole, name) for name in names] or [whole]


def part_of(whole: EvaluationRecord, name: str) -> EvaluationRecord:
    """What an evaluation of several checkpoints says of one of them."""
    head = whole.metrics
    checkpoint = mapping(mapping(head.get("checkpoints")).get(name))

    def own(field_name: str) -> Json:
        values = mapping(head.get(field_name))
        return {key.removeprefix(f"{name}."): v for key, v in values.items() if key.startswith(f"{name}.")}

    tables = {key: own(key) for key in ("metrics", "reasons", "num_samples")}
    said = {**mapping(head.get("provenance")), **mapping(checkpoint.get("provenance"))}
    return EvaluationRecord(
        whole.fingerprint,
        {**head, **tables, "provenance": said, "notes": checkpoint.get("notes"), "checkpoint": checkpoint},
        [row for row in whole.rows if row.get("checkpoint") == name],
        [media for media in whole.media if media.name.startswith(f"{name}/")],
        {key: entry for key, entry in whole.files.items() if key.startswith(f"{name}/")},
        name,
        whole.baselines,
    )


def mapping(value: Any) -> Json:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def read_run(store: Store, *, brief: bool = False) -> RunRecord:
    """Everything in a run directory, or what says how far it got. PlanError where there is no run at all.

    brief: without rows, pictures, clips and the events of what is finished.
    """
    folders = store.folders()
    if not folders and not any(store.exists(name) for name in RUN_FILES):
        raise PlanError(f"there is no run at {store.uri!r}", remedy="`stageline runs list` shows what there is")
    reader = Reader(store, brief)
    run, plan = reader.json("run.json"), reader.json("plan.json")
    evaluations = [part for name in reader.folders("evaluations") for part in reader.evaluation(name)]
    comparisons = [reader.json(f"{COMPARISONS}/{name}/{COMPARISON}") for name in reader.folders(COMPARISONS)]
    stages = [reader.stage(name) for name in stage_names(reader, folders, run)]
    return RunRecord(
        name=str(run.get("run") or store.uri.rsplit("/", 1)[-1]),
        uri=redact(store.uri),
        run=run,
        plan=plan,
        stages=stages,
        evaluations=evaluations,
        events=[] if brief else reader.events(""),
        failure=reader.failure(""),
        unreadable=reader.faults,
        comparisons=[found for found in comparisons if found],
        quarantine=reader.quarantine(),
        data=reader.json(DATA),
        words=family_words(run.get("family")),
    )


def unread_run(store: Store, name: str, why: str) -> RunRecord:
    """The record of a run directory that is not opened. why: what a person is told."""
    return RunRecord(name, redact(store.uri), {}, {}, [], [], [], None, [redact(why)])


def redact_events(events: Sequence[Json]) -> list[Json]:
    """Events with credentials taken out of their texts; each different text is looked at once, as there are many."""
    clean: dict[str, str] = {}

    def of(value: Any) -> Any:
        if not isinstance(value, str):
            return redact(value) if isinstance(value, list) else value
        if value not in clean:
            clean[value] = redact(value)
        return clean[value]

    return [{of(key): of(value) for key, value in event.items()} for event in events]


def stage_names(reader: Reader, folders: Sequence[str], run: Json) -> list[str]:
    """Stage directories of a run, `<stage>/<variant>` where a family has variants, in the run's own order."""
    names: list[str] = []
    for folder in folders:
        if folder in OTHER_FOLDERS:
            continue
        if reader.is_stage(folder):
            names.append(folder)
        names += [name for inner in reader.folders(folder) if reader.is_stage(name := f"{folder}/{inner}")]
    declared = run.get("stages")
    order = list(declared) if isinstance(declared, Mapping | list) else []

    def rank(name: str) -> tuple[int, str]:
        stage = name.split("/")[0]
        return (order.index(stage) if stage in order else len(order)), name

    return sorted(names, key=rank)


def is_stage_dir(store: Store) -> bool:
    """Whether a folder holds what a stage writes."""
    files = {info.key.split("/")[0] for info in store.list()}
    return bool(files & {"config.yaml", "events.jsonl", CHECKPOINTS, "lease.json", "failure.json"}) or any(
        name.startswith("events-") for name in files
    )
