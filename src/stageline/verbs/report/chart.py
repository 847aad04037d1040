"""Line charts as inline SVG, each with a table that says the same.

Colours are CSS variables of the page, so a chart follows light and dark; series differ in dash as well as colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from stageline.verbs.report.html import Child, Markup, anchor, fold, number, rounded, table, tag

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 70, 14, 14, 42
MAX_DRAWN = 800
"""Points drawn per series; beyond it the lowest and highest of each group of neighbours stay."""
MAX_ROWS = 400
"""Rows of the table beside a chart."""
LOG_RATIO = 40
"""A series whose largest value is this many times its smallest is drawn on a logarithmic axis."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line: label and (x, y) points in ascending x; a y that is not finite breaks the line."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Mark:
    """Something that happened at one x."""

    x: float
    kind: Literal["skipped", "resumed", "saved"]
    text: str


@dataclass(frozen=True)
class Axis:
    """A range of values laid over a range of pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Pixel of a value."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.is_log else (self.low, self.high)
        at = math.log10(value) if self.is_log else value
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the range."""
        if self.is_log:
            low, high = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            factors = (1, 2, 5) if self.high / self.low <= 100 else (1,)
            found = [f * 10.0**e for e in range(low, high + 1) for f in factors]
        else:
            step = round_step((self.high - self.low) / count)
            first = math.ceil(self.low / step - 1e-9)
            found = [i * step for i in range(first, first + 3 * count + 2)]
        slack = 1e-9 * (self.high - self.low)
        return [float(f"{t:.10g}") for t in found if self.low - slack <= t <= self.high + slack]


def round_step(raw: float) -> float:
    """The smallest of 1, 2, 2.5, 5, 10 times a power of ten that is not below `raw`."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * (1 - 1e-9))


def value_axis(
    values: Sequence[float], start: float, end: float, *, unit_range: bool = False, may_be_log: bool = True
) -> Axis:
    """An axis that holds all values; logarithmic where they span more than LOG_RATIO. unit_range: shares in [0, 1]."""
    low, high = min(values), max(values)
    if may_be_log and low > 0 and high / low > LOG_RATIO:
        return Axis(low / 1.2, high * 1.2, start, end, is_log=True)
    if unit_range and low >= 0 and high <= 1:
        return Axis(0.0, 1.0, start, end)
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    step = round_step((high - low) / 5)
    return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, end)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    y_label: str,
    last_step: float = 0,
    marks: Sequence[Mark] = (),
    unit_range: bool = False,
    may_be_log: bool = False,
) -> Markup:
    """A figure: the chart over optimizer steps, its legend, and the same numbers as a table that opens.

    last_step: where the axis of steps ends at least; it begins at 0.  unit_range: the values are shares in [0, 1].
    may_be_log: the value axis is logarithmic where the values are far apart.
    """
    drawn = [s for s in series if any(math.isfinite(y) for _, y in s.points)]
    if not drawn:
        return tag(
            "figure", tag("figcaption", title), tag("p", "Nothing was recorded.", class_="quiet"), values(title, series)
        )
    if all(len(s.points) == 1 for s in drawn) and all(mark.kind == "saved" for mark in marks):
        return single_values(title, drawn)
    last = max([last_step, 1.0, *(x for s in drawn for x, _ in s.points), *(m.x for m in marks)])
    ys = [y for s in drawn for _, y in s.points if math.isfinite(y)]
    x_axis = Axis(0.0, last, LEFT, WIDTH - RIGHT)
    y_axis = value_axis(ys, HEIGHT - BOTTOM, TOP, unit_range=unit_range, may_be_log=may_be_log)
    label = f"{title}. " + " ".join(summary(s) for s in drawn)
    picture = tag(
        "svg",
        tag("title", title),
        tag("desc", label),
        frame(x_axis, y_axis, y_label),
        [draw_mark(mark, x_axis) for mark in marks],
        [draw_series(s, index, x_axis, y_axis) for index, s in enumerate(drawn)],
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label,
        class_="chart",
    )
    return tag(
        "figure",
        tag("figcaption", title, tag("span", " (logarithmic axis)", class_="quiet") if y_axis.is_log else None),
        picture,
        legend(drawn, marks),
        values(title, series, marks),
        id=f"chart-{anchor(title)}",
    )


def single_values(title: str, series: Sequence[Series]) -> Markup:
    """What was recorded once, as numbers: one point is no curve."""
    rows: list[list[Child]] = [[s.label, number(s.points[0][1]), number(s.points[0][0])] for s in series]
    shown = table(["what", "value", "step"], rows, caption="Recorded once", class_="numbers")
    return tag("figure", tag("figcaption", title), shown, id=f"chart-{anchor(title)}")


def summary(series: Series) -> str:
    """One sentence about a series, for those who do not see it."""
    finite = [(x, y) for x, y in series.points if math.isfinite(y)]
    lowest, highest = min(y for _, y in finite), max(y for _, y in finite)
    return (
        f"{series.label}: from {rounded(finite[0][1])} at step {rounded(finite[0][0])} "
        f"to {rounded(finite[-1][1])} at step {rounded(finite[-1][0])}, "
        f"lowest {rounded(lowest)}, highest {rounded(highest)}."
    )


def frame(x_axis: Axis, y_axis: Axis, y_label: str) -> Markup:
    """Grid, tick labels and axis names."""
    parts: list[Child] = []
    for tick in y_axis.ticks():
        y = pixel(y_axis.place(tick))
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", rounded(tick, 6), x=LEFT - 8, y=y, class_="tick end mid"))
    for tick in x_axis.ticks():
        x = pixel(x_axis.place(tick))
        parts.append(tag("line", x1=x, x2=x, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4, class_="axis"))
        parts.append(tag("text", rounded(tick, 6), x=x, y=HEIGHT - BOTTOM + 18, class_="tick center"))
    parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis"))
    parts.append(tag("text", "step", x=WIDTH - RIGHT, y=HEIGHT - 6, class_="tick end"))
    middle = (HEIGHT - BOTTOM + TOP) / 2
    turned = f"rotate(-90 12 {pixel(middle)})"
    parts.append(tag("text", y_label, x=12, y=pixel(middle), transform=turned, class_="tick center name"))
    return tag("g", parts)


def draw_series(series: Series, index: int, x_axis: Axis, y_axis: Axis) -> Markup:
    """The line in pieces between gaps, with dots where the points are few."""
    style = index % 4
    parts: list[Child] = []
    for piece in pieces(series.points):
        places = [f"{pixel(x_axis.place(x))},{pixel(y_axis.place(y))}" for x, y in thinned(piece)]
        if len(places) > 1:
            parts.append(tag("polyline", points=" ".join(places), class_=f"line s{style}"))
        if len(series.points) <= 60 or len(places) == 1:
            for x, y in piece:
                note = tag("title", f"{series.label}: {rounded(y)} at step {rounded(x)}")
                at = {"cx": pixel(x_axis.place(x)), "cy": pixel(y_axis.place(y))}
                parts.append(tag("circle", note, r=2.6, class_=f"dot s{style}", **at))
    return tag("g", parts)


def pieces(points: Sequence[Point]) -> list[list[Point]]:
    """Runs of finite points."""
    found: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            found[-1].append(point)
        elif found[-1]:
            found.append([])
    return [piece for piece in found if piece]


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most about MAX_DRAWN points, the extremes of each group of neighbours among them."""
    if len(points) <= MAX_DRAWN:
        return list(points)
    width = -(-len(points) // (MAX_DRAWN // 2))
    kept: list[Point] = [points[0]]
    for start in range(0, len(points), width):
        group = points[start : start + width]
        kept += sorted({min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])})
    kept.append(points[-1])
    return [kept[0], *(b for a, b in pairwise(kept) if a != b)]


