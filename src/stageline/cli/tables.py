"""Plans, runs and metrics for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stageline.printing import one_line, say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from stageline.contract import Words
    from stageline.plan import Plan
    from stageline.verbs.compare import ComparisonRecord
    from stageline.work.evaluations import EvaluationRecord

COLOURS = {
    "run": "yellow",
    "continue": "cyan",
    "reuse": "green",
    "reuse (not selected)": "green",
    "depends": "magenta",
    "blocked": "red",
    "not selected": "dim",
    "not evaluated": "dim",
}


def console() -> Console:
    """Standard output; plain where it is no terminal."""
    from rich.console import Console

    wide = Console(highlight=False, emoji=False)
    return wide if wide.is_terminal else Console(highlight=False, emoji=False, width=160)


def cell(text: object) -> Text:
    """A text of others in a table, without markup and on one line."""
    from rich.text import Text

    return Text(one_line(text))


def show_plan(plan: Plan) -> None:
    """One row per item: action, steps, size, expected time, reasons."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "action", "steps", "parameters", "expected"):  # names of ours: no markup in them
        table.add_column(name, no_wrap=True)
    table.add_column("why", overflow="fold")
    for item in plan.items:
        why = Text("\n".join(map(one_line, (*item.reasons, *(f"-> {remedy}" for remedy in item.remedies)))))
        table.add_row(
            cell(item.name),
            Text(item.action, style=COLOURS[item.action]),
            _steps(item.steps, item.from_step),
            _parameters(item.parameters),
            f"{'~' if item.is_estimate else ''}{duration(item.seconds)}" if item.seconds is not None else "",
            why,
        )
    out = console()
    out.print(cell(f"plan of run {plan.run} ({plan.family}) at {plan.uri}"))
    out.print(table)


