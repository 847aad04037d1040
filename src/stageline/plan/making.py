"""The plan of a whole run: data, every stage, evaluation, report."""

from __future__ import annotations

from typing import Literal

from stageline.checkpoint.identity import RUN_NAME, compare_run, read_run, refuse_alike
from stageline.checkpoint.layout import CheckpointRef
from stageline.config import RunConfig
from stageline.contract import FamilyConfig
from stageline.data.prepared import Prepared
from stageline.errors import ConfigError, Faults, StagelineError
from stageline.families import family_config
from stageline.stage import Stage, stage_config
from stageline.store import Store, open_store
from stageline.work.data import evaluation_inputs, forecast_prepared
from stageline.work.decision import Decision, Inputs, decide_stage
from stageline.work.evaluations import evaluation_fingerprint, find_evaluation
from stageline.work.record import Action, Item, Plan

REPORT = "report.html"


def make_plan(config: RunConfig) -> Plan:
    """What a run of this config will do. ConfigError for stages, overrides or parents that do not exist."""
    family = family_config(config.family)
    selected = family.selected(config)
    faults = Faults(ConfigError, "stages", f"stages of {config.family}: {', '.join(family.stages.names)}")
    faults.extend(family.stages.missing_parents(config, selected))
    faults.raise_if_any()
    root = open_store(config.root)
    run = root.child("runs", config.run)
    if not run.exists(RUN_NAME):
        refuse_alike(root, config.run)
    foreign = _identity_difference(root, config)
    if foreign:
        return Plan(family.name, config.run, run.uri, _all_blocked(family, selected, foreign))

    data, data_item = _plan_data(config, root)
    items = [data_item]
    decisions: dict[str, Decision] = {}
    for stage in family.stages:
        if stage not in selected:
            items.append(Item(stage.name, "stage", "not selected", (f"stages: {list(config.stages or ())}",)))
            continue
        inputs = Inputs(
            root,
            data,
            {name: decision.ref for name, decision in decisions.items()},
            frozenset(name for name, decision in decisions.items() if decision.item.action == "blocked"),
        )
        decisions[stage.name] = decide_stage(config, family, stage, inputs)
        items.append(decisions[stage.name].item)
    last = decisions[selected[-1].name]
    items.append(_plan_evaluation(config, run, data, last))
    items.append(_plan_report(run, items))
    notes = family.summary(stage_config(config, selected[-1]), selected[-1])
    return Plan(family.name, config.run, run.uri, tuple(items), notes)


def _identity_difference(root: Store, config: RunConfig) -> list[str]:
    record = read_run(root, config.run)
    return compare_run(record, config) if record else []


def _all_blocked(family: FamilyConfig, selected: tuple[Stage, ...], lines: list[str]) -> tuple[Item, ...]:
    """The run's name belongs to another identity: nothing may start."""
    why = ("the run has another identity", *lines)
    remedy = ("start a new run with run=<new name>, or undo the change",)
    items = [Item("prepare_data", "prepare_data", "blocked", why, remedy)]
    for stage in family.stages:
        action: Action = "blocked" if stage in selected else "not selected"
        items.append(Item(stage.name, "stage", action, ("the run has another identity",)))
    items.append(Item("evaluate", "evaluate", "blocked", ("the run has another identity",)))
    items.append(Item("report", "report", "blocked", ("the run has another identity",)))
    return tuple(items)


def _plan_data(config: RunConfig, root: Store) -> tuple[Prepared | None, Item]:
    kind: Literal["prepare_data"] = "prepare_data"
    try:
        found, reason = forecast_prepared(config, root)
    except StagelineError as error:
        return None, Item(kind, kind, "blocked", (error.message,), (error.remedy,) if error.remedy else ())
    if found is None:
        return None, Item(kind, kind, "run", (reason,))
    why = f"equal data section and source files ({found.num_files} files)"
    return found, Item(kind, kind, "reuse", (why,), reference=str(found.reference), seconds=0.0)


def _plan_evaluation(config: RunConfig, run: Store, data: Prepared | None, last: Decision) -> Item:
    if last.item.action == "blocked":
        return Item("evaluate", "evaluate", "blocked", (f"stage {last.item.name!r} is blocked",))
    ref: CheckpointRef | None = last.ref
    if ref is None or data is None:
        return Item("evaluate", "evaluate", "run", (f"stage {last.item.name!r} will be trained",))
    name = evaluation_fingerprint(config, ref.content, ref.metadata.facts, evaluation_inputs(config, data))
    found = find_evaluation(run, name)
    if found is None:
        return Item("evaluate", "evaluate", "run", ("this checkpoint was not evaluated with these settings",))
    why = "equal checkpoint, settings and data"
    return Item("evaluate", "evaluate", "reuse", (why,), reference=str(found.reference), seconds=0.0)


def _plan_report(run: Store, items: list[Item]) -> Item:
    actions = {item.action for item in items}
    if "blocked" in actions:
        return Item("report", "report", "blocked", ("something before it is blocked",))
    if actions <= {"reuse", "not selected"} and run.exists(REPORT):
        return Item("report", "report", "reuse", ("nothing before it changes",), reference=f"{run.uri}/{REPORT}")
    return Item("report", "report", "run", ("something before it is made anew",))
