"""What is told first: the main result with its interval, what the conditions do, time and hardware; and each sample.

Intervals are those of `verbs.compare.samples` over the samples of the evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stageline.contract import Words
from stageline.data.shown import notable, ranked
from stageline.verbs.compare.bootstrap import ONE, as_number
from stageline.verbs.compare.samples import contrasts, interval_of_metric, values_by_mode
from stageline.verbs.report.baselines import baseline_part, baselines_of
from stageline.verbs.report.html import (
    Child,
    Markup,
    clipped,
    count,
    duration,
    fold,
    interval_cell,
    measured,
    table,
    tag,
)
from stageline.verbs.report.record import EvaluationRecord, RunRecord, mapping

Row = Mapping[str, str]
MAX_CASES = 200
"""Samples listed one by one; the rest stands in rows.csv."""


def main_evaluation(record: RunRecord) -> EvaluationRecord | None:
    """The evaluation that is told first: of the run's last stage and of its newest step."""
    order = [stage.name.split("/")[0] for stage in record.stages]

    def rank(found: EvaluationRecord) -> tuple[int, int]:
        told = mapping(found.metrics.get("checkpoint"))
        stage, step = told.get("stage"), told.get("step")
        return (order.index(stage) if stage in order else -1, step if isinstance(step, int) else 0)

    return max(record.evaluations, key=rank, default=None)


def main_metric(evaluation: EvaluationRecord, words: Words) -> str:
    """The first of the family's main metrics that has a value; "" for none."""
    values = mapping(evaluation.metrics.get("metrics"))
    return next((name for name in words.main_metrics if isinstance(values.get(name), int | float)), "")


def by_mode(evaluation: EvaluationRecord, metric: str, words: Words) -> dict[str, dict[str, float]]:
    """Mode -> sample -> value of a metric, the usual mode first; rows of a sample without a number are left out."""
    return values_by_mode(evaluation.rows, metric, words)


def overview_part(record: RunRecord) -> Markup | None:
    """Three cards side by side: result, effect of the conditions, time and hardware; those of which nothing is known
    are left out."""
    evaluation = main_evaluation(record)
    cards = [result_card(record, evaluation), effect_card(evaluation, record.words), time_card(record)]
    shown = [card for card in cards if card is not None]
    return tag("div", shown, class_="cards") if shown else None


def card(title: str, value: Child, *lines: Child, more: Child = None) -> Markup:
    """One card: what, how much, and what there is to say about it. more: below that."""
    said = [tag("p", line) for line in lines if line]
    return tag("section", tag("h2", title), tag("p", value, class_="figure"), said, more, class_="card")


def result_card(record: RunRecord, evaluation: EvaluationRecord | None) -> Markup | None:
    """The main metric with its interval, beside trivial methods; before an evaluation, the last stage's best of
    validation."""
    words = record.words
    if evaluation is not None and (metric := main_metric(evaluation, words)):
        value = float(mapping(evaluation.metrics.get("metrics"))[metric])
        name = words.metrics.get(metric, metric)
        lines: list[Child] = []
        modes = by_mode(evaluation, metric, words)
        values = next(iter(modes.values()), {})
        if values:
            found = interval_of_metric(value, values)
            lines.append(f"{found.interval} (95 % interval)" if found else ONE if len(values) == 1 else "")
            lines.append(f"over {count(len(values), 'sample')}")
        trivial = baseline_part(evaluation, metric, modes, words)
        return card(f"Result: {name}", measured(value, 3), *lines, more=trivial)
    for stage in reversed(record.stages):
        best = stage.last.metadata.best if stage.last else None
        if best is not None:
            return card(
                f"Best of validation: {best.metric}", measured(best.value, 3), f"{stage.name}, step {best.step}"
            )
    return None


