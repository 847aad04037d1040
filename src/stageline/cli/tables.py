"""Plans, runs and metrics for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from stageline.plan import Plan

COLOURS = {"run": "yellow", "continue": "cyan", "reuse": "green", "blocked": "red", "not selected": "dim"}


def console() -> Console:
    """Standard output; plain where it is no terminal."""
    from rich.console import Console

    wide = Console(highlight=False, emoji=False)
    return wide if wide.is_terminal else Console(highlight=False, emoji=False, width=160)


def show_plan(plan: Plan) -> None:
    """One row per item: action, steps, size, expected time, reasons."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "action", "steps", "parameters", "expected"):
        table.add_column(name, no_wrap=True)
    table.add_column("why", overflow="fold")
    for item in plan.items:
        why = Text("\n".join((*item.reasons, *(f"-> {remedy}" for remedy in item.remedies))))
        table.add_row(
            item.name,
            Text(item.action, style=COLOURS[item.action]),
            _steps(item.steps, item.from_step),
            _parameters(item.parameters),
            duration(item.seconds) if item.seconds is not None else "",
            why,
        )
    out = console()
    out.print(Text(f"plan of run {plan.run} ({plan.family}) at {plan.uri}"))
    out.print(table)


def show_notes(plan: Plan) -> None:
    """What the family says about the model."""
    if plan.notes:
        print("\n" + "\n".join(plan.notes))


def _steps(steps: int | None, start: int) -> str:
    if steps is None:
        return ""
    return f"{start} -> {steps}" if start else str(steps)


def _parameters(parameters: Mapping[str, int] | None) -> str:
    if not parameters:
        return ""
    trained, total = parameters["trained"], parameters["total"]
    return f"{total:,}" if trained == total else f"{trained:,} of {total:,}"


def duration(seconds: float) -> str:
    """1.2 s, 3 min 04 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def show_metrics(metrics: Mapping[str, Any], num_samples: Mapping[str, int], title: str = "", labels: str = "") -> None:
    """Metric, value and how many samples it is over. labels: what the values are measured against.

    `dice_off` beside `dice` is the same metric in another mode: it gets a column of its own.
    """
    modes = list(dict.fromkeys(mode for name in metrics if (mode := _mode_of(name, metrics))))
    shown = [name for name, value in metrics.items() if not _mode_of(name, metrics) and _is_number(value)]
    rows = [
        (name, *(_number(metrics.get(f"{name}{mode}")) for mode in ("", *modes)), str(num_samples.get(name, "")))
        for name in shown
    ]
    show_rows(("metric", "value", *(mode.strip("_") for mode in modes), "samples"), rows, title)
    if labels:
        print(f"measured against {labels}")


def _mode_of(name: str, metrics: Mapping[str, Any]) -> str:
    """`_off` of `dice_off` where there is a `dice` too and at least another such pair; otherwise nothing."""
    base, sign, mode = name.rpartition("_")
    if not sign or base not in metrics:
        return ""
    pairs = sum(other.endswith(f"_{mode}") and other.rpartition("_")[0] in metrics for other in metrics)
    return f"_{mode}" if pairs > 1 else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> str:
    if not _is_number(value):
        return "" if value is None else str(value)
    return f"{value:.4f}" if isinstance(value, float) and not value.is_integer() else f"{value:g}"


def show_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A plain table."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out = console()
    if title:
        out.print(Text(title))
    out.print(table)
