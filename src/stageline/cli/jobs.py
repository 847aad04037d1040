"""Commands around one job on a cluster: job render, submit, logs, cancel, list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stageline.cli.configuration import AsJson, ConfigFile, FamilyName, Overrides, PresetName, read_config
from stageline.printing import json_text, say, say_block

if TYPE_CHECKING:
    from stageline.config import RunConfig
    from stageline.jobs.cluster.follow.launcher import ClusterJob
    from stageline.pipeline.items import Prospect

Namespace = Annotated[
    str, typer.Option("-n", "--namespace", help="Of the jobs; empty takes the context's, or the pod's own.")
]
Context = Annotated[str, typer.Option("--context", help="Of the kubeconfig; empty takes its current one.")]
Item = Annotated[str, typer.Argument(metavar="STAGE", help="A stage, prepare_data or evaluate.")]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Name of the job, as `stageline job list` shows it.")]


def register(app: typer.Typer) -> None:
    """Add the group to the application."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="One stage as a PyTorchJob on a cluster.")
    group.command("render")(render)
    group.command("submit")(submit)
    group.command("logs")(logs)
    group.command("cancel")(cancel)
    group.command("list")(list_jobs)
    app.add_typer(group, name="job")


def render(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STAGE]... [KEY=VALUE]...", help="Stages, prepare_data, evaluate; none takes stages."),
    ] = None,
    config: ConfigFile = None,
    family: FamilyName = None,
    preset: PresetName = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for one file per job; none prints.", show_default=False),
    ] = None,
) -> None:
    """Print jobs as YAML for `kubectl apply`, each behind its NetworkPolicy; asks neither cluster nor store.

    Such a job stands for itself: its pod prepares the data where they are missing and takes the parents of its run.
    Its NetworkPolicy belongs to nobody: `kubectl delete -f` takes both.
    """
    from stageline.cli.configuration import split_overrides
    from stageline.jobs.cluster.inspect.manifest import objects_yaml
    from stageline.jobs.job import EVALUATE_ITEM, PREPARE_ITEM
    from stageline.pipeline.items import free_job, item_names, place_config

    items, overrides = split_overrides(words or [])
    own = place_config(read_config(config, family, preset, overrides), {})
    for note in own.cluster.notes:
        say(f"note: {note}", error=True)
    texts = {}
    for item in items or [name for name in item_names(own) if name not in (PREPARE_ITEM, EVALUATE_ITEM)]:
        job, cluster = free_job(own, item)
        texts[item] = objects_yaml(job, cluster)
    if output is None:
        say_block("---\n".join(texts.values()).rstrip("\n"))
        return
    output.mkdir(parents=True, exist_ok=True)
    for item, text in texts.items():
        file = output / f"{item}.yaml"
        file.write_text(text, encoding="utf-8")
        say(f"wrote {file}")


def submit(
    stage: Item,
    overrides: Overrides = None,
    config: ConfigFile = None,
    family: FamilyName = None,
    preset: PresetName = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay, show its log, end with its exit code.")] = False,
) -> None:
    """Start a stage as a job on the cluster, or adopt it where it runs already; a finished one is reused.

    Data that are missing are prepared first, by a job that is followed to its end. Ctrl-C while following leaves the
    job running.
    """
    from stageline.jobs.job import PREPARE_ITEM
    from stageline.pipeline.items import DataMissingError, check_item, place_config
    from stageline.pipeline.submission import namespace_defaults

    given = read_config(config, family, preset, overrides)
    own = place_config(given, namespace_defaults(given, _say))
    check_item(own, stage)
    try:
        prospect = _prospect(own, stage)
    except DataMissingError as error:
        _say(error.message)
        _start(_prospect(own, PREPARE_ITEM), follow=True)
        prospect = _prospect(own, stage, after_prepare=True)
    for note in prospect.cluster.notes:
        _say(f"note: {note}")
    _start(prospect, follow=follow)


def _say(*lines: str) -> None:
    say(*lines, error=True)


def _prospect(config: RunConfig, item: str, *, after_prepare: bool = False) -> Prospect:
    """The job of an item: by what lies in the store, or, where this machine does not reach that, one by itself.

    after_prepare: a job has just prepared the data; what it answered is taken where the sources can't be seen.
    """
    from stageline.checkpoint.usercode import keep_code
    from stageline.errors import PlanError, StagelineError
    from stageline.jobs.cluster.follow.results import SucceededJob
    from stageline.pipeline.items import Prospect, free_job, resolved_job
    from stageline.pipeline.submission import reach_store
    from stageline.work.answers import read_answer

    try:
        root = reach_store(config)
    except PlanError:
        raise
    except StagelineError as error:
        _say(f"the store is not looked into: {error.message}; the job finds data and parents by itself")
        job, cluster = free_job(config, item)
        return Prospect(job, cluster, SucceededJob(job.name, job.fingerprint, cluster))  # type: ignore[arg-type]  # the same two questions
    answer = read_answer(root, config) if after_prepare else None
    return resolved_job(keep_code(config), item, root, answer.reference if answer else "")