def effect_card(evaluation: EvaluationRecord | None, words: Words) -> Markup | None:
    """What the usual mode gains over each of its controls, sample by sample; None without controls."""
    if evaluation is None or not (metric := main_metric(evaluation, words)):
        return None
    modes = by_mode(evaluation, metric, words)
    found = contrasts(modes, words)
    rows: list[list[Child]] = [
        [one.name, f"{one.difference.mean:+.3f}", interval_cell(one.difference.low, one.difference.interval)]
        for one in found
    ]
    none_shown = [one.may_be_noise for one in found]
    usual = next(iter(modes), "")
    if not rows:
        return None
    name, own = words.metrics.get(metric, metric), words.modes.get(usual, usual)
    worth = "higher" if metric in words.higher_is_better else "lower"
    said = f"{name} with “{own}” minus what it is compared with; {worth} is better."
    verdict = (
        "No effect beyond noise is shown."
        if all(none_shown)
        else "Where an interval holds 0, no effect beyond noise is shown."
        if any(none_shown)
        else ""
    )
    titled = table(["compared with", "difference", "95 % interval"], rows, caption="Sample by sample", class_="numbers")
    return tag("section", tag("h2", f"Effect of “{own}”"), tag("p", said), titled, tag("p", verdict), class_="card")


def time_card(record: RunRecord) -> Markup | None:
    """Seconds of training in all and stage by stage, and on what."""
    times: list[tuple[str, float]] = []
    hardware: dict[str, None] = {}
    for stage in record.stages:
        if stage.last is None:
            continue
        seconds = stage.last.metadata.timing.get("seconds")
        if seconds is not None:
            times.append((stage.name, float(seconds)))
        told: Mapping[str, Any] = stage.last.metadata.environment
        ranks = told.get("ranks")
        device = str(told.get("device_name") or told.get("device") or "")
        if device:
            hardware[f"{count(ranks, 'rank')} on {device}" if isinstance(ranks, int) else device] = None
    if not times:
        return None
    each = ", ".join(f"{name} {duration(seconds)}" for name, seconds in times)
    return card("Training time", duration(sum(seconds for _, seconds in times)), each, "; ".join(hardware))


def cases_part(evaluation: EvaluationRecord, words: Words) -> Markup | None:
    """Every sample with its main metrics in the usual mode, best first, folded; None where rows have no numbers."""
    metric = main_metric(evaluation, words)
    usual = next(iter(by_mode(evaluation, metric, words)), "") if metric else ""
    order = ranked_samples(evaluation, words)
    if not order:
        return None
    own = {row["id"]: row for row in evaluation.rows if row.get("id") and (row.get("mode") or usual) == usual}
    names = [name for name in words.main_metrics if any(as_number(row.get(name)) is not None for row in own.values())]
    trivial = baselines_of(evaluation)
    rows: list[list[Child]] = []
    for name in order[:MAX_CASES]:
        values = [as_number(own[name].get(key)) for key in names]
        values += [as_number(str(scores["rows"].get(name, {}).get(metric, ""))) for scores in trivial.values()]
        rows.append([clipped(name), *("" if value is None else measured(value, 3) for value in values)])
    more = f"; the other {len(order) - MAX_CASES} stand in rows.csv" if len(order) > MAX_CASES else ""
    titles = ["sample", *(words.metrics.get(name, name) for name in names)]
    titles += [f"{words.metrics.get(metric, metric)} of {words.baselines.get(name, name)}" for name in trivial]
    best_first = f"{count(len(order), 'sample')}, best {words.metrics.get(metric, metric)} first{more}"
    return fold("sample by sample", table(titles, rows, caption=best_first, class_="numbers"))


def ranked_samples(evaluation: EvaluationRecord, words: Words) -> list[str]:
    """Ids of the samples by their main metric in the usual mode, best first; equal ones in their order."""
    metric = main_metric(evaluation, words)
    return ranked(main_values(evaluation, words), higher_is_better=metric in words.higher_is_better)


def notable_samples(evaluation: EvaluationRecord, words: Words) -> dict[str, str]:
    """Sample -> best, median or worst by the main metric; nothing below three samples."""
    metric = main_metric(evaluation, words)
    return notable(main_values(evaluation, words), higher_is_better=metric in words.higher_is_better)


def main_values(evaluation: EvaluationRecord, words: Words) -> dict[str, float]:
    """Sample -> its main metric in the usual mode."""
    metric = main_metric(evaluation, words)
    return next(iter(by_mode(evaluation, metric, words).values()), {}) if metric else {}
