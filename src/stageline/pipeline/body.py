"""What every step has around its body: lines for whoever follows, cancellation, and the failure record."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stageline.errors import InterruptedRunError, StagelineError
from stageline.jobs.processes import watch_process
from stageline.jobs.step_lines import DRIVER_VARIABLE, print_event
from stageline.signals import CaughtSignals, signal_word
from stageline.telemetry import FAILURE_DIR_VARIABLE, asked_by, write_failure

if TYPE_CHECKING:
    from stageline.pipeline.attempts import Attempts
    from stageline.pipeline.journal import Journal

TAIL_LINES = 30
NOTE_SECONDS = 0.8
"""How long a step without a job waits for its last words; KFP leaves it about a second."""


@dataclass
class Body:
    """One step at work. `say` for what happens, `line` for what its process prints; `on_cancel` ends that process.

    name: of the step.  branch: whose step it is, "" for the main run's.
    journal: where a step without a driver writes down what happens.
    attempts: what KFP's attempts at it leave to each other.
    """

    name: str
    branch: str = ""
    on_cancel: Callable[[str], None] | None = None
    cancelled: bool = False
    asked: str = ""
    started: float = field(default_factory=time.monotonic)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    journal: Journal | None = None
    attempts: Attempts | None = None

    @property
    def item(self) -> str:
        """What it is called: `resampler`, or `overlap0.resampler`."""
        return f"{self.branch}.{self.name}" if self.branch else self.name

    def say(self, state: str, text: str, **fields: Any) -> None:
        """state: running | reused | done | skipped | stopped | failed."""
        event = {"item": self.item, "state": state, "text": text, "seconds": self.seconds, **fields}
        print_event(event)
        if self.journal is not None and not self.cancelled:  # a cancelled pod has a second to live
            self.journal.tell(event)

    def line(self, text: str) -> None:
        """One line of the step's process."""
        self.tail.append(text)
        print_event({"item": self.item, "line": text})

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 2)

    def cancel(self, number: int = signal.SIGTERM) -> None:
        """Stop as soon as the running process has committed; without one, stop now. number: of the signal."""
        first, self.cancelled = not self.cancelled, True
        self.asked = asked_by(signal_word(number))
        if self.on_cancel is not None:
            self.on_cancel(self.asked)
        noting = threading.Thread(target=self._note_end, daemon=True)
        if first and self.journal is not None:
            noting.start()
        if self.on_cancel is None:
            if first and self.journal is not None:
                noting.join(NOTE_SECONDS)
            raise InterruptedRunError(f"{self.item} was stopped by {self.asked}", remedy="run again to continue")

    def _note_end(self) -> None:
        """What a pod that is being ended still gets said: nobody asks it later."""
        assert self.journal is not None
        error = InterruptedRunError(
            f"{self.item} was stopped: its step was terminated, or its pod evicted",
            remedy="submit again or retry the run: it continues, or follows the job if that still runs",
        )
        self.journal.fail(self.item, error, list(self.tail))


@contextmanager
def step_body(name: str, branch: str = "") -> Iterator[Body]:
    """Run a step's body: signals cancel it, its error becomes a record, a sentence and the process's exit code.

    branch: as the step is given it.
    """
    with cancellable(name, branch.partition(" ")[0]) as body:
        driver = os.environ.get(DRIVER_VARIABLE)
        if driver:
            watch_process(int(driver), lambda: os.kill(os.getpid(), signal.SIGTERM))
        try:
            yield body
        except StagelineError as error:
            _leave_record(body, error)
            body.journal = None
            state = "stopped" if isinstance(error, InterruptedRunError) else "failed"
            body.say(state, error.message, remedy=error.remedy, exit_code=error.exit_code)
            raise SystemExit(error.exit_code) from None
        except Exception as error:
            _leave_record(body, error)
            body.journal = None
            body.say("failed", f"{type(error).__name__}: {error}", exit_code=1)
            raise


@contextmanager
def cancellable(name: str, branch: str = "") -> Iterator[Body]:
    """A body that SIGTERM, SIGINT and SIGHUP cancel: its process commits and ends."""
    body = Body(name, branch)
    with CaughtSignals(body.cancel):
        yield body


def _leave_record(body: Body, error: BaseException) -> None:
    folder = os.environ.get(FAILURE_DIR_VARIABLE)
    if folder:
        write_failure(Path(folder), error, log_tail=list(body.tail))
    if body.cancelled:
        return
    if body.attempts is not None:
        body.attempts.leave(error)
    if body.journal is not None:
        body.journal.fail(body.item, error, body.tail)