def show_notes(plan: Plan) -> None:
    """What stages take from their parents, section by section, and what the family says about the model."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "parent", "section", "outcome"):
        table.add_column(name, no_wrap=True)
    table.add_column("why", overflow="fold")
    for item in plan.items:
        for role, sections in item.sections.items():
            for section in sections:
                table.add_row(*map(cell, (item.name, role, section.section, section.outcome, section.reason)))
    if table.row_count:
        say("")
        console().print(table)
    if plan.notes:
        say("", *plan.notes)


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


def show_evaluation(record: EvaluationRecord, words: Words, title: str = "", limit: int | None = None) -> None:
    """Metric, value with its interval, and how many samples it is over; where there is no value, why.

    A metric in another mode (`dice_off` beside `dice`) and that of a trivial method stand in columns of their own. The
    family's main metrics come first. limit: how many rows at most; of the rest the number is said. Sentences below say
    where controls and trivial methods differ from the model by no more than noise.
    """
    metrics, counts = record.metrics, record.num_samples
    modes = [mode for mode in words.modes if any(is_of_mode(name, mode, metrics) for name in metrics)]
    bases = [name for name in metrics if not any(is_of_mode(name, mode, metrics) for mode in modes)]
    first = [name for name in words.main_metrics if name in bases]
    ordered = first + [name for name in bases if name not in first]
    if limit is not None:
        ordered = (first or ordered)[:limit]
    beside = _Beside(record, words)
    intervals = {name: interval for name in ordered if (interval := beside.interval(name, metrics[name]))}
    rows = []
    for name in ordered:
        digits = 3 if name in intervals else 4
        values = [_number(metrics[name], record.reasons.get(name, ""), digits)]
        values += [intervals.get(name, "")] if intervals else []
        values += [
            _number(metrics[f"{name}_{mode}"], "", digits) if f"{name}_{mode}" in metrics else "" for mode in modes
        ]
        values += [_number(s["metrics"][name], "", digits) if name in s["metrics"] else "" for s in beside.scores]
        rows.append((words.metrics.get(name, name), *values, str(counts.get(name, ""))))
    usual = next(iter(words.modes.values()), "value") if modes else "value"
    titles = [usual, *(["95 % interval"] if intervals else []), *(words.modes[mode] for mode in modes)]
    show_rows(("metric", *titles, *beside.names, "samples"), rows, title)
    if len(ordered) < len(bases):
        say(f"{len(bases) - len(ordered)} more in the report")
    for sentence in beside.sentences(next((name for name in first if metrics[name] is not None), "")):
        say(sentence)
    if record.labels:
        say(f"measured against {record.labels}")


class _Beside:
    """What lies beside the metrics of an evaluation: its rows, and the scores of trivial methods."""

    def __init__(self, record: EvaluationRecord, words: Words) -> None:
        from stageline.data.tables import csv_rows
        from stageline.errors import DataError
        from stageline.store import open_below
        from stageline.work.evaluations import ROWS, find_baselines

        self.words, store = words, open_below(record.reference.uri)
        # Rows of several checkpoints belong to metrics of other names.
        several = any(record.checkpoints)
        self.rows = csv_rows(store.get(ROWS).decode()) if store.exists(ROWS) and not several else []
        try:
            self.plain = find_baselines(store)
        except DataError as error:
            self.plain = {"failed": error.message}
        found: Mapping[str, Any] = self.plain.get("baselines", {}) if not several else {}
        self.baselines = found
        self.scores = list(found.values())
        self.names = [words.baselines.get(name, name) for name in found]

    def interval(self, metric: str, value: float | None) -> str:
        """Of the usual mode; "" for a metric that is no mean over rows."""
        from stageline.verbs.compare.samples import interval_of_metric, values_by_mode

        own = next(iter(values_by_mode(self.rows, metric, self.words).values()), {})
        found = None if value is None else interval_of_metric(value, own)
        return found.interval if found else ""

    def sentences(self, metric: str) -> Iterator[str]:
        """Where a difference in the main metric may be noise, and why there are no trivial methods."""
        from stageline.verbs.compare.samples import baseline_contrasts, contrasts, values_by_mode

        modes, name = values_by_mode(self.rows, metric, self.words), self.words.metrics.get(metric, metric)
        for kind, found in (
            ("effect", contrasts(modes, self.words)),
            ("gain", baseline_contrasts(metric, modes, self.baselines, self.words)),
        ):
            for one in found:
                what = f"{one.name} ({name} differs by {one.difference.mean:+.3f}; {one.difference.interval})"
                if one.difference.low is None:
                    yield f"{kind} against {what}"
                elif one.may_be_noise:
                    yield f"no {kind} beyond noise against {what}"
                elif kind == "gain" and one.is_worse(metric, self.words):
                    yield f"better than the model: {what}"
        if why := self.plain.get("off") or self.plain.get("failed"):
            yield f"no trivial methods: {why}"


def show_comparison(comparison: ComparisonRecord, words: Words) -> None:
    """What both sides are, and every difference with its interval and what it shows. words: the family's."""
    from stageline.verbs.compare.about import caption, values_of

    rows = []
    for found in comparison.differences:
        name = words.metrics.get(found.metric, found.metric)
        title = f"{name} ({words.modes.get(found.mode, found.mode)})" if found.mode else name
        numbers = (found.a, found.b, found.difference, found.low, found.high)
        rows.append((title, *map(_number, numbers), str(found.rows), found.verdict))
    for side in ("a", "b"):
        told = comparison.plain[side]
        say(f"{side.upper()}: run {told['run']}, {told['stage']} at step {told['step']}: {told['evaluation']}")
    plain = comparison.plain
    known = values_of(plain["a"], plain["b"])
    if known:
        told_rows = [
            (caption(name, words), *map(_told, values), _told(plain["ratios"].get(name), ""))
            for name, values in known.items()
        ]
        show_rows(("", "A", "B", "B / A"), told_rows)
    for side in ("a", "b"):
        for sentence in plain[side]["unknown"]:
            say(f"not known of {side.upper()}: {sentence}")
    show_rows(("metric", "A", "B", "B - A", "from", "to", "samples", "what is shown"), rows)
    settings, left_out = comparison.plain["settings"], comparison.plain["left_out"]
    say(f"from, to: {settings['level']:.0%} interval, paired bootstrap, {settings['resamples']} draws")
    if any(left_out.values()):
        say(f"left out, since only one has them: {left_out['a']} rows of A, {left_out['b']} of B")


def _told(value: Any, absent: str = "none") -> str:
    """A value of a comparison: numbers with four digits."""
    if value is None:
        return absent
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def is_of_mode(name: str, mode: str, metrics: Mapping[str, Any]) -> bool:
    """Whether a metric is another metric's value in a mode: `dice_off` beside `dice`."""
    return name.endswith(f"_{mode}") and name.removesuffix(f"_{mode}") in metrics


def _number(value: float | None, reason: str = "", digits: int = 4) -> str:
    if value is None:
        return f"none ({reason})" if reason else "none"
    return f"{value:.{digits}f}" if isinstance(value, float) and not value.is_integer() else f"{value:g}"


def show_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A plain table. No cell, heading or title is read as markup, and each is one line."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(cell(column))
    for row in rows:
        table.add_row(*map(cell, row))
    out = console()
    for line in title.split("\n") if title else ():
        out.print(cell(line))
    out.print(table)
