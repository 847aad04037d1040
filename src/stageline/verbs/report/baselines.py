"""An evaluation beside trivial methods on the same data, as `evaluate` left their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stageline.contract import Words
from stageline.verbs.compare.samples import ByMode, baseline_contrasts
from stageline.verbs.report.html import Child, interval_cell, plain, table, tag
from stageline.verbs.report.record import EvaluationRecord, mapping


def baselines_of(evaluation: EvaluationRecord) -> Mapping[str, Any]:
    """Name -> scores."""
    return mapping(evaluation.baselines.get("baselines"))


def baseline_part(evaluation: EvaluationRecord, metric: str, modes: ByMode, words: Words) -> list[Child]:
    """What the model gains over each trivial method, or why there is none; nothing where nobody asked for any.

    metric: the main one.  modes: its values.
    """
    if why := evaluation.baselines.get("off") or evaluation.baselines.get("failed"):
        return [tag("p", f"Trivial methods were not measured: {why}.")]
    found = baseline_contrasts(metric, modes, baselines_of(evaluation), words)
    if not found:
        return []
    rows: list[list[Child]] = [
        [
            one.name,
            f"{one.other.mean:.3f}",
            f"{one.difference.mean:+.3f}",
            interval_cell(one.difference.low, one.difference.interval),
        ]
        for one in found
    ]
    name = words.metrics.get(metric, metric)
    heads = ["method", name, "gain", "95 % interval"]
    noise = [one.name for one in found if one.may_be_noise]
    worse = [one.name for one in found if one.is_worse(metric, words)]
    said = [f"No gain beyond noise over: {', '.join(noise)}."] if noise else []
    said += [f"Better than the model: {', '.join(worse)}."] if worse else []
    shown = table(heads, rows, caption="Gain over trivial methods, sample by sample", class_="numbers")
    return [shown, *(tag("p", sentence) for sentence in said)]


def baselines_told(evaluation: EvaluationRecord, words: Words) -> list[list[Child]]:
    """Rows that say how each trivial method was made."""
    return [
        [words.baselines.get(name, name), plain(mapping(scores.get("told")))]
        for name, scores in baselines_of(evaluation).items()
    ]
