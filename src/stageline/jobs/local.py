"""A job on this machine: start it in a process group of its own, follow its lines live, cancel it without orphans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO

from stageline.jobs.environment import QUIET, loopback_environment, process_environment, without_ranks
from stageline.jobs.job import Job, Verdict, judge, render_command
from stageline.jobs.processes import adopt_orphans, bounded_lines, die_with_parent, kill_marked
from stageline.signals import REPEAT_SECONDS
from stageline.store.scratch import scratch_folder
from stageline.telemetry import FAILURE_DIR_VARIABLE, note_asked, read_failure

KILL_AFTER_SECONDS = 15.0
"""Past the job's own shutdown timeout, before SIGKILL: chosen here because torchrun needs a few seconds to follow."""
TAIL_LINES = 40
"""Last lines of output kept for the failure record."""


class LocalProcess:
    """A started job. `follow` once; `cancel` from any thread or signal handler."""

    def __init__(self, job: Job, process: subprocess.Popen[str], failure_dir: Path, scratch: ExitStack) -> None:
        self.job = job
        self.process = process
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._failure_dir = failure_dir
        self._scratch = scratch
        self._cancelled = False
        self._cancelled_at = 0.0
        self._killer: threading.Timer | None = None

    def follow(self, on_line: Callable[[str], None]) -> Verdict:
        """Hand every line of output (stdout and stderr) to `on_line` as it comes; return the verdict at the end."""
        assert self.process.stdout is not None
        with self._scratch:
            returncode = self._wait(self.process.stdout, on_line)
            code = returncode if returncode > 0 else 128 - returncode
            record = read_failure(self._failure_dir, exit_code=code)
            return judge(returncode, record, cancelled=self._cancelled)

    def _wait(self, output: IO[str], on_line: Callable[[str], None]) -> int:
        """Hand over every line; returns the exit status. Whatever interrupts that ends the job first."""
        try:
            for text in bounded_lines(output):
                self.tail.append(text)
                on_line(text)
            return self.process.wait()
        except BaseException:
            self.kill()
            self.process.wait()
            raise
        finally:
            output.close()
            if self._killer:
                self._killer.cancel()

    def cancel(self, asked: str = "") -> None:
        """First call: SIGTERM, so that the job finishes its step, commits and ends; SIGKILL follows in stated time.

        Second call, more than a second later: SIGKILL now. asked: what made somebody cancel it, for the job's messages.
        """
        if self._cancelled:
            if time.monotonic() - self._cancelled_at > REPEAT_SECONDS:
                self.kill()
            return
        self._cancelled, self._cancelled_at = True, time.monotonic()
        if self.process.poll() is None:
            note_asked(self._failure_dir, asked)
            os.kill(self.process.pid, signal.SIGTERM)
            self._killer = threading.Timer(self.job.shutdown_timeout_seconds + KILL_AFTER_SECONDS, self.kill)
            self._killer.daemon = True
            self._killer.start()

    def kill(self) -> None:
        """End the job and everything it started at once."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        kill_marked(f"{FAILURE_DIR_VARIABLE}={self._failure_dir}", spare=self.process.pid)


def start_job(job: Job, python: str = sys.executable) -> LocalProcess:
    """Start a job; call it from the main thread, since the job cannot outlive the thread that started it.

    Raises OSError where the interpreter cannot start.
    """
    adopt_orphans()
    with ExitStack() as scratch:
        failure_dir = scratch.enter_context(scratch_folder("failures"))
        own = process_environment(job.shutdown_timeout_seconds, str(failure_dir))
        process = subprocess.Popen(
            render_command(_with_config(job, scratch), python),
            env={**QUIET, **loopback_environment(), **without_ranks(os.environ), **own, **job.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            bufsize=1,
            process_group=0,
            preexec_fn=die_with_parent,  # one prctl through an already loaded libc
        )
        return LocalProcess(job, process, failure_dir, scratch.pop_all())


def _with_config(job: Job, scratch: ExitStack) -> Job:
    """The job with its config as a file behind `-c`; the file goes with the scratch folder."""
    if not job.config:
        return job
    path = scratch.enter_context(scratch_folder("config")) / "config.yaml"
    path.write_text(json.dumps(job.config), encoding="utf-8")
    return replace(job, arguments=(*job.arguments, "-c", str(path)))
