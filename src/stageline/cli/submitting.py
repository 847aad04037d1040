"""`stageline pipeline submit`: plan, submit to a Kubeflow Pipelines backend, follow, tell the truth at the end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from stageline.cli.configuration import BranchName, ConfigFile, FamilyName, Overrides, PresetName, read_config
from stageline.printing import quoted_block, say

if TYPE_CHECKING:
    from stageline.pipeline.submission import Submission


def submit(
    overrides: Overrides = None,
    config: ConfigFile = None,
    family: FamilyName = None,
    preset: PresetName = None,
    endpoint: Annotated[
        str, typer.Option(help="URL of the KFP API; empty takes $KF_PIPELINES_ENDPOINT.", show_default=False)
    ] = "",
    namespace: Annotated[str, typer.Option(help="Profile of a multi-user backend.", show_default=False)] = "",
    experiment: Annotated[str, typer.Option(help="Made if there is none.")] = "stageline",
    service_account: Annotated[
        str, typer.Option(help="Of the pipeline's steps; empty takes the chart's.", show_default=False)
    ] = "",
    launcher_image: Annotated[
        str, typer.Option(help="Of the steps, best as name@sha256:…; empty takes the chart's.", show_default=False)
    ] = "",
    token: Annotated[
        str, typer.Option(envvar="STAGELINE_KFP_TOKEN", help="Bearer token, where kfp finds none.", show_default=False)
    ] = "",
    branch: BranchName = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show plan and parameters; submit nothing.")] = False,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Follow the run to its end.")] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Submit a family's pipeline to Kubeflow Pipelines after showing the plan, and follow it; stages are PyTorchJobs.

    Ctrl-C once asks the backend to terminate the run; twice leaves it running. The exit code is the failed step's own.
    """
    from stageline.jobs.defaults import ACCOUNT_KEY, KEY, parse_defaults
    from stageline.pipeline.submission import SERVICE_ACCOUNT, make_submission, namespace_map

    own = read_config(config, family, preset, overrides)
    found = namespace_map(own, say)
    defaults = parse_defaults(found.get(KEY, ""), f"ConfigMap {own.cluster.defaults!r}")
    submission = make_submission(own, launcher_image or found.get("launcher_image", ""), defaults, branch)
    _show_plan(submission)
    if dry_run:
        say("", f"would submit {submission.pipeline} with")
        for name, value in submission.arguments.items():
            say(f"  {name}={value}")
        return
    from stageline.checkpoint.usercode import keep_code, named_code, with_code_of
    from stageline.pipeline.backend import Backend
    from stageline.pipeline.submission import SubmittedRun, reach_store

    backend = Backend.connect(endpoint, namespace, token)
    if not yes and sys.stdin.isatty():
        typer.confirm(f"submit run {own.run!r} to {backend.endpoint}?", abort=True)
    if named_code(own):
        reach_store(submission.config)
        keep_code(with_code_of(submission.config, own))
    run_id = backend.submit(
        submission.pipeline,
        submission.arguments,
        name=submission.config.run,
        experiment=experiment,
        service_account=service_account or found.get(ACCOUNT_KEY) or SERVICE_ACCOUNT,
    )
    say(f"submitted as KFP run {run_id} (experiment {experiment!r})")
    if not follow:
        return
    error = SubmittedRun(backend, run_id, submission, say).follow()
    where = f"{submission.config.root.rstrip('/')}/runs/{submission.config.run}"
    if error is not None:
        say(f"run: {where}")
        raise error
    say(f"report: {where}/report.html")


def _show_plan(submission: Submission) -> None:
    """The plan where the store can be reached from here; PlanError where it is blocked."""
    from stageline.cli.tables import show_plan
    from stageline.errors import StagelineError
    from stageline.pipeline.submission import plan_from_here
    from stageline.plan import blocked_error

    try:
        plan = plan_from_here(submission.config)
    except StagelineError as error:
        told = quoted_block(f"no plan from here: {error.message}")
        say(*told, "  the pipeline's first step makes it, and ends there if blocked")
        return
    show_plan(plan)
    if plan.blocked:
        raise blocked_error(plan)
    for note in submission.config.cluster.notes:
        say(f"note: {note}")