def draw_mark(mark: Mark, x_axis: Axis) -> Markup:
    """A thin upright line with a sign of its own: a cross where a step was skipped, a wedge where a run resumed."""
    x = pixel(x_axis.place(mark.x))
    top, bottom = TOP, HEIGHT - BOTTOM
    shapes = {
        "skipped": f"M{x - 4},{top} l8,8 m0,-8 l-8,8",
        "resumed": f"M{x},{top + 12} l8,5 l-8,5 z",
        "saved": f"M{x - 3},{bottom} l3,-5 l3,5 z",
    }
    parts: list[Child] = [tag("title", mark.text)]
    if mark.kind != "saved":
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, class_=f"mark {mark.kind}"))
    parts.append(tag("path", d=shapes[mark.kind], class_=f"sign {mark.kind}"))
    return tag("g", parts)


def legend(series: Sequence[Series], marks: Sequence[Mark]) -> Markup:
    """Names beside short pieces of their lines, and what the signs mean."""
    entries: list[Child] = []
    for index, s in enumerate(series):
        key = tag(
            "svg",
            tag("line", x1=0, x2=26, y1=6, y2=6, class_=f"line s{index % 4}"),
            viewBox="0 0 26 12",
            class_="key",
            aria_hidden="true",
        )
        entries.append(tag("li", key, s.label))
    words = {"skipped": "✕ skipped step", "resumed": "▶ resumed", "saved": "▲ checkpoint"}
    for kind, words_of in words.items():
        count = sum(mark.kind == kind for mark in marks)
        if count:
            entries.append(tag("li", f"{words_of} ({count})", class_=kind))
    return tag("ul", entries, class_="legend")


def values(title: str, series: Sequence[Series], marks: Sequence[Mark] = ()) -> Markup:
    """The numbers of a chart as a table, folded; thinned only beyond MAX_ROWS, which is then said."""
    by_step: dict[float, dict[str, float]] = {}
    for s in series:
        for x, y in s.points:
            by_step.setdefault(x, {})[s.label] = y
    notes: dict[float, list[str]] = {}
    for mark in marks:
        if mark.kind != "saved":
            notes.setdefault(mark.x, []).append(mark.text)
    steps = sorted({*by_step, *notes})
    stride = -(-len(steps) // MAX_ROWS)
    kept = [x for i, x in enumerate(steps) if stride <= 1 or i % stride == 0 or i == len(steps) - 1 or x in notes]
    rows: list[list[Child]] = []
    for x in kept:
        found = by_step.get(x, {})
        cells: list[Child] = [number(found[s.label], 6) if s.label in found else "" for s in series]
        rows.append([number(x), *cells, *(["; ".join(notes.get(x, []))] if notes else [])])
    said = f"{title}: the numbers" + (f" (every {stride}th of {len(steps)})" if stride > 1 else "")
    head = ["step", *(s.label for s in series), *(["what happened"] if notes else [])]
    return fold("as a table", table(head, rows, caption=said, class_="numbers"))


def pixel(value: float) -> float:
    """Pixels to a tenth: enough for the eye, and the same text on every machine."""
    return round(value, 1)