def _start(prospect: Prospect, *, follow: bool) -> None:
    """Start or adopt a job; follow it or leave it to itself. Raises what it ended with."""
    from stageline.jobs.cluster.follow.launcher import start_on_cluster
    from stageline.pipeline.body import Body
    from stageline.pipeline.item_job import verdict_error

    job = prospect.job
    if prospect.reference:
        say(f"{job.item}: finished already")
        say(prospect.reference)
        return
    if prospect.why:
        _say(f"{job.item}: {prospect.why}")
    body = Body(job.item)

    def line(text: str) -> None:
        body.tail.append(text)
        say(f"{job.item} | {text}")

    started: list[ClusterJob] = []
    try:
        running = start_on_cluster(job, prospect.cluster, prospect.result, _say, announce=started.append)
        if not follow:
            running.detach()
            _say(*_hints(running))
            return
        verdict = running.follow(line)
    except KeyboardInterrupt:
        for one in started:
            one.detach()
            runs_on = ("no longer followed; the job runs on", *_hints(one))
            _say("", *(runs_on if one.live else ("nothing was submitted",)))
        raise
    if verdict.exit_code:
        raise verdict_error(body, job.name, verdict)
    _say(f"{job.name}: done")


def _hints(running: ClusterJob) -> tuple[str, str]:
    """How to go on with a job that nobody follows."""
    place = f"{running.job.name} -n {running.api.namespace}"
    return f"follow it: stageline job logs {place} --follow", f"end it:    stageline job cancel {place}"


def logs(
    job: JobName,
    namespace: Namespace = "",
    context: Context = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    since: Annotated[
        str, typer.Option(help="Lines from this time on: 2026-01-31T12:00:00Z, or 90s, 10m, 2h.", show_default=False)
    ] = "",
) -> None:
    """Print what the pods of a job wrote, every line once; with --follow until the job ends."""
    from stageline.jobs.cluster.inspect.namespace_jobs import hand_over_logs
    from stageline.kube.client import Api

    hand_over_logs(Api.connect(namespace, context), job, say, _say, since, follow=follow)


def cancel(
    jobs: Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", help="Names of jobs.")] = None,
    namespace: Namespace = "",
    context: Context = "",
    run: Annotated[
        str, typer.Option("--all-of-run", help="Every job of this run that has not ended.", show_default=False)
    ] = "",
) -> None:
    """End jobs: their pods finish the step they are in, commit and end. What is committed stays."""
    from stageline.errors import ConfigError
    from stageline.jobs.cluster.inspect.namespace_jobs import cancel_jobs
    from stageline.kube.client import Api

    if bool(jobs) == bool(run):
        raise ConfigError("cancel which jobs?", remedy="name jobs, or give --all-of-run RUN; one of the two")
    cancelled = cancel_jobs(Api.connect(namespace, context), jobs or (), run)
    for name, seconds in cancelled:
        say(f"{name}: deleted; its pods may take up to {seconds} s to commit and end")
    if not cancelled:
        say(f"run {run!r} has no job that has not ended")


def list_jobs(
    namespace: Namespace = "",
    context: Context = "",
    run: Annotated[str, typer.Option("--run", help="Only those of this run.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """The jobs of a namespace: their stages, states, pods and restarts."""

    from stageline.cli.tables import duration, show_rows
    from stageline.jobs.cluster.inspect.namespace_jobs import find_rows
    from stageline.kube.client import Api

    api = Api.connect(namespace, context)
    rows = find_rows(api, run)
    if as_json:
        say_block(json_text([row.to_json() for row in rows]))
        return
    if not rows:
        say(f"no jobs in namespace {api.namespace}")
        return
    columns = ("job", "run", "stage", "state", "pods", "restarts", "age", "fingerprint")
    cells = [
        (
            row.name,
            row.run,
            f"{row.stage}/{row.variant}" if row.variant else row.stage,
            row.state,
            f"{row.running}/{row.wanted}",
            str(row.restarts),
            duration(row.age_seconds),
            row.fingerprint[:12],
        )
        for row in rows
    ]
    show_rows(columns, cells)


def placed_config(config: RunConfig) -> RunConfig:
    """The config as pods of its namespace get it, its store reached as they reach it, or said to be out of reach."""
    from stageline.errors import StagelineError
    from stageline.pipeline.items import place_config
    from stageline.pipeline.submission import namespace_defaults, reach_store

    own = place_config(config, namespace_defaults(config, _say))
    try:
        reach_store(own)
    except StagelineError as error:
        _say(f"the store is not looked into, and what it holds not known: {error.message}")
    return own


def compare_jobs(own: RunConfig) -> list[dict[str, Any]]:
    """Per item of a placed run: the job that is there under its name, and how it differs from a new one."""
    from stageline.errors import StagelineError
    from stageline.jobs.cluster.inspect.namespace_jobs import compare_live
    from stageline.jobs.cluster.render.pytorchjob import render_job
    from stageline.kube.client import Api
    from stageline.pipeline.items import free_job, item_names, resolved_job
    from stageline.store import open_store

    answers = []
    for item in item_names(own):
        job, cluster = free_job(own, item)
        unknown = ""
        try:
            prospect = resolved_job(own, item, open_store(own.root))
            job, cluster = prospect.job, prospect.cluster
        except StagelineError as error:
            unknown = error.message
        found = compare_live(Api.connect(cluster.namespace, cluster.context), render_job(job, cluster))
        answers.append({"item": item, "job": job.name, **found, **({"inputs_unknown": unknown} if unknown else {})})
    return answers


def show_comparison(jobs: Sequence[Mapping[str, Any]]) -> None:
    """What `compare_jobs` found, a line per job and one per field that differs."""
    if jobs:
        say("", "jobs on the cluster")
    for job in jobs:
        lines = list(job["differences"])
        word = "would be submitted" if job["state"] == "absent" else job["state"]
        same = f"; {len(lines)} fields differ" if lines else "; the same" if job["state"] != "absent" else ""
        say(f"  {job['job']}: {word}{same}")
        for line in lines:
            say(f"      {line}")
        if job.get("inputs_unknown"):
            say(f"      (its inputs are not compared: {job['inputs_unknown']})")
