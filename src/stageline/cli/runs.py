"""What runs there are: runs list, runs show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stageline.cli.configuration import AsJson, Root
from stageline.printing import json_text, quoted_block, remedy_lines, say, say_block

if TYPE_CHECKING:
    from stageline.store import Store
    from stageline.verbs.report.listing import RunSummary

SHOWN = 4
"""Differing settings that a row of the list tells; all of them stand in --json."""


def register_runs(app: typer.Typer) -> None:
    """Add the commands to the application."""
    runs = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What runs there are.")
    runs.command("list")(list_command)
    runs.command("show")(show_command)
    app.add_typer(runs, name="runs")


def list_command(root: Root = ".", as_json: AsJson = False) -> None:
    """Every run below a root: how far it is, what came out, in which settings it differs from the others."""

    from stageline.cli.tables import duration, show_rows
    from stageline.store import open_store
    from stageline.verbs.report.listing import list_runs

    store = open_store(root)
    found = list_runs(store)
    if as_json:
        say_block(json_text([run.to_json() for run in found]))
        return
    if not found:
        say(f"no runs at {store.uri}")
        return
    several = len({run.family for run in found} - {""}) > 1
    columns = ("run", *(["family"] if several else []), "state", "stages", "result", "differs in", "created", "trained")
    rows = [
        (
            run.run,
            *([run.family] if several else []),
            run.state,
            ", ".join(_stage_line(stage) for stage in run.stages),
            "" if run.value is None else f"{run.metric} {run.value:.3f}",
            _differences(run),
            run.created[:16].replace("T", " "),
            "" if run.seconds is None else duration(run.seconds),
        )
        for run in found
    ]
    show_rows(columns, rows)
    for run in found:
        if run.state.endswith("damaged") or run.state == "failed":
            say(f"{run.run}: {run.sentence} `stageline runs show {run.run} --root {root}` tells more")


def _stage_line(stage: Mapping[str, Any]) -> str:
    if stage["step"] is None:
        return f"{stage['stage']} -"
    return f"{stage['stage']} {stage['step']}/{stage['steps']}{'' if stage['final'] else ' (stopped)'}"


def _differences(run: RunSummary) -> str:
    parts = [f"{key}={value}" for key, value in run.differs.items()]
    more = f"{len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    return ", ".join([*parts[:SHOWN], *([more] if more else [])])


def show_command(
    run: Annotated[str, typer.Argument(help="Name of the run.")], root: Root = ".", as_json: AsJson = False
) -> None:
    """A run: its stages and checkpoints, its evaluations, its failure."""

    from stageline.checkpoint.identity import read_run
    from stageline.cli.tables import show_evaluation, show_rows
    from stageline.errors import PlanError
    from stageline.families import family_words
    from stageline.store import open_store
    from stageline.work.evaluations import find_evaluations

    store = open_store(root)
    if read_run(store, run) is None:
        raise PlanError(f"there is no run {run!r} at {store.uri}", remedy="`stageline runs list` shows those there are")
    summary = _details(store, run)
    if as_json:
        say_block(json_text(summary))
        return
    say(f"run {run} ({summary['family']}) at {summary['uri']}, created {summary['created']}")
    rows = [(c["stage"], str(c["step"]), c["state"], c["best"], c["reference"]) for c in summary["checkpoints"]]
    show_rows(("stage", "step", "state", "best", "checkpoint"), rows)
    words = family_words(summary["family"])
    for found in find_evaluations(store.child("runs", run)):
        where = ", ".join(
            f"{name or 'stage'} {c.get('stage')} step {c.get('step')}" for name, c in found.checkpoints.items()
        )
        show_evaluation(found, words, f"\nevaluation of {where}: {found.reference.uri}")
    if summary["failure"]:
        failure = summary["failure"]
        say("", *quoted_block(f"failed: {failure['sentence']}"), *remedy_lines(failure["remedy"]))
    if summary["report"]:
        say("", f"report: {summary['report']}")


def _details(store: Store, name: str) -> dict[str, Any]:
    from stageline.checkpoint.identity import read_run
    from stageline.checkpoint.layout import POINTERS, StageDir, stage_dirs_in
    from stageline.telemetry import read_failure
    from stageline.work.evaluations import find_evaluations

    run = store.child("runs", name)
    own = read_run(store, name)
    assert own is not None
    checkpoints, stages = [], []
    for stage in own.stages:
        for directory in stage_dirs_in(run.child(stage)) or [StageDir(store, name, stage)]:
            where = directory.uri.removeprefix(f"{run.uri}/")
            found_here = directory.survey()
            newest = found_here.refs[-1].metadata if found_here.refs else None
            done = (newest.step, newest.steps, newest.final) if newest else (None, None, False)
            stages.append({"stage": where, **dict(zip(("step", "steps", "final"), done, strict=True))})
            for what, items in (("damaged", found_here.damaged), ("set aside", found_here.aside)):
                for item in items:
                    step = item.metadata.step if item.metadata else None
                    row = {"stage": where, "step": step, "state": f"{what}: {item.reason}", "best": ""}
                    checkpoints.append({**row, "reference": item.uri})
            for ref in found_here.refs:
                metadata = ref.metadata
                names = [p for p in POINTERS if directory.names(p, ref)]
                best = f"{metadata.best.metric} {metadata.best.value:.4f}" if metadata.best else ""
                state = ", ".join([*(["final"] if metadata.final else []), *names])
                row = {"stage": where, "step": metadata.step, "state": state, "best": best}
                checkpoints.append({**row, "reference": str(ref.reference)})
    evaluations = [
        {
            "uri": found.reference.uri,
            "labels": found.labels,
            "metrics": dict(found.metrics),
            "reasons": dict(found.reasons),
            "num_samples": dict(found.num_samples),
            "checkpoint": next(iter(found.checkpoints.values())),
            "checkpoints": dict(found.checkpoints),
        }
        for found in find_evaluations(run)
    ]
    record = read_failure(run)
    return {
        "run": name,
        "uri": run.uri,
        "family": own.family,
        "created": own.created,
        "stages": stages,
        "checkpoints": checkpoints,
        "evaluations": evaluations,
        "failure": None if record is None else record.to_json(),
        "report": f"{run.uri}/report.html" if run.exists("report.html") else "",
    }
