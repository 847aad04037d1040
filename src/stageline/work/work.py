"""Work: an item with everything decided about it, and what its job is started with. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from stageline.checkpoint.layout import CheckpointRef, StageDir
from stageline.checkpoint.metadata import CheckpointMetadata
from stageline.config import RunConfig
from stageline.contract import External, FamilyConfig
from stageline.data.prepared import Prepared
from stageline.data.quarantine import counts_of
from stageline.errors import ConfigError, PlanError, StagelineError, StoreUnavailableError
from stageline.stage import Inheritance, Stage, stage_config
from stageline.store import Store
from stageline.work.evaluations import EvaluationRecord
from stageline.work.inputs import UNKNOWN, RunData, data_digest
from stageline.work.record import Action, Item, Kind


@dataclass(frozen=True)
class ParentWork:
    """One parent of a stage.

    role: which of its parents.  stage: of what.  ref: its checkpoint, None while it is still to be trained.
    facts: what that checkpoint says, or will say, about itself; None where its stage is blocked.
    selected: whether this run trains it or somebody named it; else it was found finished.
    """

    role: str
    stage: str
    ref: CheckpointRef | None
    facts: Mapping[str, Any] | None
    selected: bool = True


@dataclass(frozen=True, kw_only=True)
class Work:
    """One item of a run, decided.

    config: its own, for a stage as that stage sees it.
    fingerprint: what its result depends on; "" while its inputs are undecided.
    action: what is to be done.  reasons, remedies, notes: as a plan shows them.
    faults: why it is blocked, as errors.
    data: what is known of the run's data.
    reference: of the finished result, or of the checkpoint to continue; "" for none.
    seconds: expected duration, None where nothing was ever recorded or measured.
    """

    item: str
    kind: Kind
    config: RunConfig
    family: FamilyConfig
    root: Store
    action: Action
    fingerprint: str = ""
    reasons: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    faults: tuple[StagelineError, ...] = ()
    data: RunData = UNKNOWN
    reference: str = ""
    seconds: float | None = None

    @property
    def result(self) -> str:
        """The reference of the finished result, "" where it is still to be made."""
        return self.reference if self.action in ("reuse", "reuse (not selected)") else ""

    @property
    def variant(self) -> str:
        """The word that tells its directory and its job from others of the same name; "" for none."""
        return ""

    def arguments(self) -> tuple[str, ...]:
        """Verb and options of its job; without --data where the job has to find its inputs by itself."""
        raise NotImplementedError

    def to_item(self) -> Item:
        """As a plan shows it."""
        return Item(
            self.item,
            self.kind,
            self.action,
            self.reasons,
            self.remedies,
            self.notes,
            reference=self.reference,
            seconds=self.seconds,
        )


@dataclass(frozen=True, kw_only=True)
class PrepareWork(Work):
    """Preparing the data. prepared: what is there.  unlocked: why externals have to be locked, a sentence each."""

    prepared: Prepared | None = None
    unlocked: tuple[str, ...] = ()

    def arguments(self) -> tuple[str, ...]:
        return ("prepare",)


@dataclass(frozen=True, kw_only=True)
class StageWork(Work):
    """One stage.

    parents: role -> parent; a role without one starts from scratch.
    sections: role -> what becomes of each section of that parent.
    externals: weights of others that it needs.  digests: name -> digest of each; of one that is not locked, none.
    inputs: split -> what it is made from; None while undecided.
    ref: the finished checkpoint that it hands on, or the one to continue.
    extends: stage fingerprint of the finished, shorter training that it goes on from; "" for none.
    steps: of the whole stage; None while the number of samples is unknown.  from_step: where it goes on.
    parameters: tensor elements that an earlier run recorded.
    is_estimate: whether `seconds` come from rates measured elsewhere, since nothing was recorded here.
    waiting: why a parent or the data have to be made first.
    recorded: what its directory last saved.
    diverged: a sentence where the finished stage is worth nothing; "" else.
    """

    stage: Stage
    parents: Mapping[str, ParentWork] = field(default_factory=dict)
    sections: Mapping[str, tuple[Inheritance, ...]] = field(default_factory=dict)
    externals: tuple[External, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] | None = None
    ref: CheckpointRef | None = None
    extends: str = ""
    steps: int | None = None
    from_step: int = 0
    parameters: Mapping[str, int] | None = None
    is_estimate: bool = False
    waiting: tuple[str, ...] = ()
    recorded: CheckpointMetadata | None = None
    diverged: str = ""

    @property
    def variant(self) -> str:
        return self.family.variant(self.config)

    @property
    def stage_dir(self) -> StageDir:
        """Where its checkpoints lie."""
        return StageDir(self.root, self.config.run, self.stage.name, self.variant)

    @property
    def finished(self) -> CheckpointRef | None:
        """The checkpoint it hands on, None where it is still to be trained."""
        return self.ref if self.result else None

    @property
    def sources(self) -> dict[str, CheckpointRef]:
        """Role -> checkpoint that it starts from."""
        return {role: parent.ref for role, parent in self.parents.items() if parent.ref is not None}

    @property
    def data_digest(self) -> str:
        """The digest of the prepared splits that it reads, for the record."""
        return data_digest(self.data, self.inputs or {})

    @property
    def set_aside(self) -> dict[str, dict[str, int]]:
        """Split -> class -> rows that could not be used, of the prepared splits that it reads and that have some."""
        splits = {} if self.data.prepared is None else self.data.prepared.splits
        return {
            name: counts_of(splits[name].set_aside)
            for name in sorted(self.inputs or {})
            if name in splits and splits[name].set_aside
        }

    def arguments(self) -> tuple[str, ...]:
        if not self.fingerprint or self.data.reference is None:
            return ("train", self.item)
        refs = self.sources
        roles = (*self.stage.parents, *(role for role in self.stage.named_parents if role in refs))
        words = [f"--parent={role}={refs[role].reference if role in refs else ''}" for role in roles]
        return ("train", self.item, f"--data={self.data.reference}", *words)

    def committed_step(self) -> int:
        """The newest step that was committed of this very work, -1 for none."""
        return max((ref.metadata.step for ref in self.stage_dir.survey().of(self.fingerprint)), default=-1)

    def to_item(self) -> Item:
        return Item(
            self.item,
            self.kind,
            self.action,
            self.reasons,
            self.remedies,
            self.notes,
            steps=self.steps,
            from_step=self.from_step,
            reference=self.reference,
            parents={role: str(p.ref.reference) if p.ref else "" for role, p in self.parents.items()},
            sections=self.sections,
            parameters=self.parameters,
            seconds=self.seconds,
            is_estimate=self.is_estimate and bool(self.seconds),
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationWork(Work):
    """The evaluation.

    checkpoints: name -> checkpoint, a single one is named "".
    inputs: one text for what the splits that it reads are made from; "" while undecided.
    found: where it was made before.
    """

    inputs: str = ""
    checkpoints: Mapping[str, CheckpointRef] = field(default_factory=dict)
    found: EvaluationRecord | None = None

    def arguments(self) -> tuple[str, ...]:
        if not self.fingerprint or self.data.reference is None or set(self.checkpoints) != {""}:
            return ("evaluate", "--quiet")
        named = f"--checkpoint={self.checkpoints[''].reference}"
        return ("evaluate", "--quiet", named, f"--data={self.data.reference}")


def stage_places(config: RunConfig, family: FamilyConfig) -> dict[str, str]:
    """Stage -> where it lies in its run: `<stage>[/<variant>]`; of those whose config holds. config: the run's."""
    places = {}
    for stage in family.stages:
        try:
            variant = family.variant(stage_config(config, stage))
        except ConfigError:  # its own decision says so
            variant = ""
        places[stage.name] = f"{stage.name}/{variant}" if variant else stage.name
    return places


