"""What an attempt works with, and how it runs one program: the ranks of this node, judged at their end."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stageline.errors import (
    DeadlineError,
    InterruptedRunError,
    StagelineError,
    StoreUnavailableError,
)
from stageline.jobs.environment import LOOPBACK, RENDEZVOUS_VARIABLE, Meeting, rank_environment
from stageline.pod.finished import find_finished
from stageline.pod.memory import count_oom_kills
from stageline.pod.program import Program, ProgramEnd, watch
from stageline.pod.rank import RANK_PREFIX
from stageline.pod.settings import Pod
from stageline.pod.sinks import LogSegments
from stageline.pod.verdict import is_rendezvous_failure, judge
from stageline.printing import one_line, quoted_block, say
from stageline.signals import CaughtSignals
from stageline.store import Store
from stageline.telemetry import FAILURE_DIR_VARIABLE, FailureRecord, redact

LEASE_WAIT_SECONDS = 120
"""Twice the length of a stage's lease, which a pod that was killed gives back to nobody. On top of the time-out of the
process group: for so long a writer that was cut off from its peers alone goes on renewing it."""
RENDEZVOUS_SECONDS = 900.0
"""How long the pods of a job may take to find each other; as long as the launcher lets pods wait for a node."""
OWN_PREFIX = "[stageline-entry]"
"""How lines of the entry itself begin, and no others."""
AGAIN_SECONDS = 2.0
"""Between attempts at a rendezvous."""


@dataclass
class Output:
    """Lines of this pod: to its log, and to the store where there is one."""

    segments: LogSegments | None = None
    early: list[str] = field(default_factory=list)

    def keep(self, segments: LogSegments) -> None:
        """From now on also there, with what was said before."""
        self.segments = segments
        for text in self.early:
            segments.add(text)

    def line(self, text: str) -> None:
        """One line of a rank; one that looks like a line of ours is indented."""
        self._write(_indented(text))

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads the log any more; the stage goes on
            say(text)
        self._store(text)

    def aside(self, text: str) -> None:
        """One line of a rank or of torchrun for the log in the store alone."""
        self._store(_indented(text))

    def _store(self, text: str) -> None:
        text = one_line(text)
        if self.segments is not None:
            self.segments.add(text)
        else:
            self.early.append(text)

    def sort(self, text: str) -> None:
        """One line of a rank, or of torchrun: at every end of a gang it prints pages that explain nothing."""
        if text.startswith(RANK_PREFIX):
            self.line(text)
        else:
            self.aside(text)

    def say(self, text: str) -> None:
        """One line of our own."""
        for line in quoted_block(f"{OWN_PREFIX} {redact(text)}"):
            self._write(line)


def _indented(text: str) -> str:
    return f" {text}" if text.startswith(OWN_PREFIX) else text


@dataclass
class Attempt:
    """One attempt of a pod at its work, and what it works with.

    pod: what it was told.
    output: takes its lines.
    asked: the signals that ask it to stop.
    scratch: a folder that goes with it.
    python: the interpreter of the ranks.
    command: what a rank runs before its verb; None is `python -m stageline`.
    store: where log and record are kept; None for nowhere.
    count_kills: how often the kernel has killed here for want of memory; None where nobody says.
    lease_wait_seconds: how long ranks wait for the lease of an attempt before this one.
    """

    pod: Pod
    output: Output
    asked: CaughtSignals
    scratch: Path
    python: str = sys.executable
    command: Sequence[str] | None = None
    store: Store | None = None
    count_kills: Callable[[], int | None] = count_oom_kills
    lease_wait_seconds: int = LEASE_WAIT_SECONDS

    @property
    def records(self) -> Path:
        return self.scratch / "records"

    def rank_command(self, words: Sequence[str]) -> list[str]:
        return [*(self.command or (self.python, "-m", "stageline")), *words]


def write_config(folder: Path, config: Mapping[str, Any]) -> Path:
    """The config as a file for `-c`."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def check_result(attempt: Attempt) -> FailureRecord | None:
    """Success is what is committed, whatever the exit codes said."""
    pod = attempt.pod
    if not pod.config or pod.verb == "prepare" or attempt.command is not None:
        return None
    try:
        if find_finished(pod):
            return None
    except StoreUnavailableError as error:
        attempt.output.say(f"the ranks ended well; their result cannot be looked up: {error.message}")
        return None
    sentence = f"{pod.item} ended well, and its result is not in the store"
    return FailureRecord.of(StagelineError(sentence, remedy="see the log of this pod"))


