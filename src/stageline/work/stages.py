"""The decision about one stage: what of it is there under the fingerprint that its inputs lead to. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stageline.checkpoint.layout import Survey
from stageline.checkpoint.metadata import CheckpointMetadata
from stageline.checkpoint.retention import superseded
from stageline.checkpoint.usercode import code_digests
from stageline.config import RunConfig, once_counted
from stageline.errors import CheckpointError, StagelineError
from stageline.stage import Stage, num_steps, stage_config, stage_fingerprint
from stageline.work.data import inputs_digest
from stageline.work.differences import (
    changed_fields,
    changes,
    divergence,
    estimated_seconds,
    expected_seconds,
    recorded_parameters,
)
from stageline.work.extending import extend
from stageline.work.externals import recorded_digests
from stageline.work.inputs import data_inputs
from stageline.work.other_runs import look_elsewhere
from stageline.work.parents import find_parents
from stageline.work.refusals import refuse_optimizer, refuse_split
from stageline.work.work import StageWork, blocked

if TYPE_CHECKING:
    from stageline.work.decision import RunDecision


def decide_selected(run: RunDecision, stage: Stage) -> StageWork:
    """What is decided about a stage if it is selected. run: the decisions about its run."""
    work = StageWork(
        item=stage.name,
        kind="stage",
        config=run.config,
        family=run.family,
        root=run.root,
        action="run",
        stage=stage,
    )
    if run.foreign:
        return replace(work, action="blocked", reasons=("the run has another identity",), faults=run.foreign_faults)
    try:
        own = stage_config(run.config, stage)
        refuse_split(stage, own.trainer)
        refuse_optimizer(stage, own.trainer)
        run.family.check(own, stage)
        code_digests(own)
        work = replace(work, config=own, externals=run.family.externals(own, stage))
        survey = work.stage_dir.survey()
    except StagelineError as error:
        return blocked(work, [error])
    found = find_parents(run, work)
    notes = (*_notes(work, survey), *found.notes)
    work = replace(work, parents=found.parents, sections=found.sections, notes=notes)
    if found.faults:
        return blocked(work, found.faults)
    if found.blocked:
        return replace(work, action="blocked", reasons=found.blocked, faults=found.blocked_faults)
    try:
        data = run.data
        reader = f"stage {stage.name!r}" if run.item == stage.name or run.is_selected(stage.name) else ""
        inputs = data_inputs(data, run.family.splits(own, stage), run.config, run.root, reader=reader)
        digests = run.digests(work.externals)
        steps = num_steps(own, stage, run.family.num_samples(own, stage, data.facts))
    except StagelineError as error:
        return blocked(work, [error])
    recorded = survey.refs[-1].metadata if survey.refs else None
    work = replace(
        work,
        data=data,
        inputs=inputs,
        digests=digests.known,
        notes=(*work.notes, *_needs(work, digests.known)),
        steps=steps,
        recorded=recorded,
        parameters=recorded_parameters(recorded) if recorded else None,
        seconds=expected_seconds(recorded, steps, 0) if recorded else estimated_seconds(run.family, own, stage, steps),
        is_estimate=recorded is None,
    )
    if found.waiting or found.undecided or digests.unknown or work.inputs is None:
        return _undecided(work, found.waiting, found.undecided, digests.unknown)
    return _compare(work, survey)


def _undecided(work: StageWork, waiting: Sequence[str], undecided: Sequence[str], unlocked: Sequence[str]) -> StageWork:
    """A stage whose fingerprint nobody can know yet.

    waiting: parents that are trained first.  undecided: parents of which nobody knows.  unlocked: weights of others
    without a digest. Source files may also never have been read.
    """
    recorded = work.recorded
    changed = changed_fields(recorded, work.config) if recorded else ["never recorded"]
    anew = work.data.unseen or f"the data will be prepared anew: {work.data.reason}"
    made = [anew] if work.inputs is None else []
    made += unlocked
    sentences = (*made, *waiting, *undecided)
    maybe = undecided or (made and not waiting and not changed)
    work = replace(work, waiting=sentences, reasons=(*changed, *sentences))
    return replace(work, action="depends") if maybe else work


def _compare(work: StageWork, survey: Survey) -> StageWork:
    """Decide by fingerprint: reuse, continue or run."""
    inputs = work.inputs
    assert inputs is not None
    contents = {role: ref.content for role, ref in work.sources.items()}
    code = code_digests(work.config)

    def fingerprint_with(
        digests: Mapping[str, str], config: RunConfig | None = None, former: Mapping[str, Any] | None = None
    ) -> str:
        own = config or work.config
        return stage_fingerprint(own, work.stage, inputs_digest(inputs), contents, digests, code, former)

    wanted = _known_name(survey, work.config, lambda former: fingerprint_with(work.digests, former=former))
    work = replace(work, fingerprint=wanted)
    last = survey.to_continue(wanted)
    if survey.is_finished(wanted):
        return _reuse(work, survey)
    if last is not None:
        step = last.metadata.step
        recorded = last.metadata.data_digest
        if recorded and work.data_digest and recorded != work.data_digest:
            return blocked(work, [_other_bytes(work, recorded, step)])
        why = f"stopped at step {step} of {last.metadata.steps}; settings, data and parents are equal"
        seconds = expected_seconds(last.metadata, work.steps, step)
        reference = str(last.reference)
        return look_elsewhere(
            replace(
                work, action="continue", reasons=(why,), from_step=step, reference=reference, ref=last, seconds=seconds
            )
        )
    if work.config.trainer.extend:
        longer = extend(work, survey, lambda config: fingerprint_with(work.digests, config))
        if longer is not None:
            return longer
    if work.recorded is None:
        return look_elsewhere(replace(work, reasons=("never recorded",)))
    before = recorded_digests(work.recorded, work.digests)
    old = work.recorded.stage_fingerprint
    if before != work.digests and old == fingerprint_with(before) and not survey.is_finished(old):
        return blocked(work, [_other_weights(work, work.recorded, before)])
    reasons = changes(work.recorded, work.config, inputs, work.sources, work.digests)
    if not reasons:
        version = work.recorded.stageline_version or "another version"
        reasons = [f"stage fingerprint: {old[:12]} (stageline {version}) -> {wanted[:12]}"]
    return look_elsewhere(replace(work, reasons=tuple(reasons)))


def _known_name(survey: Survey, config: RunConfig, named: Callable[[Mapping[str, Any] | None], str]) -> str:
    """The stage fingerprint: that of today, or the one under which an earlier version saved the same work.

    named: the fingerprint under former values of settings that no longer count.
    """
    wanted = named(None)
    if survey.is_known(wanted):
        return wanted
    keys = once_counted(config)
    saved = [*(item.metadata for item in survey.damaged), *(ref.metadata for ref in survey.refs)]
    for metadata in reversed([one for one in saved if one is not None]):
        former = {key: metadata.settings[key] for key in keys if key in metadata.settings}
        if former and named(former) == metadata.stage_fingerprint:
            return metadata.stage_fingerprint
    return wanted


def _reuse(work: StageWork, survey: Survey) -> StageWork:
    try:
        ref = work.stage_dir.handed_on(work.stage.parent_checkpoint, work.fingerprint, survey)
    except CheckpointError as error:
        return blocked(work, [error])
    assert ref is not None, "a finished stage has committed something"
    last = survey.to_continue(work.fingerprint)
    step = max(ref.metadata.step, 0 if last is None else last.metadata.step)
    diverged = divergence((last or ref).metadata, work.stage.metric)
    why = f"finished at step {step} with equal settings, data and parents"
    return replace(
        work,
        action="reuse",
        reasons=(why, *([diverged] if diverged else [])),
        reference=str(ref.reference),
        ref=ref,
        seconds=0.0,
        diverged=diverged,
    )


def _other_bytes(work: StageWork, recorded: str, step: int) -> CheckpointError:
    return CheckpointError(
        f"stage {work.item!r} stopped at step {step} with prepared data of digest {recorded[:12]}, and those that the "
        f"same inputs lead to now have {work.data_digest[:12]}: it would go on with other data",
        remedy="restore the prepared data, or start a new run with run=<new name>",
    )


def _other_weights(work: StageWork, recorded: CheckpointMetadata, before: Mapping[str, str]) -> CheckpointError:
    lines = [
        f"{external} had digest {before[external.name][:12]} and has {work.digests[external.name][:12]} now"
        for external in work.externals
        if before[external.name] != work.digests[external.name]
    ]
    return CheckpointError(
        f"stage {work.item!r} stopped at step {recorded.step} of {recorded.steps}, and would go on with other weights: "
        f"{'; '.join(lines)}",
        remedy="restore those files and run `stageline prepare`, or train with the present ones in a new run with "
        "run=<new name>",
    )


def _notes(work: StageWork, survey: Survey) -> tuple[str, ...]:
    """What trains, and what is damaged."""
    lines = []
    trains = work.family.trains(work.config, work.stage)
    if trains.include:
        without = f" without {', '.join(trains.exclude)}" if trains.exclude else ""
        lines.append(f"trains {', '.join(trains.include)}{without}")
    lines += [f"damaged: {item.name}: {item.reason}" for item in survey.damaged]
    return tuple(lines)


def _needs(work: StageWork, digests: Mapping[str, str]) -> list[str]:
    """Which weights of others it needs, and which parents were trained with others, one line each."""
    lines = [f"needs {external}: {digests.get(external.name, 'not locked')[:12]}" for external in work.externals]
    for role, ref in work.sources.items():
        old = {name: record.digest for name, record in ref.metadata.externals.items() if record.digest}
        lines += [
            f"parent {role}: external {name}: checkpoint {old[name][:12]}, now {digest[:12]} (reported)"
            for name, digest in digests.items()
            if old.get(name, digest) != digest
        ]
    return lines


def kept_note(work: StageWork) -> tuple[str, ...]:
    """What its directory keeps of other settings, in one line; nothing where there is none."""
    rows = superseded(work.stage_dir, work.fingerprint)
    if not rows:
        return ()
    finished = sum(row.finished for row in rows)
    size = sum(row.bytes for row in rows)
    return (
        f"keeps {len(rows)} superseded trainings ({finished} finished, {size} bytes): `stageline checkpoint prune "
        f"--superseded` frees them",
    )
