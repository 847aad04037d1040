"""A stage as a job: a value that says what to start, its rendering as a command line, and the verdict on its end.

torchrun ends in 1 whatever its ranks did, so the verdict goes by the ranks' own failure records: a fault of one rank
(1-127, "fix it") comes before the peers it took along (128-255, "try again"); `telemetry.read_failure` picks it.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stageline.errors import EXIT_FAULT, EXIT_INTERRUPTED
from stageline.telemetry import FAILURE_DIR_VARIABLE


@dataclass(frozen=True)
class Job:
    """One stage as something to start.

    name: `<run>-<stage>`, at most 63 characters.  arguments: after `python -m stageline`.
    processes: ranks; torchrun starts more than one.  environment: added to the starter's own.
    shutdown_timeout_seconds: how long ranks may take to finish their step and commit after SIGTERM.
    """

    name: str
    arguments: tuple[str, ...]
    processes: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    shutdown_timeout_seconds: int = 120


@dataclass(frozen=True)
class Verdict:
    """How a job ended. exit_code 0 is success; record is the deciding rank's own failure record, if it left one."""

    exit_code: int
    record: Mapping[str, Any] | None = None

    @property
    def is_interruption(self) -> bool:
        """Stopped on request or by a lost peer: starting it again continues it."""
        return self.exit_code >= 128


def job_name(run: str, stage: str) -> str:
    """`<run>-<stage>`, DNS-safe; the same for the same run and stage, so that starting twice is one job."""
    name = f"{run}-{stage}".replace("_", "-").lower()
    assert len(name) <= 63, f"job name {name!r} is longer than 63 characters"
    return name


def render_command(job: Job, python: str) -> list[str]:
    """The command line of a job on one machine. python: the interpreter to start."""
    if job.processes == 1:
        return [python, "-m", "stageline", *job.arguments]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.processes}", "--max-restarts=0"]
    return [python, *torchrun, "-m", "stageline", *job.arguments]


def render_environment(job: Job, failure_dir: str) -> dict[str, str]:
    """What the job's environment has on top of its starter's.

    The shutdown timeout goes by environment: torch versions without the option ignore it, and a flag would end them.
    """
    return {
        "PYTHONUNBUFFERED": "1",
        "PET_SHUTDOWN_TIMEOUT": str(job.shutdown_timeout_seconds),
        "PET_MAX_RESTARTS": "0",
        FAILURE_DIR_VARIABLE: failure_dir,
        **job.environment,
    }


def judge(returncode: int, record: Mapping[str, Any] | None, *, cancelled: bool) -> Verdict:
    """The verdict on a job that ended with `returncode` (negative: killed by that signal).

    record: the first cause among the ranks' records. A job that ends in 0 has succeeded whatever it noted on the way.
    """
    if returncode == 0:
        return Verdict(0)
    if record is not None:
        return Verdict(int(record.get("exit_code") or EXIT_FAULT), record)
    if cancelled:
        return Verdict(EXIT_INTERRUPTED)
    if returncode < 0:
        return Verdict(128 - returncode, _killed(-returncode))
    return Verdict(returncode)


def _killed(signum: int) -> dict[str, Any]:
    name = signal.Signals(signum).name if signum in {s.value for s in signal.Signals} else str(signum)
    memory = (
        "the kernel ends processes so when memory runs out: lower trainer.batch_size, or look into the kernel's log"
    )
    return {
        "kind": "killed",
        "code": "",
        "sentence": f"the process was killed by signal {signum} ({name})",
        "remedy": memory if signum == signal.SIGKILL else "start it again to continue from the last checkpoint",
        "exit_code": 128 + signum,
    }
