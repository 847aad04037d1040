"""The stage timeline: one bar per session of every part of a run, as SVG and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from stageline.verbs.report.chart import Axis, pixel, round_step
from stageline.verbs.report.html import Child, Markup, count, duration, fold, table, tag

TOP, BOTTOM, FIRST, RIGHT, BAR = 8, 34, 10, 24, 22
NICE_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


@dataclass(frozen=True)
class Layout:
    """How a timeline is drawn, in pixels.

    name: of its class.  width: of the whole.  row: height of a part.  labels: width of the names beside the bars, 0
    where they stand above.  ticks: how many at most.
    """

    name: str
    width: int
    row: int
    labels: int
    ticks: int

    @property
    def above(self) -> int:
        """Room for the name above a bar."""
        return self.row - BAR - 2 * 6 if not self.labels else 0


LAYOUTS = (Layout("wide", 1120, BAR + 12, 190, 8), Layout("narrow", 360, BAR + 30, 0, 3))
"""The page shows the one that fits."""


@dataclass(frozen=True)
class Session:
    """One stretch of work on one part of the run.

    start, end: seconds since 1970.  state: good | warn | bad | idle.  text: how it ended, in words.
    is_frame: it surrounds other sessions of its part and is drawn behind them, without words.
    """

    part: str
    start: float
    end: float
    state: str
    text: str
    is_frame: bool = False


@dataclass(frozen=True)
class Stretch:
    """A time with work in it. start, end: seconds since the first session began.  at: where it is drawn, in seconds."""

    start: float
    end: float
    at: float


def stretches(sessions: Sequence[Session], origin: float) -> list[Stretch]:
    """The time line without long gaps: one longer than all the work, and than a minute, is drawn as a sixth of it."""
    spans: list[list[float]] = []
    for session in sorted(sessions, key=lambda s: s.start):
        start, end = session.start - origin, session.end - origin
        if spans and start <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], end)
        else:
            spans.append([start, end])
    work = sum(end - start for start, end in spans)
    found = [Stretch(spans[0][0], spans[0][1], 0.0)]
    for start, end in spans[1:]:
        last = found[-1]
        gap = start - last.end
        if gap <= max(work, 60.0):
            found[-1] = Stretch(last.start, end, last.at)
        else:
            found.append(Stretch(start, end, last.at + last.end - last.start + work / 6))
    return found


def timeline(sessions: Sequence[Session]) -> Markup:
    """Bars over the seconds since the first one began; parts in the order of their first session."""
    if not sessions:
        return tag("p", "Nothing has run yet: there are no events.", class_="quiet")
    origin = min(s.start for s in sessions)
    found = stretches(sessions, origin)
    parts = list(dict.fromkeys(s.part for s in sessions))
    whole = duration(max(s.end for s in sessions) - origin)
    work = [s for s in sessions if not s.is_frame]
    said = f"{count(len(work), 'session')} of {count(len(parts), 'part')} in {whole}"
    pictures = [draw_timeline(sessions, found, origin, layout, said) for layout in LAYOUTS]
    rows: list[list[Child]] = [
        [s.part, duration(s.start - origin), duration(s.end - s.start), tag("span", s.text, class_=f"state {s.state}")]
        for s in sessions
    ]
    head = ["part", "began after", "lasted", "ended"]
    as_table = fold("as a table", table(head, rows, caption="Timeline: when each part ran"))
    cut = "; long pauses are cut short" if len(found) > 1 else ""
    caption = tag("figcaption", "When each part ran", tag("span", f" ({said}{cut})", class_="quiet"))
    return tag("figure", caption, pictures, as_table)


def draw_timeline(
    sessions: Sequence[Session], found: Sequence[Stretch], origin: float, layout: Layout, said: str
) -> Markup:
    """One drawing of all sessions. found: the stretches with work.  origin: when the first session began."""
    seconds = max(found[-1].at + found[-1].end - found[-1].start, 1e-3)
    parts = list(dict.fromkeys(s.part for s in sessions))
    height = TOP + layout.row * len(parts) + BOTTOM
    axis = Axis(0.0, seconds, max(layout.labels, FIRST), layout.width - RIGHT)
    drawn: list[Child] = [draw_ticks(found, axis, height - BOTTOM, tick_seconds(seconds, layout.ticks))]
    for row, part in enumerate(parts):
        y = TOP + layout.row * row + (layout.above / 2 + 3 if layout.above else layout.row / 2)
        drawn.append(tag("text", part, x=0, y=y, class_="mid strong"))
    for session in sorted(sessions, key=lambda s: not s.is_frame):
        stretch = next(s for s in reversed(found) if s.start <= session.start - origin + 1e-9)
        start = session.start - origin - stretch.start + stretch.at
        frames = (f for f in sessions if f.is_frame and f.part == session.part and f.start <= session.start <= f.end)
        clear = max((f.end for f in frames), default=session.end) - session.start + start
        drawn.append(bar(session, start, TOP + layout.row * parts.index(session.part), axis, clear, layout))
    box = f"0 0 {layout.width} {height}"
    look = f"chart {layout.name}"
    return tag("svg", tag("title", "Timeline"), drawn, viewBox=box, role="img", aria_label=said, class_=look)


def draw_ticks(found: Sequence[Stretch], axis: Axis, bottom: float, ticks: Sequence[float]) -> list[Child]:
    """Round times in the first stretch, and the beginning of every later one. ticks: of the whole drawing."""
    times = [(t, clock(t)) for t in ticks if len(found) == 1 or t <= found[0].end]
    times += [(s.at, f"+{duration(s.start)}") for s in found[1:]]
    drawn: list[Child] = []
    for at, text in times:
        x = pixel(axis.place(at))
        drawn.append(tag("line", x1=x, x2=x, y1=TOP, y2=bottom, class_="grid"))
        drawn.append(tag("text", text, x=x, y=bottom + 18, class_="tick center"))
    for before, after in pairwise(found):
        x = pixel((axis.place(before.at + before.end - before.start) + axis.place(after.at)) / 2)
        drawn.append(tag("text", "⋯", x=x, y=bottom + 4, class_="tick center"))
    return drawn


def bar(session: Session, start: float, top: float, axis: Axis, clear: float, layout: Layout) -> Markup:
    """One session's bar with its duration, inside where it fits and beside it where it does not.

    start: where it is drawn, in seconds.  top: of its part, in pixels.  clear: where the frame around it ends.
    """
    x, end = axis.place(start), axis.place(start + session.end - session.start)
    width = max(end - x, 3.0)
    y = top + layout.above + 6
    text = f"{duration(session.end - session.start)} · {session.text}"
    if session.is_frame:
        note = tag("title", f"{session.part}: {text}")
        at = {"x": pixel(x), "y": y - 3, "width": pixel(width), "height": BAR + 6}
        return tag("rect", note, rx=5, class_="bar idle", **at)
    middle = y + BAR / 2
    box = tag("rect", x=pixel(x), y=y, width=pixel(width), height=BAR, rx=4, class_=f"bar {session.state}")
    after = max(x + width, axis.place(clear)) + 6
    label = None
    for said in (text, duration(session.end - session.start)):
        room = 6.2 * len(said) + 12
        if room <= width:
            label = tag("text", said, x=pixel(x + 8), y=middle, class_="mid")
        elif after + room <= layout.width:
            label = tag("text", said, x=pixel(after), y=middle, class_="mid small")
        elif x - 6 - room >= layout.labels:
            label = tag("text", said, x=pixel(x - 6), y=middle, class_="mid small end")
        if label is not None:
            break
    return tag("g", tag("title", f"{session.part}: {text}"), box, label)


def tick_seconds(span: float, most: int = 8) -> list[float]:
    """Round clock times from 0 to the end. most: how many after the first."""
    step = next((float(s) for s in NICE_SECONDS if span / s <= most), 0.0) or 86400.0 * round_step(span / 86400 / most)
    if span < 2:
        step = round_step(span / min(most, 5))
    return [step * i for i in range(int(span / step) + 1)]


def clock(seconds: float) -> str:
    """A tick's label: 5 s, 2:30 min, 1:15 h."""
    if seconds < 60:
        return f"{seconds:g} s"
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d} h"
