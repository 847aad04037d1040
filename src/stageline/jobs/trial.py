"""A trial of an installation: one small job, from its creation by this account to a verified checkpoint.

The job's pod does the work (`pod/trial`) on its own disk, so neither storage nor a config is needed. `helm
test` calls it through `stageline trial`.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from stageline.errors import InterruptedRunError, StagelineError
from stageline.jobs.cluster.follow.adoption import outcome
from stageline.jobs.job import Job, job_name
from stageline.kube.keys import JOBS
from stageline.signals import CaughtSignals, signal_word

if TYPE_CHECKING:
    from stageline.config import ClusterConfig
    from stageline.jobs.cluster.follow.launcher import ClusterJob

RUN = "stageline-trial"


class TrialResult:
    """A trial leaves nothing in a store: its result is that its pod, which checks the checkpoint, ended with 0."""

    def __init__(self) -> None:
        self.started: ClusterJob | None = None

    def finished(self) -> bool:
        """Whether the job that was started here succeeded; one of an earlier trial is none."""
        if self.started is None:
            return False
        return outcome(self.started.api.get(JOBS, self.started.job.name)) == "Succeeded"

    def progress(self) -> int:
        """No step is ever committed where others could see it."""
        return -1


def trial_job(family: str, stage: str, image: str) -> Job:
    """The job. Two trials of one family, stage and image are the same job, which the second one follows too."""
    return Job(
        name=job_name(RUN, stage),
        arguments=("trial", stage, f"--family={family}"),
        run=RUN,
        item=stage,
        family=family,
        fingerprint=hashlib.sha256(f"{family}\0{stage}\0{image}".encode()).hexdigest(),
        shutdown_timeout_seconds=10,
    )


def run_trial(
    cluster: ClusterConfig, family: str, stage: str, say: Callable[[str], None], on_line: Callable[[str], None]
) -> None:
    """Start the job, follow it to its end, and delete it if all went well; what failed stays to be looked at.

    cluster: where it runs.
    family, stage: what is trained, after the stage's parents.
    say: told what happens to the job.
    on_line: told what its pod prints.
    Raises StepFailedError with the pod's own sentence, or what kept the job from being made.
    """
    from stageline.jobs.cluster.follow.launcher import start_on_cluster

    result = TrialResult()
    made: list[ClusterJob] = []
    with _cancelled_by_signals(made):
        result.started = started = start_on_cluster(
            trial_job(family, stage, cluster.image), cluster, result, say, announce=made.append
        )
        verdict = started.follow(on_line)
    if verdict.exit_code:
        raise verdict.error(started.job.name)
    with suppress(StagelineError):
        started.api.delete(JOBS, started.job.name, uid=started.live["metadata"]["uid"])


def _cancelled_by_signals(made: list[ClusterJob]) -> CaughtSignals:
    """Ctrl-C and SIGTERM delete the job instead of leaving it behind."""

    def stop(number: int) -> None:
        if not made:
            raise InterruptedRunError(f"stopped by {signal_word(number)} before there was a job")
        made[0].cancel(signal_word(number))

    return CaughtSignals(stop, (signal.SIGINT, signal.SIGTERM))