W = TypeVar("W", bound=Work)


def blocked(work: W, faults: Sequence[StagelineError]) -> W:
    """The same item, kept from starting. Raises where only the store did not answer."""
    for fault in faults:
        if isinstance(fault, StoreUnavailableError):
            raise fault
    sentences = tuple(f"{f.code}: {f.message}" if f.code else f.message for f in faults)
    remedies = tuple(dict.fromkeys(f.remedy for f in faults if f.remedy))
    return replace(work, action="blocked", reasons=sentences, remedies=remedies, faults=tuple(faults))


def refuse_blocked(work: Work) -> None:
    """Raise what blocks an item: its one fault as it is, or a PlanError with every reason."""
    if work.action != "blocked":
        return
    if len(work.faults) == 1:
        raise work.faults[0]
    code = next((fault.code for fault in work.faults if fault.code), "")
    raise PlanError(
        f"{'stage ' if work.kind == 'stage' else ''}{work.item!r} is blocked: {'; '.join(work.reasons)}",
        remedy=" ".join(work.remedies),
        code=code,
    )


def refuse_undecided(work: Work) -> None:
    """PlanError where something before an item has to be made first."""
    if work.fingerprint:
        return
    why = "; ".join(work.waiting) if isinstance(work, StageWork) else "; ".join(work.reasons)
    raise PlanError(
        f"{'stage ' if work.kind == 'stage' else ''}{work.item!r} cannot start yet: {why}",
        remedy="make what is before it first, or run the whole pipeline",
    )
