"""A whole run on this machine: claim, plan, pipeline, and how it went. Ends everything it started, whatever happens."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stageline.build import image_reference
from stageline.checkpoint.identity import claim_run
from stageline.checkpoint.layout import StageDir
from stageline.checkpoint.lease import StageLease
from stageline.config import RunConfig
from stageline.errors import InterruptedRunError, PlanError, StagelineError, StepFailedError
from stageline.families import family_config
from stageline.jobs.environment import without_ranks
from stageline.jobs.local import KILL_AFTER_SECONDS
from stageline.jobs.placement import check_on_cluster
from stageline.jobs.processes import adopt_orphans, bounded_lines, die_with_parent, kill_marked
from stageline.jobs.step_lines import DRIVER_VARIABLE, FOLLOWED_VARIABLE, event_lines, parse_event
from stageline.pipeline.compiled import compiled_pipeline
from stageline.plan import PLAN, Plan, blocked_error, make_plan, plan_branch
from stageline.printing import one_line, without_colours
from stageline.signals import REPEAT_SECONDS, CaughtSignals, signal_word
from stageline.store import Store, open_store
from stageline.store.scratch import scratch_folder
from stageline.telemetry import (
    FAILURE_DIR_VARIABLE,
    EventLog,
    clear_failures,
    note_asked,
    read_failure,
    redact,
    write_failure,
)
from stageline.work.evaluations import EvaluationRecord, find_evaluation
from stageline.work.work import stage_places

FAILURES = "failures"
LOG_LINES = 2000
"""Last lines of the pipeline's raw output kept as `pipeline/log.txt`."""

OnEvent = Callable[[Mapping[str, Any]], None]
"""Gets {"item", "state", "text", "seconds"} for what happens and {"item", "line"} for what a step prints."""


@dataclass(frozen=True)
class RunResult:
    """How a run went. events: what its steps said.  error: None where every step succeeded."""

    plan: Plan
    uri: str
    report: str
    seconds: float
    events: tuple[Mapping[str, Any], ...]
    evaluation: EvaluationRecord | None = None
    error: StagelineError | None = None


@dataclass
class _RunningPipeline:
    """What the driver knows while the pipeline runs."""

    process: subprocess.Popen[str]
    log: EventLog
    grace_seconds: float
    failures: Path
    stop_requests: int = 0
    asked: str = ""
    raw: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    events: list[Mapping[str, Any]] = field(default_factory=list)

    def stop(self, number: int) -> None:
        """First request: the running step commits and ends. Second: everything ends now."""
        self.stop_requests += 1
        if self.stop_requests > 1:
            self.end()
            return
        self.asked = signal_word(number)
        note_asked(self.failures, self.asked)
        if self.process.returncode is not None:  # collected: the number may be another's
            return
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
        except ProcessLookupError:
            return
        killer = threading.Timer(self.grace_seconds, self.end)
        killer.daemon = True
        killer.start()

    def end(self) -> None:
        """SIGKILL everything the run started."""
        kill_marked(f"{DRIVER_VARIABLE}={os.getpid()}", spare=self.process.pid)


def local_config(config: RunConfig) -> RunConfig:
    """The config with its root made absolute and root and run written out, as the steps need it.

    PlanError for a root that lives inside one process.
    """
    root = open_store(config.root)
    if root.in_process:
        raise PlanError(
            f"{root.uri} lives inside one process, and every step of a pipeline is its own",
            remedy="set root to a folder, s3:// or gs://",
        )
    return config.model_copy(update={"root": root.uri, "run": config.run, "family": config.family})


def run_pipeline(
    config: RunConfig,
    on_event: OnEvent,
    on_plan: Callable[[Plan], None],
    command: str = "",
    launcher: str = "local",
    branch: str = "",
) -> RunResult:
    """Run a config's pipeline to its end; the result carries the error of the step that failed.

    launcher: what stages run as: processes beside the pipeline, or `pytorchjob`.
    branch: of the family, another run that is made too and compared with this one; "" for none.
    Raises PlanError where a plan is blocked, before anything is written.
    """
    begin = time.monotonic()
    config = local_config(config)
    if launcher != "local":
        check_on_cluster(config)
    if branch:
        plan_branch(config, branch)  # what is wrong with it is told before its pipeline is looked for
    pipeline = compiled_pipeline(config.family, branch=branch)
    with _host() as (process, scratch):  # loads kfp while we plan
        plan = make_plan(config)
        on_plan(plan)
        if plan.blocked:
            raise blocked_error(plan)
        if branch:
            _tell_branch(config, branch, on_event)
        with _claimed(config, plan, command) as run:
            local = run.local
            text = config.model_dump_json(exclude_unset=True, by_alias=True)
            request = {
                "pipeline": str(pipeline),
                "arguments": {"config": text, "launcher": launcher},
                "pipeline_root": str(scratch / "steps" if local is None else local.checked("pipeline/steps")),
            }
            grace = config.trainer.shutdown_timeout_seconds + 2 * KILL_AFTER_SECONDS
            running = _RunningPipeline(process, EventLog(run), grace, scratch / FAILURES)
            with CaughtSignals(
                running.stop, repeat_seconds=REPEAT_SECONDS, any_number=True, ignored_afterwards=True
            ):  # what the run leaves is written all the same; then this process ends with the run's code
                code = _follow(running, request, on_event)
                error = _error_of(code, running, scratch / FAILURES)
                run.put("pipeline/log.txt", redact("\n".join(running.raw) + "\n").encode())
                report = _leave_failure(run, error, running) if error else f"{run.uri}/report.html"
                evaluation = None if error else _evaluation_of(run, running)
    return RunResult(plan, run.uri, report, time.monotonic() - begin, tuple(running.events), evaluation, error)


