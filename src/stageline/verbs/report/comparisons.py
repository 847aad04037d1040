"""Comparisons of this run's evaluations with others, as `stageline compare` left them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stageline.contract import Words
from stageline.verbs.compare.about import caption, values_of
from stageline.verbs.report.html import Child, fold, number, plain, table, tag
from stageline.verbs.report.measurements import measure
from stageline.verbs.report.record import Json, mapping


def comparisons_part(comparisons: Sequence[Json], words: Words) -> list[Child]:
    """One table per comparison. words: the family's."""
    return [part for comparison in comparisons for part in comparison_part(comparison, words)]


def comparison_part(comparison: Json, words: Words) -> Iterator[Child]:
    """Who was compared, differences with their intervals, how it was done."""
    sides = {side: mapping(comparison.get(side)) for side in ("a", "b")}
    yield tag("h3", " and ".join(side_of(side) for side in sides.values()))
    settings = mapping(comparison.get("settings"))
    yield tag(
        "p",
        f"A is {side_of(sides['a'])}, B is {side_of(sides['b'])}. The difference is B - A over the samples that both "
        f"have; its {percent(settings.get('level'))} interval is of a paired bootstrap over samples. Where it holds 0, "
        "no difference is shown.",
    )
    known = values_of(*sides.values())
    if known:
        ratios = mapping(comparison.get("ratios"))
        told_rows: list[list[Child]] = [
            [caption(name, words), *map(plain, values), number(ratios[name]) if name in ratios else ""]
            for name, values in known.items()
        ]
        yield table(["", "A", "B", "B / A"], told_rows, caption="What was compared, and what it took")
    for side, entry in sides.items():
        for sentence in entry.get("unknown") or ():
            yield tag("p", f"Not known of {side.upper()}: {sentence}", class_="quiet")
    rows: list[list[Child]] = []
    for entry in comparison.get("metrics") or ():
        found = mapping(entry)
        mode = str(found.get("mode") or "")
        name = words.metrics.get(str(found.get("metric")), str(found.get("metric")))
        title = f"{name} ({words.modes.get(mode, mode)})" if mode else name
        numbers: list[Child] = [measure(found.get(key)) for key in ("a", "b", "difference", "low", "high")]
        rows.append([title, *numbers, plain(found.get("rows")), str(found.get("verdict", ""))])
    heads: list[Child] = ["metric", "A", "B", "B - A", "from", "to", "samples", "what is shown"]
    yield table(heads, rows, caption="Differences with their intervals", class_="numbers")
    told: list[list[Child]] = [[name, plain(value)] for name, value in settings.items()]
    for side, entry in sides.items():
        own = {key: value for key, value in entry.items() if key not in ("about", "training", "unknown")}
        told += [[f"{key} of {side.upper()}", plain(value)] for key, value in own.items()]
    yield fold("how it was compared", table(["what", "value"], told, caption="What was compared, and how"))


def side_of(side: Mapping[str, Any]) -> str:
    """One side in a few words."""
    return f"{side.get('run', '?')}, {side.get('stage', '?')} at step {side.get('step', '?')}"


def percent(level: Any) -> str:
    """0.95 -> 95 %."""
    return f"{100 * level:g} %" if isinstance(level, int | float) else "?"
