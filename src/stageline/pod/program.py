"""One program and everything it starts, from start to end: its lines, signals to it, a deadline, and an end that hangs.

This process is PID 1 of the pod, so orphans come to it and are reaped here. When the ranks of a node are gone, torchrun
should follow within seconds; with the rendezvous host dead it may hang for ever, and is ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from stageline.config.bounds import read_json
from stageline.jobs.processes import descendants, die_with_parent, kill_marked
from stageline.pod.rank import NOTES_VARIABLE
from stageline.printing import LONGEST_LINE
from stageline.signals import CaughtSignals

POLL_SECONDS = 0.1
FOLLOW_SECONDS = 10.0
"""How long torchrun may go on without ranks: it waits for the other nodes' ranks, and on node 0 it serves them."""
KILL_AFTER_SECONDS = 15.0
"""Past the shutdown time-out of the ranks, before everything is killed."""
LAST_LINES_SECONDS = 3.0
RECORD_LINES = 30
TAIL_LINES = 300
"""Kept in memory: torchrun ends with pages of its own, behind what the ranks said last."""


@dataclass(frozen=True)
class RankEnd:
    """returncode: as Popen has it, -n for signal n; None where nobody lived to see it.  time: unix seconds."""

    rank: int
    returncode: int | None
    time: float


@dataclass(frozen=True)
class ProgramEnd:
    """How a program ended. returncode: its own.  ranks: those that were started here.  hung: it had to be ended.

    asked: the signal that asked this pod to stop, "" if none did.  late: the deadline came.
    """

    returncode: int
    ranks: tuple[RankEnd, ...] = ()
    asked: str = ""
    late: bool = False
    hung: bool = False
    tail: tuple[str, ...] = ()

    @property
    def last_lines(self) -> list[str]:
        """The last lines of the ranks, or of torchrun where no rank said anything."""
        return ([line for line in self.tail if line.startswith("[rank ")] or list(self.tail))[-RECORD_LINES:]


@dataclass
class Program:
    """What to watch. mark: `NAME=value` in its environment, by which its descendants are known.

    num_ranks: how many ranks it starts on this node; 0: it is the only rank itself.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    mark: str
    notes: Path
    num_ranks: int = 0
    deadline: float | None = None
    shutdown_timeout_seconds: float = 120.0
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))


def watch(program: Program, asked: CaughtSignals, on_line: Callable[[str], None]) -> ProgramEnd:
    """Start a program and stay with it to its end; nothing it started is alive afterwards."""
    process = subprocess.Popen(
        program.command,
        env={**program.environment, NOTES_VARIABLE: str(program.notes)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=die_with_parent,  # one prctl through an already loaded libc
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_read, args=(process.stdout, program.tail, on_line), daemon=True)
    reader.start()
    watched = _RunningProgram(program, process, asked)
    try:
        watched.follow()
    finally:
        kill_marked(program.mark, spare=process.pid)
        if process.returncode is None:
            process.kill()
            process.wait()
        reader.join(LAST_LINES_SECONDS)
    ranks = _ends(program.notes) if program.num_ranks else (RankEnd(0, process.returncode, time.time()),)
    return ProgramEnd(process.returncode, ranks, asked.first_name, watched.late, watched.hung, tuple(program.tail))


class _RunningProgram:
    """A program that runs."""

    def __init__(self, program: Program, process: subprocess.Popen[bytes], asked: CaughtSignals) -> None:
        self.program = program
        self.process = process
        self.asked = asked
        self.late = False
        self.hung = False
        self._told_at = 0.0
        self._gone_at = 0.0

    def follow(self) -> None:
        """Return when the program has ended."""
        while not _reap(self.process):
            now = time.monotonic()
            self.late = self.late or (self.program.deadline is not None and time.time() >= self.program.deadline)
            if (self.asked.first_name or self.late) and not self._told_at:
                self._told_at = now
                self._send(signal.SIGINT if self.asked.first == signal.SIGINT else signal.SIGTERM)
            if self._told_at and now - self._told_at > self.program.shutdown_timeout_seconds + KILL_AFTER_SECONDS:
                kill_marked(self.program.mark, spare=self.process.pid)
                self._send(signal.SIGKILL)
            self._end_what_hangs(now)
            time.sleep(POLL_SECONDS)

    def _end_what_hangs(self, now: float) -> None:
        """SIGKILL for an agent without ranks: it has nothing to tidy up, and anything milder makes it print pages.

        At once where all ranks left word and one of them failed: the gang is lost, and every second is the next one's.
        """
        if not self.program.num_ranks or not _are_gone(self.program, self.process.pid):
            self._gone_at = 0.0
            return
        self._gone_at = self._gone_at or now
        failed = any(note.get("returncode") for note in read_notes(self.program.notes))
        if failed or now - self._gone_at > FOLLOW_SECONDS:
            self.hung = self.hung or not failed
            self._send(signal.SIGKILL)

    def _send(self, signum: int) -> None:
        try:
            os.kill(self.process.pid, signum)
        except ProcessLookupError:
            return


def _reap(process: subprocess.Popen[bytes]) -> bool:
    """Collect whatever has ended, orphans too; whether the program itself has."""
    while process.returncode is None:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # somebody else collected it: nobody knows how it ended
            process.returncode = -signal.SIGKILL
            break
        if pid == 0:
            return False
        if pid == process.pid:
            process.returncode = os.waitstatus_to_exitcode(status)
    return True


def _read(output: IO[bytes], tail: deque[str], on_line: Callable[[str], None]) -> None:
    with output:
        while line := output.readline(LONGEST_LINE):
            text = line.decode("utf-8", errors="replace").rstrip("\r\n")
            tail.append(text)
            on_line(text)


def read_notes(folder: Path) -> list[dict[str, Any]]:
    """What the processes around the ranks noted, by rank."""
    notes = [read_json(path.read_bytes()) for path in sorted(folder.glob("rank-*.json"))]
    return sorted(notes, key=lambda note: int(note["rank"]))


def _are_gone(program: Program, agent: int) -> bool:
    """Whether all ranks were started and none is alive.

    agent: process of the program. Where a rank failed, others may have been ended before they left word: then nothing
    may be left but the agent.
    """
    notes = read_notes(program.notes)
    if len(notes) < program.num_ranks:
        return any(note.get("returncode") for note in notes) and descendants(os.getpid()) == [agent]
    if all("returncode" in note for note in notes):
        return True
    alive = set(descendants(os.getpid()))
    return not any(note["pid"] in alive for note in notes)


def _ends(folder: Path) -> tuple[RankEnd, ...]:
    now = time.time()
    return tuple(
        RankEnd(int(note["rank"]), note.get("returncode"), float(note.get("time", now))) for note in read_notes(folder)
    )
