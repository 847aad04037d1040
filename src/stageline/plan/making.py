"""The plan of a whole run: data, every stage, evaluation, report, each as `work` decides it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stageline.config import RunConfig
from stageline.errors import StagelineError
from stageline.families import STEP_RATES
from stageline.stage import stage_config
from stageline.work.branches import branch_config
from stageline.work.decision import RunDecision
from stageline.work.differences import device_kind
from stageline.work.record import Item, Plan
from stageline.work.stages import kept_note
from stageline.work.work import StageWork

ESTIMATED = "expected with ~: from rates measured on {device}, training steps alone"


def make_plan(config: RunConfig) -> Plan:
    """What a run of this config will do. ConfigError for stages, overrides or parents that do not exist."""
    run = RunDecision(config)
    stages = [run.stage(stage.name) for stage in run.family.stages]
    items = [run.preparation.to_item(), *(_stage_item(work) for work in stages)]
    items += [run.evaluation.to_item(), run.report.to_item()]
    last = run.selected[-1]
    notes: tuple[str, ...] = ()
    if not run.foreign:
        notes = run.family.summary(stage_config(config, last), last)
        notes += tuple(f"{item.name}: {note}" for item in items for note in item.notes)
    if any(item.is_estimate for item in items):
        notes += (ESTIMATED.format(device=_measured_on(run, items)),)
    return Plan(run.family.name, config.run, run.run.uri, tuple(items), notes)


def _measured_on(run: RunDecision, items: Sequence[Item]) -> str:
    """Where the rates of the stages were measured whose time is an estimate."""
    guessed = {item.name for item in items if item.is_estimate}
    kinds = [device_kind(stage_config(run.config, stage)) for stage in run.family.stages if stage.name in guessed]
    return " and ".join(dict.fromkeys(STEP_RATES[run.family.name, kind].device for kind in kinds))


def plan_branch(config: RunConfig, branch: str) -> tuple[RunConfig, Plan | None]:
    """(config, plan) of a branch of a run's pipeline; no plan while a stage that both share is still to be trained.

    config: the main run's.  branch: its name.
    ConfigError for a branch that there is not, that changes or trains nothing; PlanError for another run's name.
    """
    main = RunDecision(config)
    shares = main.family.branches[branch].shares if branch in main.family.branches else ()
    works = {name: main.stage(name) for name in shares}
    made = branch_config(config, branch, {name: work.result for name, work in works.items()})
    if any(main.is_selected(name) and work.finished is None for name, work in works.items()):
        own = RunDecision(made, main.root)
        if own.foreign:
            raise own.foreign_faults[0]
        return made, None
    return made, make_plan(made)


def _stage_item(work: StageWork) -> Item:
    """A stage as the plan shows it, with what its directory keeps of other settings."""
    item = work.to_item()
    if work.action in ("not selected", "blocked"):
        return item
    try:
        return replace(item, notes=(*item.notes, *kept_note(work)))
    except StagelineError as error:
        return replace(item, notes=(*item.notes, f"what is kept of other settings cannot be told: {error.message}"))
