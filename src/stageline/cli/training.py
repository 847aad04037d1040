"""Commands around one stage: init, plan, prepare, train, evaluate, predict, schema."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stageline.cli.configuration import (
    AsJson,
    ConfigFile,
    FamilyName,
    Overrides,
    PresetName,
    WithPresets,
    read_config,
    replaced_notes,
    split_overrides,
)
from stageline.errors import ConfigError
from stageline.printing import json_text, say, say_block

if TYPE_CHECKING:
    from stageline.config import RunConfig
    from stageline.plan import Plan
    from stageline.signals import CaughtSignals

DataReference = Annotated[
    str | None, typer.Option("--data", help="Reference of prepared data; none prepares them.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(cls=WithPresets)(init)
    for function in (plan, prepare, train, evaluate, predict, schema):
        app.command()(function)


def init(
    family: Annotated[
        str | None, typer.Option(help="Model family; with --data that of picture folders.", show_default=False)
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="A preset of the family; none is `tiny`, with --data its own.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of your own pictures: the config is made for them.", show_default=False
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path("stageline.yaml"),
) -> None:
    """Write a commented starter config, of a preset or for a folder of your own pictures."""
    from stageline.cli.starter import starter_config, starter_yaml
    from stageline.errors import ConfigError

    if output.exists():
        raise ConfigError(f"{str(output)!r} exists and is left alone", remedy="name another file with -o")
    config, origin, told = starter_config(family, preset, data)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(starter_yaml(config, origin), encoding="utf-8")
    for line in told:
        say(line)
    say(f"wrote {output}; next: stageline plan -c {output}")


def plan(
    overrides: Overrides = None,
    config: ConfigFile = None,
    family: FamilyName = None,
    preset: PresetName = None,
    as_json: AsJson = False,
    count: Annotated[bool, typer.Option("--count", help="Count parameters: builds the models, loads torch.")] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Also compare the jobs that would be submitted with those that are there.")
    ] = False,
) -> None:
    """Show what a run would do, and why. Writes nothing."""
    from dataclasses import replace

    from stageline.cli.jobs import compare_jobs, placed_config, show_comparison
    from stageline.cli.tables import show_notes, show_plan
    from stageline.errors import PlanError
    from stageline.plan import make_plan

    own = read_config(config, family, preset, overrides)
    if cluster:
        own = placed_config(own)
    made = make_plan(own)
    made = replace(made, notes=(*made.notes, *replaced_notes(config, family, preset, overrides)))
    if count:
        made = _counted(own, made)
    jobs = compare_jobs(own) if cluster else None
    if as_json:
        say_block(json_text(made.to_json() | ({} if jobs is None else {"jobs": jobs})))
    else:
        show_plan(made)
        show_notes(made)
        show_comparison(jobs or ())
    if made.blocked:
        raise typer.Exit(PlanError.exit_code)


def _counted(config: RunConfig, made: Plan) -> Plan:
    """The plan with parameter counts of models built on the meta device, which holds no memory."""
    from dataclasses import replace

    from stageline.families import family_config, load_family
    from stageline.layers.shapes_only import shapes_only
    from stageline.stage import stage_config

    family, record = family_config(config.family), load_family(config.family)
    items = []
    for item in made.items:
        if item.kind == "stage" and item.action not in ("not selected", "blocked"):
            stage = family.stages[item.name]
            own = stage_config(config, stage)
            with shapes_only():
                model = record.build_model(own, stage)
            sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
            trains = family.trains(own, stage)
            trained = sum(size for name, size in sizes.items() if trains.matches(name))
            item = replace(item, parameters={"trained": trained, "total": sum(sizes.values())})
        items.append(item)
    return replace(made, items=tuple(items))


def prepare(
    overrides: Overrides = None, config: ConfigFile = None, family: FamilyName = None, preset: PresetName = None
) -> None:
    """Prepare the data of a config and lock the weights of others, or reuse them; prints the data's reference."""
    from stageline.verbs.prepare import prepare_data
    from stageline.work.externals import describe_externals

    own = read_config(config, family, preset, overrides)
    with ending_on_signals():
        made = prepare_data(own, _progress)
    for line in describe_externals(own):
        say(line, error=True)
    word = "reused" if made.reused else "prepared"
    say(f"{word} {made.num_files} files, {made.num_bytes} bytes", error=True)
    say(made.reference)


