"""A verb as a job of its own, beside this process or on the cluster: started, followed, cancelled with its step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from stageline.config.cluster import ClusterConfig
from stageline.errors import StagelineError
from stageline.jobs.job import Job, Verdict
from stageline.jobs.local import start_job
from stageline.pipeline.body import Body

LAUNCHERS = ("local", "pytorchjob")
"""What a verb can run as: a process beside this one, or a PyTorchJob on the cluster."""


class Started(Protocol):
    """A job that runs, here or there."""

    def follow(self, on_line: Callable[[str], None]) -> Verdict: ...
    def cancel(self, asked: str = "") -> None: ...


@dataclass(frozen=True)
class StoredResult:
    """What of a job's result lies in the store.

    finished: whether its final result is committed.
    progress: its newest committed step, -1 for none.
    """

    finished: Callable[[], bool]
    progress: Callable[[], int] = lambda: -1


def run_verb(body: Body, job: Job, result: StoredResult, cluster: ClusterConfig | None) -> None:
    """Run a job to its end: here, with all its ranks on this machine, or on the cluster, in one pod per node.

    body: the step that runs it, told what happens.
    job: what to start.
    result: what lies in the store of its result.
    cluster: the section `cluster` of its item; None is here.
    Raises StepFailedError or InterruptedRunError with the job's own sentence, remedy and exit code.
    """

    def start() -> Started:
        if cluster is None:
            return start_job(job)
        from stageline.jobs.cluster.follow.launcher import start_on_cluster

        return start_on_cluster(
            job, cluster, result, lambda text: body.say("running", text), announce=lambda started: _bind(body, started)
        )

    run_job(body, job.name, start)


def run_job(body: Body, name: str, start: Callable[[], Started]) -> None:
    """Start a job, follow it and cancel it with the body; raises what it ended with."""
    try:
        started = start()
        _bind(body, started)
        if body.cancelled:
            started.cancel(body.asked)
        verdict = started.follow(body.line)
    finally:
        body.on_cancel = None
    if verdict.exit_code:
        raise verdict_error(body, name, verdict)


def _bind(body: Body, started: Started) -> None:
    body.on_cancel = started.cancel


def verdict_error(body: Body, name: str, verdict: Verdict) -> StagelineError:
    """The error of a job that did not succeed; the last lines of its log become the step's.

    body: the step that ran it.
    name: of the job.
    """
    if verdict.record is not None and verdict.record.log_tail:
        body.tail.clear()
        body.tail.extend(verdict.record.log_tail)
    last = next((line for line in reversed(body.tail) if line.strip()), "it printed nothing")
    return verdict.error(name, last)
