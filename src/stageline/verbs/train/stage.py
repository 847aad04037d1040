"""`train_stage`: decide, admit, build, load, fit, commit; on a failure leave a record and raise it again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from stageline import __version__
from stageline.build import image_reference
from stageline.checkpoint.commit import CheckpointWriter
from stageline.checkpoint.identity import claim_run
from stageline.checkpoint.layout import CheckpointRef, Damaged, resolve
from stageline.checkpoint.ownership import Ownership, recorded_ownership
from stageline.checkpoint.usercode import keep_code, load_code, name_code
from stageline.checkpoint.verify import verify
from stageline.config import RunConfig, flatten, to_yaml
from stageline.contract import StageTask, Workspace
from stageline.data.prepared import PreparedData, open_prepared
from stageline.encoders.lock import external_digests, read_lock
from stageline.errors import CheckpointError, StoreError, difference
from stageline.families import load_family
from stageline.stage import num_epochs, num_steps
from stageline.store import Reference, open_store
from stageline.trainer.assembly import Parts, assemble, cast_frozen
from stageline.trainer.interruption import StopRequest
from stageline.trainer.loggers import check_loggers
from stageline.trainer.loop import FitResult, fit
from stageline.trainer.memory import memory_advice
from stageline.trainer.order import make_order
from stageline.trainer.ranks import Ranks
from stageline.trainer.refusals import refuse_data, refuse_settings
from stageline.trainer.restoring import load_referenced, restore
from stageline.trainer.saving import CheckpointSaver
from stageline.trainer.state import TrainingState
from stageline.verbs.admitted import fill_externals
from stageline.verbs.train.loading import Seeding, admit_resume, known_parents, owned_by, seed_from_parents
from stageline.verbs.train.session import Session, make_provenance
from stageline.work.decision import decide_stage
from stageline.work.given import Given
from stageline.work.record import Action
from stageline.work.work import StageWork, refuse_blocked, refuse_undecided, stage_places


@dataclass(frozen=True)
class StageResult:
    """What a stage hands on.

    reference: the checkpoint for the next stage or the evaluation (best or last, as the stage declares).
    action: run, reuse or continue.  metrics: of the last validation, empty on reuse.
    """

    stage: str
    action: Action
    reference: Reference
    step: int
    steps: int
    best: float | None
    metrics: Mapping[str, float]
    seconds: float


def train_stage(
    config: RunConfig,
    stage_name: str,
    *,
    data: str,
    parents: Mapping[str, str] | None = None,
    job: Mapping[str, str] | None = None,
) -> StageResult:
    """Bring one stage of a run to its final checkpoint; every rank of the stage calls this.

    config: the run's.  data: reference of the prepared data (`<uri>@sha256:<digest>`).  parents: role -> checkpoint (an
    empty text: none); None takes what config or run have.
    job: what this rank knows of its job (`jobs.environment.job_words`), in which all ranks must agree.
    Raises InterruptedRunError after a commit when asked to stop, PlanError, CheckpointError, ConfigError, DataError,
    BusyError, TrainingError, OutOfMemoryError, DiskFullError, PeerLostError.
    """
    session = Session(rank=int(os.environ.get("RANK", "0")), job=job or {})
    try:
        root, own_files = open_store(config.root), config
        config = name_code(config)
        work = decide_stage(config, stage_name, root, Given(data, parents))
        refuse_blocked(work)
        own = work.config
        refuse_settings(own.trainer, has_cuda=torch.cuda.is_available())
        check_loggers(own.trainer.loggers)
        _refuse_in_process(work)
        refuse_undecided(work)
        session.work = work
        if session.rank == 0:
            stages, image = stage_places(config, work.family), image_reference()
            session.run = claim_run(root, config, session.command, stages=stages, image=image)
            keep_code(own_files)
        torch.set_num_threads(own.trainer.threads)
        with StopRequest(own.trainer.max_seconds) as stop:
            return _train(session, config, work, data, stop)
    except BaseException as error:
        session.fail(error)
        raise
    finally:
        session.close()


def _refuse_in_process(work: StageWork) -> None:
    if work.root.in_process and work.config.trainer.world_size > 1:
        raise StoreError(f"{work.root.uri!r} lives in one process, the stage has several", remedy="use a path or s3://")


def _train(session: Session, config: RunConfig, work: StageWork, data: str, stop: StopRequest) -> StageResult:
    # Before any rank waits for another: one that was started alone after the end must find the end and go.
    if work.finished is not None:
        return _result(work, "reuse", work.finished, None)
    # Every rank waits by itself: in a process group those that are ready would run into its time-out.
    session.await_lease(work, stop)
    ranks = Ranks(work.config.trainer)
    trainer = work.config.trainer.model_dump(mode="json")
    # A job that is edited while it runs: its pods have different words until all of them were replaced.
    agreed = {
        "stage fingerprint": work.fingerprint,
        "trainer": trainer,
        "job": dict(session.job),
        "version": __version__,
    }
    ranks.agree("the config", flatten(agreed))
    action, name, extends = ranks.first(lambda: _begin(session, config, work))
    work = replace(work, extends=extends)
    session.owned = True
    ref = resolve(name) if name else None
    if action == "reuse" and ref is not None:
        result = _result(work, "reuse", ref, None)
    else:
        names = [split.name for split in work.family.splits(work.config, work.stage)]
        opened = open_prepared(data, names, work.config.data.cache_bytes)
        fitted = _fit(session, work, ranks, ref, opened, stop)
        handed_on = resolve(ranks.first(lambda: _hand_on(session, config, work)))
        result = _result(work, action, handed_on, fitted)
    ranks.close()
    return result


def _again(config: RunConfig, work: StageWork) -> StageWork:
    """The decision about the same stage over the same data and parents, now."""
    refs = {role: str(ref.reference) for role, ref in work.sources.items()}
    given = Given(str(work.data.reference), {role: refs.get(role, "") for role in work.stage.roles})
    again = decide_stage(config, work.item, work.root, given)
    refuse_blocked(again)
    return again


def _begin(session: Session, config: RunConfig, work: StageWork) -> tuple[Action, str, str]:
    """Rank 0: take the stage directory and look again what there is to do, now that nobody else writes there.

    A checkpoint to continue is read whole once; what is damaged is set aside and the one before it taken.
    """
    session.take_lease(work)
    again = _again(config, work)
    if again.finished is None:
        found = work.stage_dir.survey()
        unread = [damaged for damaged in found.damaged if damaged.metadata is None]
        session.set_aside([*unread, *found.damaged_of(work.fingerprint)])
    while again.action == "continue" and again.ref is not None:
        faults = verify(again.ref)
        if not faults:
            break
        session.set_aside([Damaged(again.ref.store, "; ".join(faults), again.ref.metadata)])
        again = _again(config, work)
    if again.ref is None:
        work.stage_dir.record_parents({role: ref.reference for role, ref in work.sources.items()})
    return again.action, again.reference, again.extends


def _hand_on(session: Session, config: RunConfig, work: StageWork) -> str:
    """Rank 0: the reference of what the finished stage hands on; says where it is worth nothing."""
    done = _again(config, work)
    assert done.finished is not None, "a finished stage has committed something"
    if done.diverged:
        session.recorder.say(f"{work.item} {done.diverged}; nothing starts from it unless `parents` names it")
    return done.reference


def _fit(
    session: Session, work: StageWork, ranks: Ranks, ref: CheckpointRef | None, data: PreparedData, stop: StopRequest
) -> FitResult:
    """Build, load and train, with the stage directory ours."""
    settings = work.config.trainer
    with memory_advice(settings, "building the model"):
        task = _build_task(work, data)
        seeding: Seeding | None = None
        if ref is None:
            seeding = seed_from_parents(work, task.model)
            load_family(work.family.name).derive(task, known_parents(work))
        else:
            admit_resume(work, ref)
            load_referenced(task.model, ref)
        parts = assemble(
            task,
            settings,
            ranks,
            work.stage,
            work.family.trains(work.config, work.stage),
            may_lack_gradient=work.family.may_lack_gradient(work.config, work.stage),
        )
        state = TrainingState() if ref is None else restore(parts, ref)
        if work.extends:
            state = state.model_copy(update={"best": None})  # the best of this training is one of its own checkpoints
    owned, holders = _owned(work, parts, seeding, ref)
    family = load_family(work.family.name)
    with memory_advice(settings, "preparing the model"):
        cast_frozen(parts, work.family.casts(work.config, work.stage))
        contents = {role: record.content for role, record in holders["parents"].items()} | dict(work.digests)
        family.begin(task, Workspace(open_store(work.config.root), contents, ranks.rank, ranks.size))
    steps = planned_steps(work, task, ranks)
    writer: CheckpointWriter | None = None
    if ranks.is_first:
        assert session.lease is not None
        session.open_records(work, ref, steps)
        for notice in () if seeding is None else seeding.notices:
            session.recorder.event("seeded", **notice)
            session.recorder.say(f"seeded from {notice['reference']} ({notice['weights']} weights)")
        provenance = make_provenance(work, session.run, parts, holders["parents"], session.command)
        provenance = provenance.model_copy(update=holders)
        names = work.family.name_facts
        writer = CheckpointWriter(work.stage_dir, session.lease, provenance, settings.keep, name_facts=names)
    elif ranks.is_first_of_node:
        session.serve_metrics(work)
    saver = CheckpointSaver(
        work.stage_dir,
        writer,
        ranks,
        steps=steps,
        background=settings.async_checkpoint,
        config_yaml=to_yaml(work.config),
        owned=owned,
        exports=partial(family.exports, work.config, work.stage),
    )
    saver.watch(parts)
    try:
        return fit(
            parts, seed=work.config.seed, steps=steps, recorder=session.recorder, saver=saver, stop=stop, state=state
        )
    finally:
        saver.close()


def _owned(
    work: StageWork, parts: Parts, seeding: Seeding | None, ref: CheckpointRef | None
) -> tuple[Ownership, dict[str, Any]]:
    """Whose each tensor is, and who holds the others: from its parents at the start, as recorded when it goes on."""
    if seeding is not None:
        owned, holders = owned_by(work, seeding, parts)
        return owned, {"parents": seeding.parents, **holders}
    assert ref is not None
    fields = {name: getattr(ref.metadata, name) for name in ("parents", "referenced", "externals")}
    return recorded_ownership(ref.metadata), fields


def _build_task(work: StageWork, data: PreparedData) -> StageTask:
    """The family's task; its facts must be those its config promises."""
    family = load_family(work.family.name)
    load_code(work.config, sections=family.code_sections)
    torch.manual_seed(work.config.seed)
    task = family.build_task(work.config, work.stage, data)
    fill_externals(work.config, work.stage, task.model)
    again = external_digests(read_lock(work.root), work.externals).known if work.externals else {}
    changed = difference(dict(work.digests), dict(again))
    if changed:
        raise CheckpointError(
            f"stage {work.stage.name!r}: weights of others changed while it started: {'; '.join(changed)}",
            remedy="start it again",
        )
    refuse_data(task.train_set, task.val_set)
    lines = difference(task.facts(), work.family.facts(work.config, work.stage))
    if lines:
        raise CheckpointError(
            f"stage {work.stage.name!r}: model and config disagree about their facts: {'; '.join(lines)}",
            remedy="a fault in the family's code; nothing was trained",
        )
    return task


def planned_steps(work: StageWork, task: StageTask, ranks: Ranks) -> int:
    """Optimizer steps of the stage, now that data and ranks are known."""
    settings = work.config.trainer
    epochs = num_epochs(work.config, work.stage)
    if epochs is not None:
        order = make_order(task, settings, work.stage, seed=work.config.seed, rank=ranks.rank, size=ranks.size)
        return order.steps_of_epochs(epochs)
    steps = num_steps(work.config, work.stage)
    assert steps is not None, "epochs were handled above"
    return steps


def _result(work: StageWork, action: Action, ref: CheckpointRef, fitted: FitResult | None) -> StageResult:
    best = ref.metadata.best
    return StageResult(
        stage=work.stage.name,
        action=action,
        reference=ref.reference,
        step=ref.metadata.step,
        steps=ref.metadata.steps if fitted is None else fitted.steps,
        best=None if best is None else best.value,
        metrics={} if fitted is None else fitted.metrics,
        seconds=0.0 if fitted is None else fitted.seconds,
    )
