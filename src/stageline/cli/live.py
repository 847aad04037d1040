"""What a person sees while a pipeline runs: on a terminal one table of its steps with the running one's bar, elsewhere
plain lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from stageline.printing import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from stageline.plan import Plan

REFERENCE = re.compile(r"\S+@sha256:[0-9a-f]{64}")
"""What a step prints for the next one; no person reads it."""
COUNTED = re.compile(r"(?P<what>.*?)\b(?P<done>\d{1,15})/(?P<total>\d{1,15})\b(?P<rest>.*)")
"""`step 5/80  loss 1.2`, `evaluating (FiLM off) 48/192`: work whose end is known."""
ENDS = {"done": "green", "reused": "green", "skipped": "dim", "stopped": "yellow", "failed": "red"}
BAR, COUNT, CLOCK = 12, 9, 7
"""Columns of the terminal: the bar, `250/1000`, `0:12:34`."""
UNIT = re.compile(r"^(?:step )?$")


class RunView:
    """Shows one run of a pipeline. A context manager: the terminal is left as it was found, whatever happens.

    console: where to; standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        from stageline.cli.tables import console as standard

        self.console = console or standard()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def plan(self, plan: Plan) -> None:
        """Show the plan, and begin the table of steps where somebody watches and nothing is blocked."""
        from stageline.cli.tables import show_plan

        show_plan(plan)
        if not self.console.is_terminal or plan.blocked:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        names = max(len(item.name) for item in plan.items)
        said = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # the one that gives way on a narrow terminal
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, min_width=names)),
            BarColumn(bar_width=BAR, table_column=Column(min_width=BAR)),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=COUNT)),
            TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=CLOCK)),
            TextColumn("{task.fields[said]}", markup=False, table_column=said),
        )
        self._progress = Progress(*columns, console=self.console, expand=True)
        for item in plan.items:
            selected = item.action != "not selected"
            task = self._progress.add_task(
                one_line(item.name), total=item.steps, start=False, said="waiting", visible=selected
            )
            self._tasks[item.name] = task
        self._progress.start()

    def event(self, event: Mapping[str, Any]) -> None:
        """Show what happened to a step, or what it prints. event: as the driver hands it on."""
        if "line" in event:
            self._line(str(event["item"]), str(event["line"]))
        else:
            self._state(str(event["item"]), event)

    def _line(self, item: str, line: str) -> None:
        text = line.removeprefix(f"{item}: ").strip()
        if not text or REFERENCE.fullmatch(text):
            return
        counted = None if text.startswith("warning") else COUNTED.fullmatch(text)
        task = self._tasks.get(item)
        if self._progress is None or task is None:
            self._print(f"  {item} | {text}")
        elif counted is None:
            self._print(f"{item}: {text}")
        else:
            what, rest = counted["what"].strip(), counted["rest"].strip()
            said = rest if UNIT.fullmatch(counted["what"]) else "  ".join(word for word in (what, rest) if word)
            done, total = int(counted["done"]), int(counted["total"])
            self._progress.update(task, completed=done, total=total, said=one_line(said))

    def _state(self, item: str, event: Mapping[str, Any]) -> None:
        first, _, _ = str(event["text"]).partition("\n")  # the others were lines of the step, and end the command
        state, text = str(event["state"]), one_line(shortened(first))
        took = f"  ({event['seconds']:.1f} s)" if state in ("done", "reused") else ""
        task = self._tasks.get(item)
        if self._progress is None or task is None:
            self._print(f"{item}: {state}: {text}{took}")
        elif state not in ENDS:
            self._progress.start_task(task)
            self._progress.update(task, said=text)
        else:
            self._progress.start_task(task)
            bar = self._progress.tasks[task]
            whole = bar.total or 1
            done = whole if state in ("done", "reused", "skipped") else bar.completed
            self._progress.update(task, total=whole, completed=done, said=f"{state}: {text}")
            self._progress.stop_task(task)

    def _print(self, text: str) -> None:
        self.console.print(one_line(text), markup=False, highlight=False, soft_wrap=True)


def shortened(text: str) -> str:
    """A text whose digests are cut to twelve digits."""
    return re.sub(r"@sha256:([0-9a-f]{12})[0-9a-f]{52}", r"@sha256:\1", text)