def _tell_branch(config: RunConfig, branch: str, on_event: OnEvent) -> None:
    """What will become of a branch's items, where that can be told already; PlanError where it is blocked."""
    own, plan = plan_branch(config, branch)
    if plan is None:
        text = f"run {own.run}, which starts from stages of {config.run} that are trained before"
        on_event({"item": branch, "state": "planned", "text": text, "seconds": 0.0})
        return
    if plan.blocked:
        raise blocked_error(plan)
    for item in plan.items:
        text = f"{item.action}: {'; '.join(item.reasons)}"
        on_event({"item": f"{branch}.{item.name}", "state": "planned", "text": text, "seconds": 0.0})


@contextmanager
def _claimed(config: RunConfig, plan: Plan, command: str) -> Iterator[Store]:
    """The run's directory, ours alone until the end, with what is planned written down.

    PlanError if the name is another run's, BusyError while another process runs it; both before anything is changed.
    """
    root = open_store(config.root)
    stages = stage_places(config, family_config(config.family))
    claim_run(root, config, command or redact(shlex.join(sys.argv)), stages=stages, image=image_reference())
    run = root.child("runs", config.run)
    with StageLease.acquire(StageDir.at(run), f"stageline run of {config.run}"):
        clear_failures(run)
        run.put(PLAN, (json.dumps(plan.to_json(), indent=1, ensure_ascii=False) + "\n").encode())
        yield run


def _evaluation_of(run: Store, running: _RunningPipeline) -> EvaluationRecord | None:
    """What the step `evaluate` handed on in this run."""
    for event in running.events:
        if event["item"] == "evaluate" and event.get("reference"):
            return find_evaluation(run, str(event["reference"]).partition("@sha256:")[0].rsplit("/", 1)[-1])
    return None


def _follow(running: _RunningPipeline, request: Mapping[str, Any], on_event: OnEvent) -> int:
    """Hand the host its request and follow it to its end; returns its exit code."""
    process = running.process
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        for line in bounded_lines(process.stdout):
            _take_line(running, line, on_event)
        return process.wait()
    finally:
        running.end()
        running.log.close()


@contextmanager
def _host() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """(the process that will run the pipeline, a scratch folder); at the end neither is left."""
    adopt_orphans()
    with scratch_folder("run") as scratch:
        process = _start_host(scratch)
        try:
            yield process, scratch
        finally:
            kill_marked(f"{DRIVER_VARIABLE}={os.getpid()}", spare=process.pid)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
            process.wait()


def _start_host(scratch: Path) -> subprocess.Popen[str]:
    """Start the host; temporary files of everything it starts lie in the run's scratch folder."""
    temporary = scratch / "tmp"
    temporary.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "stageline.pipeline.host"],
        env={
            **without_ranks(os.environ),
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(temporary),
            FOLLOWED_VARIABLE: "1",
            DRIVER_VARIABLE: str(os.getpid()),
            FAILURE_DIR_VARIABLE: str(scratch / FAILURES),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        bufsize=1,
        process_group=0,
        preexec_fn=die_with_parent,
    )


def _take_line(running: _RunningPipeline, line: str, on_event: OnEvent) -> None:
    """Pass on what our steps say; keep the rest, which is the pipeline software's own, for the log."""
    event = parse_event(line)
    running.raw.extend([one_line(without_colours(line))] if event is None else event_lines(event))
    if event is None:
        return
    if "line" not in event:
        running.events.append(event)
        fields = {key: event[key] for key in ("item", "state", "text", "seconds")}
        running.log.emit("step", **fields)
    on_event(event)


def _error_of(code: int, running: _RunningPipeline, failures: Path) -> StagelineError | None:
    """The error of the run: the failed step's own record, an interruption, or what kfp printed last."""
    record = read_failure(failures) if failures.is_dir() else None
    failed = next((event for event in reversed(running.events) if event["state"] in ("failed", "stopped")), None)
    stopped = record.is_interruption if record else code != 0
    if running.stop_requests and stopped:
        return InterruptedRunError(
            f"the run was stopped by {running.asked}; what was committed is kept",
            remedy="run the same command again to continue",
        )
    if code == 0:
        return None
    if record:
        where = f"{failed['item']}: " if failed else ""
        return record.error(where)
    tail = "\n".join(f"  {line}" for line in list(running.raw)[-15:] if line.strip())
    return StepFailedError(f"the pipeline failed before a step could say why; its last lines:\n{tail}", exit_code=1)


def _leave_failure(run: Store, error: StagelineError, running: _RunningPipeline) -> str:
    """Record and report of a failed run; returns where the report lies. The run's own error stays the one told."""
    from stageline.verbs.report import build_report

    write_failure(run, error, log_tail=running.raw)
    try:
        return str(build_report(run.uri))
    except StagelineError as second:
        error.add_note(f"the report could not be written: {second.message}")
        return ""
