"""The runs of a root side by side: how far each got, what came out, and in which settings they differ. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stageline.checkpoint.lease import held_by
from stageline.checkpoint.stage_dir import StageDir
from stageline.errors import StagelineError, StoreError
from stageline.store import Store
from stageline.store.below import LinkError
from stageline.store.keys import check_key
from stageline.verbs.report.overview import main_evaluation, main_metric
from stageline.verbs.report.record import RunRecord, mapping, read_run, unread_run
from stageline.verbs.report.status import run_status

Setting = tuple[str, str]
"""(stage, dotted key); the stage of what makes up the run's identity is ""."""


@dataclass(frozen=True)
class RunSummary:
    """One run in a list.

    run: name of its folder, by which it is found; that of a copied folder is another than it was made with.
    state: one or two words.  sentence: what it means.  created: ISO 8601.
    stages: newest checkpoint of each stage directory: stage, step, steps, final.
    metric, value: the main metric of what was evaluated last in the order of stages, or else the best of its last
    stage; "" and None without either.
    seconds: of training, all stages together.
    differs: settings in which the listed runs of its family differ, `key` or `stage: key`.
    """

    run: str
    uri: str
    family: str
    state: str
    sentence: str
    created: str
    stages: Sequence[Mapping[str, Any]]
    metric: str = ""
    value: float | None = None
    seconds: float | None = None
    differs: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "stages": [dict(stage) for stage in self.stages], "differs": dict(self.differs)}


def list_runs(root: Store) -> list[RunSummary]:
    """Every run below a root, by the name of its folder; folders that are none are left out.

    A run of which something cannot be read says so in its state, and so does a copy under another name.
    """
    records = [_record_of(root, name) for name in root.folders("runs")]
    records = [record for record in records if record.run or record.unreadable]
    differing = _differing(records)
    return [_summary(root, record, differing[record.name]) for record in records]


def _record_of(root: Store, name: str) -> RunRecord:
    """What a folder of `runs` holds; why it is not read, where it is a link or its name is no key."""
    try:
        check_key(name)
    except StoreError as error:
        return unread_run(root.child("runs"), name, error.message)
    store = root.child("runs", name)
    try:
        return replace(read_run(store, brief=True), name=name)
    except LinkError as error:
        return unread_run(store, name, error.message)


def _summary(root: Store, record: RunRecord, differs: Mapping[str, Any]) -> RunSummary:
    status = run_status(record)
    state, sentence = status.word, status.sentence
    if status.state != "good" and _is_running(root, record):
        state, sentence = "running", "A process holds one of its stages."
    made_as = record.run.get("run", record.name)
    if made_as != record.name:
        state = f"{state}, copy of {made_as}"
    if record.unreadable:
        more = f" (and {len(record.unreadable) - 1} more)" if len(record.unreadable) > 1 else ""
        state, sentence = f"{state}, damaged", f"{record.unreadable[0]}{more}"
    stages = []
    for stage in record.stages:
        newest = stage.last.metadata if stage.last else None
        done = (newest.step, newest.steps, newest.final) if newest else (None, None, False)
        stages.append({"stage": stage.name, **dict(zip(("step", "steps", "final"), done, strict=True))})
    paces = [stage.last.metadata.timing.get("seconds") for stage in record.stages if stage.last]
    metric, value = _outcome(record)
    return RunSummary(
        run=record.name,
        uri=record.uri,
        family=str(record.run.get("family", "")),
        state=state,
        sentence=sentence,
        created=str(record.run.get("created", "")),
        stages=stages,
        metric=metric,
        value=value,
        seconds=sum(pace for pace in paces if pace is not None) if any(pace is not None for pace in paces) else None,
        differs=differs,
    )


def _is_running(root: Store, record: RunRecord) -> bool:
    try:
        places = [root.child("runs", record.name)]
        places += [root.child("runs", record.name, *stage.name.split("/")) for stage in record.stages]
        return any(held_by(StageDir.at(place, root)) is not None for place in places)
    except StagelineError:  # a damaged lease holds nothing; whoever starts the stage is told
        return False


def _outcome(record: RunRecord) -> tuple[str, float | None]:
    """(metric, value) that tells most about a run."""
    evaluation = main_evaluation(record)
    if evaluation is not None and (metric := main_metric(evaluation, record.words)):
        return metric, float(mapping(evaluation.metrics.get("metrics"))[metric])
    for stage in reversed(record.stages):
        if stage.last and stage.last.metadata.best:
            best = stage.last.metadata.best
            return best.metric, best.value
    return "", None


def _differing(records: Sequence[RunRecord]) -> dict[str, dict[str, Any]]:
    """Run -> the settings in which it differs from another run of its family."""
    own = {record.name: _settings(record) for record in records}
    found: dict[str, dict[str, Any]] = {record.name: {} for record in records}
    for family in {str(record.run.get("family")) for record in records}:
        names = [record.name for record in records if str(record.run.get("family")) == family]
        every = sorted({key for name in names for key in own[name]})
        varying = [key for key in every if len({_text(own[n][key]) for n in names if key in own[n]}) > 1]
        for name in names:
            found[name] = _collapsed(varying, own[name])
    return found


def _settings(record: RunRecord) -> dict[Setting, Any]:
    """What a run was trained with, stage by stage; of one without a checkpoint, what makes up its identity."""
    found: dict[Setting, Any] = {}
    for stage in record.stages:
        if stage.last:
            found |= {(stage.name.split("/")[0], key): value for key, value in stage.last.metadata.settings.items()}
    if not found:
        found = {("", key): value for key, value in mapping(record.run.get("identity")).items()}
    return found


def _collapsed(varying: Sequence[Setting], settings: Mapping[Setting, Any]) -> dict[str, Any]:
    """Those of a run's settings that vary; a key that says the same in all its stages stands once, without a stage."""
    values: dict[str, set[str]] = {}
    for (_, key), value in settings.items():
        values.setdefault(key, set()).add(_text(value))
    found = [(stage, key) for stage, key in varying if (stage, key) in settings]
    return {key if len(values[key]) == 1 else f"{stage}: {key}": settings[stage, key] for stage, key in found}


def _text(value: Any) -> str:
    return repr(value)
