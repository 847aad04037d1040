"""Charts: values lie where they belong, every chart says the same in a table, nothing finite is lost or invented."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest

from stageline.verbs.report.chart import (
    HEIGHT,
    MAX_DRAWN,
    WIDTH,
    Axis,
    Mark,
    Series,
    line_chart,
    pieces,
    thinned,
    value_axis,
)
from stageline.verbs.report.timeline import Session, stretches, tick_seconds, timeline


class Cells(HTMLParser):
    """Values of `<data>` elements and points of polylines."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.values: list[str] = []
        self.lines: list[list[tuple[float, float]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "data":
            self.values.append(found["value"] or "")
        if tag == "polyline":
            self.lines.append([tuple(map(float, pair.split(","))) for pair in (found["points"] or "").split()])  # type: ignore[misc]


@pytest.mark.parametrize(
    "values",
    [[0.0, 1.0], [3.0, 3.0], [-5.0, 12.0], [1e-6, 1.0], [0.5, 0.51], [1e9, 2e9], [0.0, 0.0]],
    ids=str,
)
def test_every_value_lies_inside_its_axis(values: list[float]) -> None:
    axis = value_axis(values, 200.0, 10.0)
    for value in values:
        assert 10 - 1e-6 <= axis.place(value) <= 200 + 1e-6
    assert 2 <= len(axis.ticks()) <= 12
    assert all(10 - 1e-6 <= axis.place(tick) <= 200 + 1e-6 for tick in axis.ticks())


def test_axis_is_logarithmic_only_for_positive_values_far_apart() -> None:
    assert value_axis([0.01, 1.0], 0, 1).is_log
    assert not value_axis([0.0, 1.0], 0, 1).is_log
    assert not value_axis([0.5, 1.0], 0, 1).is_log
    log = Axis(1.0, 100.0, 0.0, 2.0, is_log=True)
    assert log.place(10.0) == pytest.approx(1.0)


def test_shares_get_the_whole_unit_range() -> None:
    axis = value_axis([0.4, 0.6], 0, 1, unit_range=True)
    assert (axis.low, axis.high) == (0.0, 1.0)


def test_points_are_drawn_where_the_axes_say() -> None:
    """Three points on a line stay on a line; the ends of the steps are the ends of the drawing."""
    drawn = Cells(line_chart("t", [Series("a", ((0, 0.0), (5, 0.5), (10, 1.0)))], y_label="v", unit_range=True)).lines[
        0
    ]
    (x0, y0), (x1, y1), (x2, y2) = drawn
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y2, "larger is higher"
    assert 0 < x0 < x2 < WIDTH
    assert 0 < y2 < y0 < HEIGHT


def test_the_table_holds_exactly_the_numbers_drawn() -> None:
    points = tuple((float(step), 1.0 / (step + 1.7)) for step in range(0, 50, 5))
    values = Cells(line_chart("t", [Series("a", points)], y_label="v")).values
    assert values == [text for x, y in points for text in (repr(x), repr(y))]


def test_a_value_that_is_not_finite_breaks_the_line_and_is_named_in_the_table() -> None:
    series = Series("a", ((0, 1.0), (1, 2.0), (2, math.nan), (3, 3.0), (4, 4.0)))
    text = line_chart("t", [series], y_label="v")
    assert [len(line) for line in Cells(text).lines] == [2, 2]
    assert ">nan<" in text
    assert [len(piece) for piece in pieces(series.points)] == [2, 2]


def test_thinning_keeps_ends_and_extremes() -> None:
    points = [(float(i), math.sin(i / 30)) for i in range(5000)]
    points[3333] = (3333.0, 9.0)
    points[1111] = (1111.0, -9.0)
    kept = thinned(points)
    assert len(kept) <= MAX_DRAWN + 4
    assert {points[0], points[-1], points[3333], points[1111]} <= set(kept)
    assert kept == sorted(kept)


def test_marks_are_drawn_named_and_counted() -> None:
    marks = [Mark(3, "skipped", "step 3 skipped: loss is nan"), Mark(5, "resumed", "resumed from step 5")]
    text = line_chart("t", [Series("a", ((0, 1.0), (10, 2.0)))], y_label="v", marks=marks)
    assert "step 3 skipped: loss is nan" in text
    assert "skipped step (1)" in text
    assert "resumed (1)" in text
    assert text.count('class="mark') == 2


def test_a_chart_without_a_finite_value_says_so() -> None:
    text = line_chart("t", [Series("a", ((0, math.nan),))], y_label="v")
    assert "Nothing was recorded" in text
    assert "<svg" not in text


def test_timeline_bars_are_as_long_as_their_sessions() -> None:
    sessions = [
        Session("a", 100.0, 160.0, "good", "finished"),
        Session("b", 160.0, 280.0, "bad", "failed"),
    ]
    text = timeline(sessions)
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', text)]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.3)
    assert "1 min 00 s" in text
    assert "2 min 00 s" in text


def test_long_pauses_of_the_timeline_are_cut_short_and_their_length_is_said() -> None:
    day = 86400.0
    sessions = [
        Session("a", 0.0, 60.0, "warn", "interrupted"),
        Session("a", day, day + 60, "good", "finished"),
        Session("b", day + 61, day + 121, "good", "finished"),
    ]
    first, second = stretches(sessions, 0.0)
    assert (first.start, first.end, first.at) == (0.0, 60.0, 0.0)
    assert (second.start, second.end, second.at) == (day, day + 121, 60.0 + 30.0), "a sixth of 180 s"
    text = timeline(sessions)
    assert "+24 h 00 min" in text
    assert "long pauses are cut short" in text
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', text)]
    assert widths == pytest.approx([widths[0]] * 3 + [widths[3]] * 3, abs=0.3), "in the wide and in the narrow drawing"


@pytest.mark.parametrize("span", [1e-3, 0.7, 3, 59, 61, 3000, 90000, 1e7])
def test_timeline_ticks_are_few_and_inside(span: float) -> None:
    ticks = tick_seconds(span)
    assert 1 <= len(ticks) <= 12
    assert ticks[0] == 0
    assert ticks[-1] <= span
