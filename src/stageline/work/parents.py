"""The checkpoints a stage starts from, role by role: named by the config, of this run's selected stages, or found.

In this order: what is given or named; the run's own stage if it is selected; a stage that is not selected but finished
under the very fingerprint that it would have. Work under another fingerprint blocks; nothing at all is from scratch for
an optional role, unless the family says that this config needs it. A role that no stage of a run fills is
named or empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stageline.checkpoint.layout import CheckpointRef, resolve_named
from stageline.checkpoint.metadata import is_continuable
from stageline.errors import CheckpointError, PlanError, StagelineError
from stageline.stage import FROM_SCRATCH, Inheritance, Stage, stage_config
from stageline.work.differences import changes, divergence, old_schema
from stageline.work.seeding import check_seeds, is_stranger
from stageline.work.work import ParentWork, StageWork

if TYPE_CHECKING:
    from stageline.work.decision import RunDecision


@dataclass
class Found:
    """What came of looking for the parents of a stage.

    waiting: which are trained first.  undecided: which can only be told once the data are prepared.
    blocked: which cannot be had because their stage is blocked.
    named: role -> (key, word): where and how somebody named it.
    sections: role -> what becomes of each section of that parent.
    needs: optional roles that this config cannot do without -> why.
    """

    parents: dict[str, ParentWork] = field(default_factory=dict)
    faults: list[StagelineError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    waiting: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    blocked_faults: tuple[StagelineError, ...] = ()
    named: dict[str, tuple[str, str]] = field(default_factory=dict)
    sections: dict[str, tuple[Inheritance, ...]] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)


def find_parents(run: RunDecision, work: StageWork) -> Found:
    """Every parent of a stage, and what is wrong with those that cannot be had. work: the stage, its config its own."""
    found = Found(needs=run.family.needs(work.config, work.stage))
    given = run.given.parents if run.item == work.item else None
    stage = work.stage
    strangers = sorted(set(given or {}) - set(stage.roles))
    if strangers:
        known = ", ".join(stage.roles) or "none"
        found.faults.append(PlanError(f"stage {stage.name!r} has no parent {strangers[0]!r}; roles: {known}"))
    for role in stage.roles:
        try:
            parent = _parent(run, work, role, given, found)
            if parent is not None:
                found.parents[role] = parent
        except StagelineError as error:
            found.faults.append(error)
    seeds = check_seeds(work, found.parents, found.named)
    found.faults += seeds.faults
    found.notes += seeds.notes
    found.sections = seeds.sections
    found.parents = {role: parent for role, parent in found.parents.items() if role not in seeds.refused}
    return found


def _parent(
    run: RunDecision, work: StageWork, role: str, given: Mapping[str, str] | None, found: Found
) -> ParentWork | None:
    """The parent of one role; None where the stage starts without it."""
    stage = work.stage
    named = run.config.parents.get(stage.name, {}).get(role, "")
    key = f"parents.{stage.name}.{role}"
    if given is not None and role in given:
        found.named[role] = (key, named) if named else (f"--parent={role}", given[role])
        return _at(run, work, role, given[role], found, named=bool(named))
    if named:
        found.named[role] = (key, named)
        return _at(run, work, role, "" if named == FROM_SCRATCH else named, found, named=True)
    if given is not None or role in stage.named_parents:
        return _absent(stage, role, found)
    return _of_run(run, stage, role, found)


def _at(run: RunDecision, work: StageWork, role: str, name: str, found: Found, *, named: bool) -> ParentWork | None:
    """The parent that somebody names. named: whether the config does. CheckpointError where there is none."""
    stage = work.stage
    if not name:
        return _absent(stage, role, found)
    source = run.family.stages[stage.accepted(role)[0]]
    ref = resolve_named(name, run.config.root, prefer=source.parent_checkpoint)
    diverged = "" if named or is_stranger(work, role, ref) else _diverged(run, ref)
    if diverged:
        raise _refuse_diverged(stage, role, ref, diverged)
    return ParentWork(role, ref.metadata.stage, ref, ref.metadata.facts)


def _absent(stage: Stage, role: str, found: Found) -> ParentWork | None:
    """No parent: None, from scratch, where the stage may."""
    if role in stage.named_parents:
        return None
    source = stage.parents[role]
    if role not in stage.optional_parents or role in found.needs:
        why = f": {found.needs[role]}" if role in found.needs else ""
        raise PlanError(
            f"stage {stage.name!r} needs a checkpoint of {source!r} (role {role!r}) and has none{why}",
            remedy=f"train {source} first, or set parents.{stage.name}.{role}=<checkpoint>",
        )
    found.notes.append(f"parent {role}: from scratch")
    return None


def _of_run(run: RunDecision, stage: Stage, role: str, found: Found) -> ParentWork | None:
    """The parent that the run's own stage hands on, selected or finished before."""
    source = stage.parents[role]
    work = run.as_selected(source)
    if run.is_selected(source):
        if work.action == "blocked":
            found.blocked = (*found.blocked, f"parent {role}: {source!r} is blocked")
            found.blocked_faults = (*found.blocked_faults, *work.faults)
        elif work.finished is None:
            found.waiting = (*found.waiting, f"parent {role}: stage {source!r} will be trained")
        return _taken(stage, role, work)
    survey = work.stage_dir.survey()
    if work.finished is not None:
        found.notes.append(f"parent {role}: {source!r} is not selected, and finished with these settings")
        return _taken(stage, role, work)
    if not survey.refs and not survey.damaged:
        return _absent(stage, role, found)
    if work.action == "blocked":
        raise PlanError(
            f"parent {role}: stage {source!r} is not selected and cannot be taken: {'; '.join(work.reasons)}",
            remedy=" ".join((*work.remedies, _ways_out(run, stage, role, found))),
        )
    if not work.fingerprint:
        sentence = f"parent {role}: stage {source!r} is not selected; whether it is finished with these settings is not"
        found.undecided = (*found.undecided, f"{sentence} known yet")
        return ParentWork(role, source, None, run.family.facts(work.config, work.stage), selected=False)
    raise _refuse_other(run, stage, role, work, found)


