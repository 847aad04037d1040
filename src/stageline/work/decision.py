"""The one decision about every item of a run: parents, fingerprint, and run, reuse, continue or blocked. No torch.

Plan, pipeline steps, `stageline train` and `evaluate`, jobs, a pod's entry and each rank ask here, and nobody else
looks for parents, computes a fingerprint or picks a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

from stageline.checkpoint.identity import RUN_NAME, compare_run, read_run, refuse_alike
from stageline.checkpoint.layout import CheckpointRef, resolve, resolve_named
from stageline.config import RunConfig
from stageline.contract import External, FamilyConfig
from stageline.data.prepared import set_fingerprint
from stageline.encoders.lock import Digests, Locked, external_digests, read_lock
from stageline.errors import DataError, PlanError, StagelineError, StoreError
from stageline.families import family_config
from stageline.stage import Stage
from stageline.store import Reference, Store, open_store
from stageline.work.data import inputs_digest
from stageline.work.evaluations import asked_checkpoints, find_evaluation, joint_fingerprint
from stageline.work.externals import run_externals
from stageline.work.given import Given
from stageline.work.inputs import RunData, data_inputs, forecast_data, given_data
from stageline.work.parents import refuse_other
from stageline.work.record import EVALUATE_ITEM, PREPARE_ITEM, REPORT_ITEM
from stageline.work.stages import decide_selected
from stageline.work.work import EvaluationWork, PrepareWork, StageWork, Work, blocked

REPORT = "report.html"


def decide(config: RunConfig, item: str, store: Store | None = None, given: Given | None = None) -> Work:
    """Everything about one item of a run.

    config: the run's.  item: `prepare_data`, a stage, `evaluate` or `report`.  store: the root, None opens it.
    given: references that are handed on; None leaves all to config and store.
    ConfigError for stages, overrides or parents that do not exist; what keeps the item from starting is in the answer.
    """
    return RunDecision(config, store, given, item).decide(item)


def decide_stage(config: RunConfig, stage: str, store: Store | None = None, given: Given | None = None) -> StageWork:
    """The same for a stage that somebody asks for by name, whether or not `stages` selects it."""
    run = RunDecision(config, store, given, stage)
    return run.as_selected(run.family.stages[stage].name)


def hand_on(config: RunConfig, stage: str, store: Store | None = None, given: Given | None = None) -> StageWork:
    """What the pipeline's step of a stage does: the stage's work, or what a stage that is not selected hands on.

    PlanError where that stage was trained otherwise and a selected one would start from it.
    """
    run = RunDecision(config, store, given, stage)
    work = run.stage(stage)
    if work.action == "not selected":
        refuse_other(run, stage)
    return work


def decide_evaluation(config: RunConfig, store: Store | None = None, given: Given | None = None) -> EvaluationWork:
    """The same for the evaluation."""
    return RunDecision(config, store, given, EVALUATE_ITEM).evaluation


def decide_data(config: RunConfig, store: Store | None = None, given: Given | None = None) -> PrepareWork:
    """The same for the preparation of the data."""
    return RunDecision(config, store, given, PREPARE_ITEM).preparation


class RunDecision:
    """The decisions about one run, each made once."""

    def __init__(
        self, config: RunConfig, store: Store | None = None, given: Given | None = None, item: str = ""
    ) -> None:
        """item: which one `given` is meant for."""
        self.config = config
        self.family: FamilyConfig = family_config(config.family)
        self.selected: tuple[Stage, ...] = self.family.selected(config)
        self.root = open_store(config.root) if store is None else store
        self.run = self.root.child("runs", config.run)
        self.given = given or Given()
        self.item = item
        self._stages: dict[str, StageWork] = {}

    def decide(self, item: str) -> Work:
        """The decision about one item."""
        if item == PREPARE_ITEM:
            return self.preparation
        if item == EVALUATE_ITEM:
            return self.evaluation
        if item == REPORT_ITEM:
            return self.report
        return self.stage(item)

    @cached_property
    def foreign(self) -> list[str]:
        """In what the run that has this name is another one."""
        if not self.run.exists(RUN_NAME):
            refuse_alike(self.root, self.config.run)
        record = read_run(self.root, self.config.run)
        return compare_run(record, self.config) if record else []

    @cached_property
    def data(self) -> RunData:
        """What is known of the data; DataError for sources or references that are not there."""
        if self.given.data:
            try:
                reference = Reference.parse(self.given.data)
            except StoreError as error:
                raise DataError(
                    f"{self.given.data!r} names no prepared data",
                    remedy="give what `stageline prepare` printed: <uri>@sha256:<digest>",
                ) from error
            return given_data(reference)
        recorded = any(self.run.folders(stage.name) for stage in self.family.stages)
        return forecast_data(self.config, self.family, self.root, hashes=self.given.hashes, read=recorded)

    @cached_property
    def lock(self) -> dict[str, Locked]:
        """What the root has locked of weights of others."""
        return read_lock(self.root)

    def digests(self, externals: Sequence[External]) -> Digests:
        """What is known of them; who is handed prepared data takes what was locked when those were prepared."""
        return external_digests(self.lock, externals, compare=not self.given.data) if externals else Digests({})

    @cached_property
    def preparation(self) -> PrepareWork:
        work = PrepareWork(
            item=PREPARE_ITEM,
            kind=PREPARE_ITEM,
            config=self.config,
            family=self.family,
            root=self.root,
            action="run",
        )
        if self.foreign:
            why = ("the run has another identity", *self.foreign)
            remedy = "start a new run with run=<new name>, or undo the change"
            return replace(work, action="blocked", reasons=why, remedies=(remedy,), faults=self.foreign_faults)
        try:
            data = self.data
            unlocked = self.digests(run_externals(self.config, self.family)).unknown
        except StagelineError as error:
            return blocked(work, [error])
        work = replace(work, data=data, fingerprint=set_fingerprint(data.inputs) if data.is_decided else "")
        found = data.prepared
        if found is None or unlocked:
            reasons = (data.reason, *unlocked) if found is None else unlocked
            work = replace(work, reasons=tuple(dict.fromkeys(reasons)), unlocked=unlocked)
            return replace(work, action="depends") if data.unseen else work
        same = f"equal data section and source files ({found.num_files} files)"
        reference = str(found.reference)
        return replace(work, action="reuse", reasons=(same,), reference=reference, seconds=0.0, prepared=found)

    def stage(self, name: str) -> StageWork:
        """The decision about a stage: as if it were selected, then said if it is not."""
        work = self.as_selected(name)
        if self.is_selected(name):
            return work
        why = f"stages: {[stage.name for stage in self.selected]}"
        if work.action == "reuse":
            return replace(work, action="reuse (not selected)", reasons=(why, *work.reasons), remedies=())
        ref = None if work.action == "continue" else work.ref
        return replace(work, action="not selected", reasons=(why,), remedies=(), faults=(), reference="", ref=ref)

    @cached_property
    def evaluated(self) -> Stage | None:
        """The stage that is evaluated where the config names no checkpoints."""
        return self.family.evaluated(self.config)

    def is_selected(self, name: str) -> bool:
        """Whether a stage is one of this run's."""
        return any(stage.name == name for stage in self.selected)

    def as_selected(self, name: str) -> StageWork:
        """What is decided about a stage if it is selected."""
        if name not in self._stages:
            self._stages[name] = decide_selected(self, self.family.stages[name])
        return self._stages[name]

    @cached_property
    def evaluation(self) -> EvaluationWork:
        work = EvaluationWork(
            item=EVALUATE_ITEM,
            kind=EVALUATE_ITEM,
            config=self.config,
            family=self.family,
            root=self.root,
            action="run",
        )
        if self.given.checkpoints is None and self.foreign:  # any checkpoint may be measured with any settings
            return replace(
                work, action="blocked", reasons=("the run has another identity",), faults=self.foreign_faults
            )
        if self.given.checkpoints is None and not asked_checkpoints(self.config) and self.evaluated is None:
            reasons = tuple(f"stage {stage.name!r}: {stage.not_evaluated}" for stage in self.selected)
            return replace(work, action="not evaluated", reasons=reasons)
        try:
            checkpoints, waiting, missing = self._evaluated()
            data = self.data
            if missing:
                return replace(work, action="blocked", reasons=tuple(missing), faults=(PlanError("; ".join(missing)),))
            work = replace(work, checkpoints={} if waiting else checkpoints, data=data)
            splits = self.family.evaluation_splits(self.config)
            inputs = data_inputs(data, splits, self.config, self.root, reader="the evaluation")
            if waiting or inputs is None:
                return replace(work, reasons=tuple(waiting) or (data.reason,))
            subjects = {name: (ref.content, ref.metadata.facts) for name, ref in checkpoints.items()}
            work = replace(work, inputs=inputs_digest(inputs))
            name = joint_fingerprint(self.config, subjects, work.inputs)
            found = find_evaluation(self.run, name)
        except StagelineError as error:
            return blocked(work, [error])
        work = replace(work, fingerprint=name, found=found)
        if found is None:
            return replace(work, reasons=("this checkpoint was not evaluated with these settings",))
        why = "equal checkpoint, settings and data"
        return replace(work, action="reuse", reasons=(why,), reference=str(found.reference), seconds=0.0)

    def _evaluated(self) -> tuple[dict[str, CheckpointRef], list[str], list[str]]:
        """(name -> checkpoint, what is still to be trained, what cannot be had) of what is to be evaluated."""
        refs: dict[str, CheckpointRef] = {}
        waiting: list[str] = []
        missing: list[str] = []
        if self.given.checkpoints is not None:
            refs = {name: resolve(uri) for name, uri in self.given.checkpoints.items()}
            return refs, waiting, self._not_evaluated(refs.values())
        asked = asked_checkpoints(self.config)
        if not asked:
            assert self.evaluated is not None, "asked before"
            asked = {"": self.evaluated.name}
        for name, target in asked.items():
            if target not in self.family.stages:
                refs[name] = resolve_named(target, self.config.root)
                missing += self._not_evaluated([refs[name]])
                continue
            if why := self.family.stages[target].not_evaluated:
                missing.append(f"a checkpoint of stage {target!r} cannot be evaluated: {why}")
                continue
            if self.given.stages is not None:
                if self.given.stages.get(target):
                    refs[name] = resolve(self.given.stages[target])
                else:
                    missing.append(f"the step of stage {target!r} handed on no checkpoint")
                continue
            work = self.stage(target)
            if work.finished is not None:
                refs[name] = work.finished
            elif work.action == "blocked":
                missing.append(f"stage {target!r} is blocked")
            elif work.action == "not selected":
                missing.append(f"stage {target!r} is not selected, and not finished with these settings")
            else:
                waiting.append(f"stage {target!r} will be trained")
        return refs, waiting, missing

    def _not_evaluated(self, refs: Iterable[CheckpointRef]) -> list[str]:
        """Why checkpoints cannot be evaluated, a sentence for each that cannot."""
        stages = {ref.metadata.stage: ref for ref in refs if ref.metadata.family == self.family.name}
        return [
            f"{ref.uri} is of stage {name!r} and cannot be evaluated: {self.family.stages[name].not_evaluated}"
            for name, ref in stages.items()
            if name in self.family.stages and self.family.stages[name].not_evaluated
        ]

    @cached_property
    def report(self) -> Work:
        items = (self.preparation, *(self.stage(name) for name in self.family.stages.names), self.evaluation)
        actions = {work.action for work in items}
        work = Work(
            item=REPORT_ITEM,
            kind=REPORT_ITEM,
            config=self.config,
            family=self.family,
            root=self.root,
            action="run",
            reasons=("something before it is made anew",),
        )
        if "blocked" in actions:
            return replace(work, action="blocked", reasons=("something before it is blocked",))
        kept = {"reuse", "not selected", "reuse (not selected)", "not evaluated"}
        if actions <= kept and self.run.exists(REPORT):
            uri = f"{self.run.uri}/{REPORT}"
            return replace(work, action="reuse", reasons=("nothing before it changes",), reference=uri)
        return work

    @cached_property
    def foreign_faults(self) -> tuple[PlanError, ...]:
        """The same as an error."""
        lines = "; ".join(self.foreign)
        remedy = "start a new run with run=<new name>, or undo the change"
        return (PlanError(f"the run {self.config.run!r} has another identity: {lines}", remedy=remedy),)
