"""A stage that this run lacks and another run below the root finished, under the very same fingerprint. No torch."""

from __future__ import annotations

from dataclasses import replace

from stageline.checkpoint.index import FinishedElsewhere, finished_elsewhere
from stageline.checkpoint.layout import CheckpointRef, StageDir
from stageline.errors import CheckpointError
from stageline.work.differences import divergence
from stageline.work.work import StageWork, blocked

KEY = "reuse.across_runs"


def look_elsewhere(work: StageWork) -> StageWork:
    """A stage that is to be run or continued, with what other runs have of it.

    work: its fingerprint known. With `reuse.across_runs` `on` it becomes `reuse` of the first that is whole, by the
    runs' names; with `ask` the plan names that one; with `off` nothing is looked for. Where the run that this one took
    the stage from before is gone, `on` blocks: what was trained from it would silently be trained anew.
    """
    wish = work.config.reuse.across_runs
    if wish == "off":
        return work
    gone = []
    for entry in finished_elsewhere(work.root, work.fingerprint, work.item, work.config.run):
        directory = StageDir.at(work.root.child(*entry.place.split("/")), work.root)
        survey = directory.survey()
        if not survey.is_finished(work.fingerprint):
            gone.append(entry)
            continue
        try:
            ref = directory.handed_on(work.stage.parent_checkpoint, work.fingerprint, survey)
        except CheckpointError as error:
            work = replace(work, notes=(*work.notes, f"run {entry.run!r} finished it, but {error.message}"))
            continue
        assert ref is not None, "a finished stage has committed something"
        return _take(work, entry, ref) if wish == "on" else _offer(work, entry)
    taken = [entry for entry in gone if _was_taken(work, entry)]
    if wish == "on" and taken:
        return blocked(work, [_vanished(work, taken[0])])
    return work


def _offer(work: StageWork, entry: FinishedElsewhere) -> StageWork:
    return replace(work, reasons=(*work.reasons, f"{_found(entry)}: {KEY}=on takes it"))


def _found(entry: FinishedElsewhere) -> str:
    return (
        f"run {entry.run!r} (stageline {entry.version or 'unknown'}) finished it with equal settings, data and parents"
    )


def _take(work: StageWork, entry: FinishedElsewhere, ref: CheckpointRef) -> StageWork:
    diverged = divergence(ref.metadata, work.stage.metric)
    return replace(
        work,
        action="reuse",
        reasons=(_found(entry), *([diverged] if diverged else [])),
        reference=str(ref.reference),
        ref=ref,
        from_step=0,
        seconds=0.0,
        diverged=diverged,
    )


def _was_taken(work: StageWork, entry: FinishedElsewhere) -> bool:
    """Whether a stage of this run ever started from what an entry names."""
    root, below = work.root, f"{work.root.uri.rstrip('/')}/{entry.place}/"
    run = root.child("runs", work.config.run)
    for stage in work.family.stages:
        if work.item not in stage.parents.values():
            continue
        own = run.child(stage.name)
        for store in (own, *(own.child(name) for name in own.folders())):
            if any(ref.uri.startswith(below) for ref in StageDir.at(store, root).recorded_parents()):
                return True
    return False


def _vanished(work: StageWork, entry: FinishedElsewhere) -> CheckpointError:
    return CheckpointError(
        f"stage {work.item!r} was taken from run {entry.run!r}, and {entry.place!r} is no longer there",
        remedy=f"restore it, or train the stage in this run with {KEY}=off",
    )