def run_program(attempt: Attempt, words: Sequence[str], world_size: int) -> FailureRecord | None:
    """Start the ranks of this node and judge their end; a rendezvous that fails is tried again for a while."""
    pod = attempt.pod
    limit = float(os.environ.get(RENDEZVOUS_VARIABLE, "") or RENDEZVOUS_SECONDS)
    end = time.monotonic() + limit
    kills = attempt.count_kills()
    tries = 0
    while True:
        refuse_start(attempt)
        tries += 1
        program = make_program(attempt, words, world_size, tries, max(1.0, end - time.monotonic()))
        ended = watch(program, attempt.asked, attempt.output.line if program.num_ranks == 0 else attempt.output.sort)
        if is_rendezvous_failure(ended) and time.monotonic() + AGAIN_SECONDS < end:
            attempt.output.say(f"the ranks did not find each other yet (attempt {tries}); trying again")
            time.sleep(AGAIN_SECONDS)
            continue
        say_end(attempt, ended)
        return judge(
            ended,
            attempt.records,
            memory_ran_out=(attempt.count_kills() or 0) > (kills or 0),
            world_size=pod.world_size,
        )


def refuse_start(attempt: Attempt) -> None:
    """Raise where there is a reason not to start anything."""
    if attempt.asked.first_name:
        raise InterruptedRunError(f"stopped by {attempt.asked.first_name} before it began", remedy="start it again")
    deadline = attempt.pod.deadline
    if deadline is not None and time.time() >= deadline:
        raise DeadlineError(
            f"the deadline came {time.time() - deadline:.0f} s before this pod began", remedy="submit it again"
        )


def say_end(attempt: Attempt, ended: ProgramEnd) -> None:
    if ended.late:
        attempt.output.say("the deadline came: the ranks were asked to commit and end")
    if ended.hung:
        attempt.output.say("the ranks were gone and torchrun did not follow: it was ended")
    if not ended.ranks:
        attempt.output.say("no rank was started; torchrun's last lines:")
        for text in ended.last_lines:
            attempt.output.line(text)


def make_program(attempt: Attempt, words: Sequence[str], world_size: int, number: int, join_seconds: float) -> Program:
    """The program of this node: torchrun with nothing but PET_* variables, or the only rank itself."""
    pod = attempt.pod
    # A trial starts several programs one after another, each with its first attempt.
    notes = Path(tempfile.mkdtemp(prefix=f"notes-{number}-", dir=attempt.scratch))
    attempt.records.mkdir(exist_ok=True)
    command = attempt.rank_command(words)
    if world_size > 1:
        command = [attempt.python, "-m", "torch.distributed.run", "-m", "stageline.pod.rank", *command]
    bind = LOOPBACK if pod.nodes == 1 else pod.address  # ranks of one pod alone are nobody else's affair
    environment = rank_environment(
        os.environ,
        pod.arguments,
        str(attempt.records),
        lease_wait_seconds=attempt.lease_wait_seconds,
        meeting=Meeting(pod.index, pod.uid, bind, join_seconds) if world_size > 1 else None,
    )
    return Program(
        command=command,
        environment=environment,
        mark=f"{FAILURE_DIR_VARIABLE}={attempt.records}",
        notes=notes,
        num_ranks=pod.processes if world_size > 1 else 0,
        deadline=pod.deadline,
        shutdown_timeout_seconds=pod.shutdown_timeout_seconds,
    )
