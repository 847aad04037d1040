"""The curves of one stage, read from its events: loss and parts, validation, learning rate, gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stageline.report.chart import Mark, Series, line_chart
from stageline.report.html import Markup, tag

Event = Mapping[str, Any]


def stage_curves(stage: str, events: Sequence[Event], metric: str = "") -> Markup:
    """All charts of a stage. metric: the stage's declared one, drawn first among the validation metrics."""
    steps = [e for e in events if e.get("event") == "step"]
    validations = [e for e in events if e.get("event") == "validation"]
    if not steps and not validations:
        return tag("p", "No step has been logged.", class_="quiet")
    marks = stage_marks(events)
    last = max(e["step"] for e in events if isinstance(e.get("step"), int))
    loss = loss_series(steps)
    charts = [line_chart(f"{stage}: training loss", loss, y_label="loss", last_step=last, marks=marks)]
    for group, is_share in validation_groups(validations, metric):
        title = f"{stage}: validation ({', '.join(s.label for s in group)})"
        chart = line_chart(title, group, y_label="value", last_step=last, marks=marks, unit_range=is_share)
        charts.append(chart)
    for field, title, label in (
        ("learning_rate", "learning rate", "learning rate"),
        ("gradient_norm", "gradient norm before clipping", "norm"),
    ):
        points = tuple(field_points(steps, field))
        if points:
            series = [Series(label, points)]
            charts.append(line_chart(f"{stage}: {title}", series, y_label=label, last_step=last, marks=marks))
    return tag("div", charts, class_="charts")


def loss_series(steps: Sequence[Event]) -> list[Series]:
    """The loss and, where there are at least two, its parts."""
    found = [Series("loss", tuple(field_points(steps, "loss")))]
    names = list(dict.fromkeys(name for e in steps for name in mapping(e.get("parts"))))
    if len(names) > 1:
        parts = [[{"step": e["step"], **mapping(e.get("parts"))} for e in steps if "step" in e]] * len(names)
        found += [Series(name, tuple(field_points(rows, name))) for name, rows in zip(names, parts, strict=True)]
    return found[:4]


def validation_groups(validations: Sequence[Event], metric: str) -> Iterator[tuple[list[Series], bool]]:
    """Metrics that are shares in [0, 1] in charts of at most three, each other metric in a chart of its own."""
    rows = [{"step": e.get("step"), **mapping(e.get("metrics"))} for e in validations]
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    names.sort(key=lambda name: name != metric)
    series = [Series(name, tuple(field_points(rows, name))) for name in names]
    series = [s for s in series if s.points]
    shares = [s for s in series if "loss" not in s.label and all(0 <= y <= 1 for _, y in s.points if math.isfinite(y))]
    for start in range(0, len(shares), 3):
        yield shares[start : start + 3], True
    for s in series:
        if s not in shares:
            yield [s], False


def field_points(rows: Sequence[Event], field: str) -> Iterator[tuple[float, float]]:
    """(step, value) of the rows that have the field; `nan` and infinities, which events hold as text, too."""
    for row in rows:
        step, value = row.get("step"), to_float(row.get(field))
        if isinstance(step, int) and value is not None:
            yield float(step), value


def to_float(value: Any) -> float | None:
    """A number of an event: JSON number, or the text of one that is not finite."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    return float(value) if value in ("nan", "inf", "-inf") else None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping, else nothing."""
    return value if isinstance(value, Mapping) else {}


def stage_marks(events: Sequence[Event]) -> list[Mark]:
    """Skipped steps, resumptions and checkpoints."""
    marks: list[Mark] = []
    for event in events:
        step = event.get("step")
        if not isinstance(step, int):
            continue
        if event["event"] == "skipped":
            marks.append(Mark(step, "skipped", f"step {step} skipped: {event.get('reason', 'not finite')}"))
        elif event["event"] == "resumed":
            marks.append(Mark(step, "resumed", f"resumed from step {step}"))
        elif event["event"] == "checkpoint":
            marks.append(Mark(step, "saved", f"checkpoint at step {step}"))
    return marks
