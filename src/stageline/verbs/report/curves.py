"""The curves of one stage, read from its events: loss and parts, validation, learning rate, gradient."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stageline.verbs.report.chart import Mark, Series, line_chart
from stageline.verbs.report.html import Markup, count, fold, tag

Event = Mapping[str, Any]
NUMBERED = re.compile(r"(?<![A-Za-z\d])\d+")
"""A number of its own inside a name: the 2 of film_2_change, not the 1 of junction_f1."""


def stage_curves(stage: str, events: Sequence[Event], metric: str = "") -> Markup:
    """All charts of a stage. metric: the stage's declared one, drawn first among the validation metrics."""
    steps = [e for e in events if e.get("event") == "step"]
    validations = [e for e in events if e.get("event") == "validation"]
    if not steps and not validations:
        return tag("p", "No step has been logged.", class_="quiet")
    marks = stage_marks(events)
    last = max(e["step"] for e in events if isinstance(e.get("step"), int))

    def chart(title: str, series: Sequence[Series], label: str, *, shares: bool = False, log: bool = False) -> Markup:
        name = f"{stage}: {title}"
        return line_chart(name, series, y_label=label, last_step=last, marks=marks, unit_range=shares, may_be_log=log)

    charts = [chart("training loss", loss_series(steps), "loss", log=True)]
    groups, diagnostics = validation_groups(validations, metric)
    charts += [chart(validation_title(group), group, "value", shares=is_share(group[0])) for group in groups]
    for field, title, label, log in (
        ("learning_rate", "learning rate", "learning rate", False),
        ("gradient_norm", "gradient norm before clipping", "norm", True),
    ):
        points = tuple(field_points(steps, field))
        if points:
            charts.append(chart(title, [Series(label, points)], label, log=log))
    parts = [tag("div", charts, class_="charts")]
    if diagnostics:
        more = [chart(validation_title(group), group, "value") for group in diagnostics]
        parts.append(
            fold(f"{count(len(more), 'more chart')}: validation diagnostics", tag("div", more, class_="charts"))
        )
    return tag("div", parts)


def validation_title(group: Sequence[Series]) -> str:
    """What a validation chart shows."""
    return f"validation ({', '.join(s.label for s in group)})"


def loss_series(steps: Sequence[Event]) -> list[Series]:
    """The loss and, where there are at least two, its parts."""
    found = [Series("loss", tuple(field_points(steps, "loss")))]
    names = list(dict.fromkeys(name for e in steps for name in mapping(e.get("parts"))))
    if len(names) > 1:
        parts = [[{"step": e["step"], **mapping(e.get("parts"))} for e in steps if "step" in e]] * len(names)
        found += [Series(name, tuple(field_points(rows, name))) for name, rows in zip(names, parts, strict=True)]
    return found[:4]


def validation_groups(validations: Sequence[Event], metric: str) -> tuple[list[list[Series]], list[list[Series]]]:
    """(charts, diagnostics): what is drawn together, the stage's own metric first.

    Shares in [0, 1] stand three to a chart, any other metric alone. Names that differ in a number only (one per decoder
    stage, say) are diagnostics, and stand together.
    """
    rows = [{"step": e.get("step"), **mapping(e.get("metrics"))} for e in validations]
    names = sorted(dict.fromkeys(name for row in rows for name in row if name != "step"), key=lambda n: n != metric)
    series = [s for name in names if (s := Series(name, tuple(field_points(rows, name)))).points]
    numbered: dict[str, list[Series]] = {}
    for s in series:
        if NUMBERED.search(s.label):
            numbered.setdefault(NUMBERED.sub("#", s.label), []).append(s)
    plain = [s for s in series if not NUMBERED.search(s.label)]
    shares = [s for s in plain if is_share(s)]
    groups = [shares[start : start + 3] for start in range(0, len(shares), 3)]
    groups += [[s] for s in plain if s not in shares]
    return groups, [group[start : start + 4] for group in numbered.values() for start in range(0, len(group), 4)]


def is_share(series: Series) -> bool:
    """Whether every value lies in [0, 1] and none of them is a loss."""
    return "loss" not in series.label and all(0 <= y <= 1 for _, y in series.points if math.isfinite(y))


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
