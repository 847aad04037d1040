"""Commands around a whole run: run, compare, report, pipeline compile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stageline.cli.configuration import (
    AsJson,
    BranchName,
    ConfigFile,
    FamilyName,
    Overrides,
    PresetName,
    Root,
    read_config,
    replaced_notes,
)
from stageline.cli.runs import register_runs
from stageline.cli.submitting import submit
from stageline.printing import json_text, say, say_block

if TYPE_CHECKING:
    from stageline.pipeline.driver import RunResult


MAIN_METRICS = 10
"""Rows of the table at the end of a run; everything stands in the report."""


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(run)
    app.command()(compare)
    app.command()(report)
    register_runs(app)
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
    branch: BranchName = "",
) -> None:
    """Run the family's pipeline on this machine: data, stages, evaluation, report. Unchanged parts are reused."""
    from stageline.cli.live import RunView
    from stageline.pipeline.driver import run_pipeline

    own = read_config(config, family, preset, overrides)
    for note in replaced_notes(config, family, preset, overrides):
        say(note)
    with RunView() as view:
        result = run_pipeline(own, view.event, view.plan, launcher=launcher, branch=branch)
    if result.error is not None:
        if result.report:
            say(f"report: {result.report}")
        say(f"run: {result.uri}")
        raise result.error
    _show_result(result)


def _show_result(result: RunResult) -> None:
    """The last thing a run prints: its main metrics with sample counts, what was reused, where the report is."""
    from stageline.cli.tables import duration, show_evaluation
    from stageline.families import family_config

    if result.evaluation is not None:
        say("")
        show_evaluation(result.evaluation, family_config(result.plan.family).words, limit=MAIN_METRICS)
    states = [event["state"] for event in result.events]
    reused = states.count("reused")
    skipped = sum(event["state"] == "skipped" and not event["item"].endswith("evaluate") for event in result.events)
    made = states.count("done")
    parts = [f"{made} made", f"{reused} reused", *([f"{skipped} not selected"] if skipped else [])]
    say("", f"{', '.join(parts)} in {duration(result.seconds)}")
    say(f"report: {result.report}")


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

    from stageline.cli.tables import show_comparison
    from stageline.families import family_words
    from stageline.verbs.compare import Bootstrap, compare_evaluations

    made = compare_evaluations(a, b, root=root, bootstrap=Bootstrap(resamples, seed), intersect=intersect)
    if as_json:
        say_block(json_text({"uri": made.uri, **made.plain}))
        return
    show_comparison(made, family_words(made.family))
    say(f"written: {made.uri}")


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
    say(build_report(run_uri))


def compile_(
    family: Annotated[str, typer.Option(help="Model family.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="YAML file; none is <family>.yaml here.", show_default=False)
    ] = None,
    with_claim: Annotated[bool, typer.Option("--pvc", help="The variant whose store is a claim, not S3.")] = False,
    claim: Annotated[str, typer.Option(help="Default of its parameter `claim`; implies --pvc.")] = "",
    image: Annotated[str, typer.Option(help="Default of the launcher image, best as name@sha256:….")] = "",
    branch: BranchName = "",
) -> None:
    """Compile a family's pipeline for a KFP backend."""
    from stageline.families import family_config
    from stageline.pipeline.compiled import compile_pipeline, pipeline_name

    family_config(family)
    variant = claim if claim or with_claim else None
    target = output or Path(f"{pipeline_name(family, branch, with_claim=variant is not None)}.yaml")
    compile_pipeline(family, target, claim=variant, image=image, branch=branch)
    say(target)
