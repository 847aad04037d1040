"""A stage as a job: a value that says what to start, its rendering as a command line, and the verdict on its end.

The same value becomes pods in `jobs/cluster/render/pytorchjob.py`.

torchrun ends in 1 whatever its ranks did, so the verdict goes by the ranks' own failure records: a fault of one rank
(1-127, "fix it") comes before the peers it took along (128-255, "try again"); `telemetry.read_failure` picks it.
"""

from __future__ import annotations

import hashlib
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stageline.errors import EXIT_INTERRUPTED, InterruptedRunError, StagelineError, StepFailedError
from stageline.jobs.environment import meeting_here
from stageline.telemetry import FailureRecord
from stageline.work.record import EVALUATE_ITEM, PREPARE_ITEM

__all__ = ["EVALUATE_ITEM", "PREPARE_ITEM", "Job", "Verdict", "job_name", "judge", "render_command"]

LONGEST_NAME = 52
"""Characters of a job's name, so that `<name>-worker-999` fits into the 63 of a pod's host name."""
_HASH_CHARACTERS = 8
_PLAIN_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True)
class Job:
    """One verb of the command line as something to start, here or on a cluster.

    name: of `job_name`; the same for the same run, item and variant.
    arguments: a stageline verb and its options, without `-c`: ("train", "film", "--data=<reference>").
    config: the run's raw config, plain JSON data; whoever starts the job hands it over as a file. Empty: no `-c`.
    run, item, variant: what the job is for; item is `prepare_data`, a stage, or `evaluate`.
    fingerprint: what its result depends on; never an operational setting.
    nodes, processes: machines (pods), and ranks on each; one machine starts all of them itself.
    environment: added to the starter's own.
    shutdown_timeout_seconds: how long ranks may take to finish their step and commit after SIGTERM.
    """

    name: str
    arguments: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    run: str = ""
    item: str = ""
    family: str = ""
    variant: str = ""
    fingerprint: str = ""
    nodes: int = 1
    processes: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    shutdown_timeout_seconds: int = 120

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.processes


@dataclass(frozen=True)
class Verdict:
    """How a job ended.

    exit_code: 0 is success.
    record: of the rank or pod that decided, None where none left one.
    """

    exit_code: int
    record: FailureRecord | None = None

    @classmethod
    def of(cls, failure: FailureRecord | BaseException) -> Verdict:
        """The verdict on a job that ended with a failure. failure: its record, or the error that ended it here."""
        record = failure if isinstance(failure, FailureRecord) else FailureRecord.of(failure)
        return cls(record.exit_code, record)

    def error(self, name: str, last_line: str = "") -> StagelineError:
        """The error to raise for a job that did not succeed, in its own words where it left a record.

        name: of the job.
        last_line: the last one it printed, told where there is no record.
        """
        if self.record is not None:
            return replace(self.record, exit_code=self.exit_code).error()
        if self.exit_code == EXIT_INTERRUPTED:
            return InterruptedRunError(f"{name} was stopped", remedy="run again to continue")
        last = f"; its last line: {last_line}" if last_line else ""
        return StepFailedError(f"{name} ended with exit code {self.exit_code}{last}", exit_code=self.exit_code)


def job_name(run: str, item: str, variant: str = "") -> str:
    """`<run>-<item>[-<variant>]` as a DNS-1035 label of at most 52 characters; a function of the three alone.

    Two different triples have different names: where the plain join could be read in another way, is too long, or
    holds what DNS does not allow, a hash of the triple ends it. `octa-film`, `octa-prepare-data` stay as they are.
    """
    text = re.sub(r"[^a-z0-9]+", "-", "-".join(filter(None, (run, item, variant))).lower()).strip("-")
    if not variant and len(text) <= LONGEST_NAME and _PLAIN_NAME.fullmatch(text) and _read_name(text) == (run, item):
        return text
    full = "\0".join((run, item, variant))
    tail = hashlib.sha256(full.encode()).hexdigest()[:_HASH_CHARACTERS]
    head = text if text[:1].isalpha() else f"r{text}"
    return f"{head[: LONGEST_NAME - _HASH_CHARACTERS - 1].rstrip('-')}-{tail}"


def _read_name(text: str) -> tuple[str, str]:
    """(run, item) as a plain name is read: preparation by its two words, everything else by the last one."""
    preparation = "-" + PREPARE_ITEM.replace("_", "-")
    if text.endswith(preparation):
        return text.removesuffix(preparation), PREPARE_ITEM
    run, _, item = text.rpartition("-")
    return run, item


def render_command(job: Job, python: str) -> list[str]:
    """The command line of a job on one machine. python: the interpreter to start."""
    ranks = job.world_size
    if ranks == 1:
        return [python, "-m", "stageline", *job.arguments]
    torchrun = ["-m", "torch.distributed.run", *meeting_here(job.name), f"--nproc-per-node={ranks}", "--max-restarts=0"]
    return [python, *torchrun, "-m", "stageline", *job.arguments]


def judge(returncode: int, record: FailureRecord | None, *, cancelled: bool) -> Verdict:
    """The verdict on a job on this machine. One that ends in 0 has succeeded whatever it noted on the way.

    returncode: of its process; negative: killed by that signal.
    record: the first cause among the ranks' records.
    cancelled: whether it was asked to stop from here.
    """
    if returncode == 0:
        return Verdict(0)
    if record is not None:
        return Verdict.of(record)
    if cancelled:
        return Verdict(EXIT_INTERRUPTED)
    if returncode < 0:
        return Verdict.of(_killed(-returncode))
    return Verdict(returncode)


def _killed(signum: int) -> FailureRecord:
    name = signal.Signals(signum).name if signum in {s.value for s in signal.Signals} else str(signum)
    memory = (
        "the kernel ends processes so when memory runs out: lower trainer.batch_size, or look into the kernel's log"
    )
    remedy = memory if signum == signal.SIGKILL else "start it again to continue from the last checkpoint"
    return FailureRecord("killed", f"the process was killed by signal {signum} ({name})", remedy, 128 + signum)