def refuse_other(run: RunDecision, source: str) -> None:
    """PlanError where a selected stage starts from one that is not selected and that was trained otherwise.

    source: the stage that is not selected.
    """
    survey = run.as_selected(source).stage_dir.survey()
    if not survey.refs and not survey.damaged:
        return
    for stage in run.selected:
        for role, name in stage.parents.items():
            if name == source and not run.config.parents.get(stage.name, {}).get(role):
                needs = run.family.needs(stage_config(run.config, stage), stage)
                _of_run(run, stage, role, Found(needs=needs))


def _taken(stage: Stage, role: str, work: StageWork) -> ParentWork:
    """A stage of this run as a parent, with the facts that its checkpoint has or will have."""
    ref = work.finished
    if ref is not None and work.diverged:
        raise _refuse_diverged(stage, role, ref, work.diverged)
    facts = ref.metadata.facts if ref else work.family.facts(work.config, work.stage) if _is_own(work) else None
    return ParentWork(role, work.item, ref, facts)


def _is_own(work: StageWork) -> bool:
    """Whether a work's config is the stage's own: one that is blocked early still has the run's."""
    return work.action != "blocked"


def _refuse_diverged(stage: Stage, role: str, ref: CheckpointRef, why: str) -> CheckpointError:
    return CheckpointError(
        f"parent {role}: stage {ref.metadata.stage!r} {why}; {stage.name!r} does not start from it",
        remedy=f"change what {ref.metadata.stage} trains with, or name it: parents.{stage.name}.{role}={ref.uri}",
    )


def _diverged(run: RunDecision, ref: CheckpointRef) -> str:
    """Why a checkpoint that a step hands on is worth nothing; "" else."""
    name = ref.metadata.stage
    if not ref.metadata.final:
        return ""
    return divergence(ref.metadata, run.family.stages[name].metric)


def _refuse_other(run: RunDecision, stage: Stage, role: str, work: StageWork, found: Found) -> PlanError:
    """A stage that is not selected and was trained with something else, or not to its end."""
    recorded = work.recorded
    if work.action == "continue":
        why = f"is unfinished: {'; '.join(work.reasons)}"
    elif recorded is None:
        why = "is damaged"
    elif not is_continuable(recorded):
        why = f"was trained by an earlier version ({old_schema(recorded)})"
    else:
        assert work.inputs is not None
        lines = changes(recorded, work.config, work.inputs, work.sources, work.digests) or list(work.reasons)
        why = f"was trained otherwise: {'; '.join(lines)}"
    return PlanError(
        f"parent {role}: stage {work.item!r} is not selected, and what the run has of it {why}",
        remedy=_ways_out(run, stage, role, found),
    )


def _ways_out(run: RunDecision, stage: Stage, role: str, found: Found) -> str:
    source = stage.parents[role]
    names = [one.name for one in run.family.stages if one.name == source or run.is_selected(one.name)]
    key = f"parents.{stage.name}.{role}"
    may = role in stage.optional_parents and role not in found.needs
    scratch = f", or start from scratch with {key}={FROM_SCRATCH}" if may else ""
    return (
        f"train it too with stages=[{','.join(names)}], or take what is there with "
        f"{key}=runs/{run.config.run}/{source}{scratch}"
    )