def train(
    stage: Annotated[str, typer.Argument(help="Name of the stage.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    family: FamilyName = None,
    preset: PresetName = None,
    data: DataReference = None,
    parent: Annotated[
        list[str] | None,
        typer.Option(help="role=checkpoint to start from; `role=` starts without it.", show_default=False),
    ] = None,
) -> None:
    """Train one stage to its end, or continue it; a finished one is reused."""
    from stageline.checkpoint.layout import name_typed
    from stageline.families import family_config
    from stageline.stage import stage_config
    from stageline.work.given import parse_pairs

    own = read_config(config, family, preset, overrides)
    declared = family_config(own.family).stages[stage]
    pairs = None if parent is None else parse_pairs(parent)
    parents = pairs and {role: name and name_typed(name, own.root) for role, name in pairs.items()}
    trainer = stage_config(own, declared).trainer
    if trainer.world_size > 1 and "LOCAL_RANK" not in os.environ:
        _train_as_job(own, stage, data, parents)
        return
    from stageline.jobs.processes import die_with_parent

    if "LOCAL_RANK" in os.environ:  # torchrun starts ranks in sessions of their own: they would outlive it
        die_with_parent()
    from stageline.jobs.environment import job_words
    from stageline.verbs.prepare import prepare_data
    from stageline.verbs.train import train_stage

    reference = data or str(prepare_data(own, _progress).reference)
    result = train_stage(own, stage, data=reference, parents=parents, job=job_words(os.environ))
    if os.environ.get("RANK", "0") == "0":
        words = {"reuse": "reused", "run": "trained", "continue": "continued"}[result.action]
        say(f"{stage}: {words}, step {result.step} of {result.steps}")
        say(result.reference)


def _train_as_job(config: RunConfig, stage: str, data: str | None, parents: dict[str, str] | None) -> None:
    """Several processes: start them with torchrun and follow."""
    from stageline.jobs.local import start_job
    from stageline.pipeline.body import cancellable
    from stageline.pipeline.item_job import run_job
    from stageline.pipeline.items import work_job
    from stageline.verbs.prepare import prepare_data
    from stageline.work.decision import decide_stage
    from stageline.work.given import Given
    from stageline.work.work import refuse_blocked, refuse_undecided

    with cancellable(stage) as body:
        reference = data or str(prepare_data(config, _progress).reference)
        work = decide_stage(config, stage, given=Given(reference, parents))
        refuse_blocked(work)
        refuse_undecided(work)
        job = work_job(config, work)
        run_job(body, job.name, lambda: start_job(job))


def evaluate(
    overrides: Overrides = None,
    config: ConfigFile = None,
    family: FamilyName = None,
    preset: PresetName = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="Checkpoint; none takes the run's last stage.", show_default=False),
    ] = None,
    data: DataReference = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the reference only.")] = False,
) -> None:
    """Measure a checkpoint, or reuse its evaluation; prints metrics with their sample counts."""

    from stageline.checkpoint.layout import name_typed
    from stageline.cli.tables import show_evaluation
    from stageline.families import family_config
    from stageline.verbs.evaluate.evaluation import evaluate_checkpoint, named_checkpoints
    from stageline.verbs.prepare import prepare_data

    own = read_config(config, family, preset, overrides)
    with ending_on_signals("run again to continue: finished rows are kept"):
        typed = checkpoint and name_typed(checkpoint, own.root)
        named = named_checkpoints(own, typed, data or "")  # before any data are made for it
        reference = data or str(prepare_data(own, _progress).reference)
        record = evaluate_checkpoint(own, named, reference, _progress)
    if quiet:
        say(record.reference)
        return
    if as_json:
        say_block(json_text({"reference": str(record.reference), **record.plain}))
        return
    show_evaluation(record, family_config(own.family).words)
    for note in record.plain.get("notes", ()):
        say(f"note: {note}")
    say(f"{'reused' if record.reused else 'written'}: {record.reference.uri}/metrics.json")


def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[INPUT]... [KEY=VALUE]...", help="Inputs and settings.", show_default=False),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            help="Step or stage directory, or a pointer file; none takes the first INPUT for it.",
            show_default=False,
        ),
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option("--id", help="Row of an evaluation that is predicted again, bit for bit.", show_default=False),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option("--evaluation", help="Whose rows --id means, where there are several.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")] = Path("predictions"),
) -> None:
    """Predict with a checkpoint: inputs (files, folders, as the family says), or rows of an evaluation by their ids."""
    named, overrides = split_overrides(inputs or [])
    if checkpoint is None:
        if not named:
            raise ConfigError("no checkpoint is named", remedy="say --checkpoint, or name it first")
        checkpoint, *named = named
    if bool(named) == bool(ids):
        both = f"inputs ({', '.join(named)}) and --id are given" if named else "there is nothing to predict"
        raise ConfigError(both, remedy="give inputs, or rows of an evaluation with --id")
    if evaluation is not None and not ids:
        raise ConfigError("--evaluation says whose rows --id means, and there is no --id", remedy="leave it out")
    from stageline.checkpoint.layout import name_typed, resolve_named

    uri = str(resolve_named(name_typed(checkpoint, "."), ".").reference)  # no config says of another root
    with ending_on_signals():
        if ids:
            from stageline.verbs.repeat import repeat_rows

            results = repeat_rows(
                uri, ids, overrides, evaluation=evaluation, target=output, run_code=True, progress=_progress
            )
        else:
            from stageline.verbs.predict import load

            results = load(uri, overrides, run_code=True).predict(named, output, _progress)
    for result in results:
        say("  ".join(f"{key} {value}" for key, value in result.items()))
    say(f"{len(results)} {'result' if len(results) == 1 else 'results'} in {output}")


def schema(
    family: Annotated[str, typer.Option(help="Model family.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File; none prints.", show_default=False)
    ] = None,
) -> None:
    """Print the JSON schema of a family's config, for editors."""

    from stageline.config import json_schema
    from stageline.families import family_config

    text = json_text(json_schema(family_config(family).config))
    if output is None:
        say_block(text)
    else:
        output.write_text(text + "\n", encoding="utf-8")


def _progress(done: int, total: int, what: str) -> None:
    """A few lines per item of work, whatever its length."""
    if total and (done == total or done % max(1, total // 4) == 0):
        say(f"{what} {done}/{total}", error=True)


def ending_on_signals(remedy: str = "run again; nothing half-made is kept") -> CaughtSignals:
    """SIGTERM and Ctrl-C as an exception, so that temporary folders are removed on the way out."""
    import signal

    from stageline.errors import CtrlCError, InterruptedRunError
    from stageline.signals import CaughtSignals, signal_word
    from stageline.telemetry import asked_by

    def stop(number: int) -> None:
        kind = CtrlCError if number == signal.SIGINT else InterruptedRunError
        raise kind(f"stopped by {asked_by(signal_word(number))}", remedy=remedy)

    return CaughtSignals(stop, (signal.SIGTERM, signal.SIGINT))
