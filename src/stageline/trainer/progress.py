"""What a person sees while a stage trains: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from stageline.printing import one_line

SMOOTHING = 0.05
"""Weight of the newest step in the mean step time that the time left is computed from; chosen for a mean over about
twenty steps."""
TAIL_LINES = 50
"""Lines kept for a failure record."""


def clock_text(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(max(0.0, seconds))
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


class StepClock:
    """Mean seconds per step, smoothed, and the time left."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._seen = 0

    def add(self, seconds: float) -> None:
        self._seen += 1
        # The mean of what was seen until there are enough for the smoothing, so that the first step counts little.
        self._mean += (seconds - self._mean) * max(SMOOTHING, 1.0 / self._seen)

    def left_seconds(self, steps: int) -> float:
        """Expected seconds for that many steps."""
        return self._mean * steps


class ProgressView:
    """Shows one stage. steps: planned.  console: where to; standard error by default.  lines: the last ones shown."""

    def __init__(self, stage: str, steps: int, console: Console | None = None) -> None:
        self.stage = stage
        self.steps = steps
        self._console = console or Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self.lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._bar: Progress | None = None
        self._job: Any = None
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[said]}", markup=False),
            )
            self._bar = Progress(*columns, console=self._console, transient=False)
            self._job = self._bar.add_task(stage, total=steps, said="")
            self._bar.start()

    def line(self, text: str) -> None:
        """One line of its own, above the bar where there is one."""
        shown = one_line(text)
        self.lines.append(shown)
        self._console.print(f"{self.stage}: {shown}", markup=False, highlight=False)

    def step(self, step: int, values: Mapping[str, float], left_seconds: float, *, log: bool) -> None:
        """Move to `step` finished steps; on logged steps also show the values."""
        said = "  ".join(f"{one_line(name)} {value:.4g}" for name, value in values.items())
        said = f"{said}  {clock_text(left_seconds)} left" if step < self.steps else said
        if self._bar is not None:
            self._bar.update(self._job, completed=step)
            if log:
                self._bar.update(self._job, said=said)
        elif log:
            self.line(f"step {step}/{self.steps}  {said}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
