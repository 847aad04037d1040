"""The stage timeline: one bar per session of every part of a run, as SVG and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from stageline.verbs.report.chart import Axis, pixel, round_step
from stageline.verbs.report.html import Child, Markup, count, duration, fold, table, tag

WIDTH, ROW, TOP, BOTTOM, LABELS, RIGHT = 1120, 34, 8, 34, 190, 24
NICE_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


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
    drawn_seconds = max(found[-1].at + found[-1].end - found[-1].start, 1e-3)
    parts = list(dict.fromkeys(s.part for s in sessions))
    height = TOP + ROW * len(parts) + BOTTOM
    axis = Axis(0.0, drawn_seconds, LABELS, WIDTH - RIGHT)
    drawn: list[Child] = [draw_ticks(found, axis, height - BOTTOM, drawn_seconds)]
    for row, part in enumerate(parts):
        drawn.append(tag("text", part, x=0, y=TOP + ROW * row + ROW / 2, class_="mid strong"))
    for session in sorted(sessions, key=lambda s: not s.is_frame):
        stretch = next(s for s in reversed(found) if s.start <= session.start - origin + 1e-9)
        start = session.start - origin - stretch.start + stretch.at
        frames = (f for f in sessions if f.is_frame and f.part == session.part and f.start <= session.start <= f.end)
        clear = max((f.end for f in frames), default=session.end) - session.start + start
        drawn.append(bar(session, start, parts.index(session.part), axis, clear))
    whole = duration(max(s.end for s in sessions) - origin)
    work = [s for s in sessions if not s.is_frame]
    said = f"{count(len(work), 'session')} of {count(len(parts), 'part')} in {whole}"
    box = f"0 0 {WIDTH} {height}"
    picture = tag("svg", tag("title", "Timeline"), drawn, viewBox=box, role="img", aria_label=said, class_="chart")
    rows: list[list[Child]] = [
        [s.part, duration(s.start - origin), duration(s.end - s.start), tag("span", s.text, class_=f"state {s.state}")]
        for s in sessions
    ]
    head = ["part", "began after", "lasted", "ended"]
    as_table = fold("as a table", table(head, rows, caption="Timeline: when each part ran"))
    cut = "; long pauses are cut short" if len(found) > 1 else ""
    caption = tag("figcaption", "When each part ran", tag("span", f" ({said}{cut})", class_="quiet"))
    return tag("figure", caption, picture, as_table)


def draw_ticks(found: Sequence[Stretch], axis: Axis, bottom: float, seconds: float) -> list[Child]:
    """Round times in the first stretch, and the beginning of every later one. seconds: the whole drawing."""
    times = [(t, clock(t)) for t in tick_seconds(seconds) if len(found) == 1 or t <= found[0].end]
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


def bar(session: Session, start: float, row: int, axis: Axis, clear: float) -> Markup:
    """One session's bar with its duration, inside where it fits and beside it where it does not.

    start: where it is drawn, in seconds.  clear: where the frame around it ends.
    """
    x, end = axis.place(start), axis.place(start + session.end - session.start)
    width = max(end - x, 3.0)
    y = TOP + ROW * row + 6
    text = f"{duration(session.end - session.start)} · {session.text}"
    if session.is_frame:
        note = tag("title", f"{session.part}: {text}")
        at = {"x": pixel(x), "y": y - 3, "width": pixel(width), "height": ROW - 6}
        return tag("rect", note, rx=5, class_="bar idle", **at)
    room = 6.2 * len(text) + 12
    middle = y + (ROW - 12) / 2
    box = tag("rect", x=pixel(x), y=y, width=pixel(width), height=ROW - 12, rx=4, class_=f"bar {session.state}")
    if room <= width:
        label = tag("text", text, x=pixel(x + 8), y=middle, class_="mid")
    elif (after := max(x + width, axis.place(clear)) + 6) + room <= WIDTH:
        label = tag("text", text, x=pixel(after), y=middle, class_="mid small")
    else:
        label = tag("text", text, x=pixel(x - 6), y=middle, class_="mid small end")
    return tag("g", tag("title", f"{session.part}: {text}"), box, label)


def tick_seconds(span: float) -> list[float]:
    """Round clock times from 0 to the end, at most nine."""
    step = next((float(s) for s in NICE_SECONDS if span / s <= 8), 0.0) or 86400.0 * round_step(span / 86400 / 8)
    if span < 2:
        step = round_step(span / 5)
    return [step * i for i in range(int(span / step) + 1)]


def clock(seconds: float) -> str:
    """A tick's label: 5 s, 2:30 min, 1:15 h."""
    if seconds < 60:
        return f"{seconds:g} s"
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d} h"
