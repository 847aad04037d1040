"""Commands around a whole run: run, report, runs list, runs show, pipeline compile."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stageline.cli.configuration import AsJson, ConfigFile, FamilyName, Overrides, PresetName, Root, read_config
from stageline.cli.submitting import submit

if TYPE_CHECKING:
    from stageline.pipeline.driver import RunResult
    from stageline.store import Store


MAIN_METRICS = 10
"""Rows of the table at the end of a run; everything stands in the report."""


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(run)
    app.command()(compare)
    app.command()(report)
    runs = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What runs there are.")
    runs.command("list")(list_runs)
    runs.command("show")(show_run)
    app.add_typer(runs, name="runs")
    pipeline = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The pipelines of the families.")
    pipeline.command("compile")(compile_)
    pipeline.command("submit")(submit)
    app.add_typer(pipeline, name="pipeline")


def run(
    overrides: Overrides = None,
    config: ConfigFile = None,
    family: FamilyName = None,
    preset: PresetName = None,
    launcher: Annotated[
        str, typer.Option(help="What stages run as: local, or pytorchjob (see `cluster` in the config).")
    ] = "local",
) -> None:
    """Run the family's pipeline on this machine: data, stages, evaluation, report. Unchanged parts are reused."""
    from stageline.cli.tables import show_plan
    from stageline.pipeline.driver import run_pipeline

    own = read_config(config, family, preset, overrides)
    result = run_pipeline(own, show_event, show_plan, launcher=launcher)
    if result.error is not None:
        if result.report:
            print(f"report: {result.report}")
        print(f"run: {result.uri}", flush=True)
        raise result.error
    _show_result(result)


def show_event(event: Mapping[str, Any]) -> None:
    """One line per event of a step."""
    if "line" in event:
        print(f"  {event['item']} | {event['line']}", flush=True)
        return
    seconds = f"  ({event['seconds']:.1f} s)" if event["state"] in ("done", "reused") else ""
    print(f"{event['item']}: {event['state']}: {event['text']}{seconds}", flush=True)


def _show_result(result: RunResult) -> None:
    """The last thing a run prints: its main metrics with sample counts, what was reused, where the report is."""
    from stageline.cli.tables import duration, show_evaluation
    from stageline.families import family_config

    if result.evaluation is not None:
        print()
        show_evaluation(result.evaluation, family_config(result.plan.family).words, limit=MAIN_METRICS)
    states = [event["state"] for event in result.events]
    reused, skipped = states.count("reused"), states.count("skipped")
    made = states.count("done")
    parts = [f"{made} made", f"{reused} reused", *([f"{skipped} not selected"] if skipped else [])]
    print(f"\n{', '.join(parts)} in {duration(result.seconds)}")
    print(f"report: {result.report}", flush=True)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Evaluation, run or config; of several checkpoints A#name.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What it is compared with.")],
    root: Root = ".",
    resamples: Annotated[int, typer.Option(help="Draws of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    intersect: Annotated[
        bool, typer.Option("--intersect", help="Compare over the samples that both have, where they have others too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two evaluations sample by sample: differences with their 95 % intervals."""
    import json

    from stageline.cli.tables import show_comparison
    from stageline.families import family_words
    from stageline.verbs.compare import Bootstrap, compare_evaluations

    made = compare_evaluations(a, b, root=root, bootstrap=Bootstrap(resamples, seed), intersect=intersect)
    if as_json:
        print(json.dumps({"uri": made.uri, **made.plain}, indent=1, ensure_ascii=False))
        return
    show_comparison(made, family_words(made.family))
    print(f"written: {made.uri}")


def report(
    run_uri: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Run directory.", show_default=False)] = None,
    config: ConfigFile = None,
    family: FamilyName = None,
    preset: PresetName = None,
) -> None:
    """Write a run's report, one self-contained HTML file; prints where it is."""
    from stageline.store import open_store
    from stageline.verbs.report import build_report

    if run_uri is None:
        own = read_config(config, family, preset, [])
        run_uri = open_store(own.root).child("runs", own.run).uri
    print(build_report(run_uri))


def list_runs(root: Root = ".", as_json: AsJson = False) -> None:
    """Every run below a root, with how far its stages are."""
    import json

    from stageline.cli.tables import show_rows
    from stageline.store import open_store

    store = open_store(root)
    found = [_summary(store, name) for name in store.folders("runs") if store.exists(f"runs/{name}/run.json")]
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    if not found:
        print(f"no runs at {store.uri}")
        return
    rows = [(r["run"], r["family"], r["created"], ", ".join(_stage_line(s) for s in r["stages"])) for r in found]
    show_rows(("run", "family", "created", "stages"), rows)


def show_run(
    run: Annotated[str, typer.Argument(help="Name of the run.")], root: Root = ".", as_json: AsJson = False
) -> None:
    """A run: its stages and checkpoints, its evaluations, its failure."""
    import json

    from stageline.checkpoint.identity import read_run
    from stageline.cli.tables import show_evaluation, show_rows
    from stageline.errors import PlanError
    from stageline.families import family_words
    from stageline.store import open_store
    from stageline.work.evaluations import find_evaluations

    store = open_store(root)
    if read_run(store, run) is None:
        raise PlanError(f"there is no run {run!r} at {store.uri}", remedy="`stageline runs list` shows those there are")
    summary = _summary(store, run) | _details(store, run)
    if as_json:
        print(json.dumps(summary, indent=1, ensure_ascii=False))
        return
    print(f"run {run} ({summary['family']}) at {summary['uri']}, created {summary['created']}")
    rows = [(c["stage"], str(c["step"]), c["state"], c["best"], c["reference"]) for c in summary["checkpoints"]]
    show_rows(("stage", "step", "state", "best", "checkpoint"), rows)
    words = family_words(summary["family"])
    for found in find_evaluations(store.child("runs", run)):
        where = ", ".join(
            f"{name or 'stage'} {c.get('stage')} step {c.get('step')}" for name, c in found.checkpoints.items()
        )
        show_evaluation(found, words, f"\nevaluation of {where}: {found.reference.uri}")
    if summary["failure"]:
        print(f"\nfailed: {summary['failure'].get('sentence')}\n  -> {summary['failure'].get('remedy')}")
    if summary["report"]:
        print(f"\nreport: {summary['report']}")


def _summary(store: Store, name: str) -> dict[str, Any]:
    from stageline.checkpoint.identity import read_run
    from stageline.checkpoint.layout import StageDir, stage_dirs_in

    record = read_run(store, name)
    assert record is not None
    uri = store.child("runs", name).uri
    stages = []
    for stage in record.stages:
        for directory in stage_dirs_in(store.child("runs", name, stage)) or [StageDir(store, name, stage)]:
            refs = directory.survey().refs
            where = directory.uri.removeprefix(f"{uri}/")
            entry: dict[str, Any] = {"stage": where, "step": None, "steps": None, "final": False}
            if refs:
                newest = refs[-1].metadata
                entry |= {"step": newest.step, "steps": newest.steps, "final": newest.final}
            stages.append(entry)
    return {"run": name, "uri": uri, "family": record.family, "created": record.created, "stages": stages}


def _stage_line(stage: Mapping[str, Any]) -> str:
    if stage["step"] is None:
        return f"{stage['stage']} -"
    return f"{stage['stage']} {stage['step']}/{stage['steps']}{'' if stage['final'] else ' (stopped)'}"


def _details(store: Store, name: str) -> dict[str, Any]:
    from stageline.checkpoint.layout import POINTERS, StageDir
    from stageline.telemetry import read_failure
    from stageline.work.evaluations import find_evaluations

    run = store.child("runs", name)
    checkpoints = []
    for entry in _summary(store, name)["stages"]:
        directory = StageDir.at(run.child(*entry["stage"].split("/")), store)
        found_here = directory.survey()
        for what, items in (("damaged", found_here.damaged), ("set aside", found_here.aside)):
            for item in items:
                step = item.metadata.step if item.metadata else None
                row = {"stage": entry["stage"], "step": step, "state": f"{what}: {item.reason}", "best": ""}
                checkpoints.append({**row, "reference": item.uri})
        for ref in found_here.refs:
            metadata = ref.metadata
            names = [p for p in POINTERS if directory.names(p, ref)]
            best = f"{metadata.best.metric} {metadata.best.value:.4f}" if metadata.best else ""
            state = ", ".join([*(["final"] if metadata.final else []), *names])
            row = {"stage": entry["stage"], "step": metadata.step, "state": state, "best": best}
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
    failure = None if record is None else record.to_json()
    report = f"{run.uri}/report.html" if run.exists("report.html") else ""
    return {"checkpoints": checkpoints, "evaluations": evaluations, "failure": failure, "report": report}


def compile_(
    family: Annotated[str, typer.Option(help="Model family.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="YAML file; none is <family>.yaml here.", show_default=False)
    ] = None,
    with_claim: Annotated[bool, typer.Option("--pvc", help="The variant whose store is a claim, not S3.")] = False,
    claim: Annotated[str, typer.Option(help="Default of its parameter `claim`; implies --pvc.")] = "",
    image: Annotated[str, typer.Option(help="Default of the launcher image, best as name@sha256:….")] = "",
) -> None:
    """Compile a family's pipeline for a KFP backend."""
    from stageline.families import family_config
    from stageline.pipeline.compiled import compile_pipeline

    family_config(family)
    variant = claim if claim or with_claim else None
    target = output or Path(f"{family}.yaml" if variant is None else f"{family}_pvc.yaml")
    compile_pipeline(family, target, claim=variant, image=image)
    print(target, file=sys.stdout)
