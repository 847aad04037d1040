"""What was measured: metric tables with counts and provenance."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stageline.contract import Words
from stageline.verbs.compare.samples import interval_of_metric
from stageline.verbs.report.baselines import baselines_of, baselines_told
from stageline.verbs.report.html import Child, Markup, fold, interval_cell, measured, number, plain, size, table, tag
from stageline.verbs.report.overview import by_mode, cases_part
from stageline.verbs.report.record import EvaluationRecord, mapping

Json = Mapping[str, Any]
MAIN_METRICS = 10
"""Rows that are shown of a family that names no main metrics; the rest is folded."""
TOLD = {"split": "split", "weights": "weights", "labels": "labels"}
"""What is told before the numbers of a family that names nothing."""
PSEUDO = "pseudo"
TOLD_APART, MAX_SAID = 3, 40
"""Settings that a heading tells to tell evaluations apart; longest text of one of them."""


def metrics_part(evaluations: Sequence[EvaluationRecord], words: Words) -> list[Child]:
    """One table per evaluation; nothing without one."""
    titles = titles_of(evaluations, words)
    return [
        part
        for record, title in zip(evaluations, titles, strict=True)
        for part in evaluation_part(record, words, title)
    ]


def evaluation_part(record: EvaluationRecord, words: Words, title: str) -> Iterator[Child]:
    """Heading, what a reader has to be warned of, metrics, provenance."""
    provenance = provenance_of(record)
    yield tag("h3", title)
    if is_pseudo(record.metrics):
        yield warning(
            "Pseudo-label.",
            "The reference was made by a program, not by a person. These numbers say how well the model repeats that "
            "program; they are no accuracy.",
        )
    for name, sentence in words.cautions.items():
        if provenance.get(name):
            yield warning(f"{name.replace('_', ' ').capitalize()}.", sentence)
    warnings = provenance.get("warnings")
    if isinstance(warnings, list):
        yield from (warning("Note.", str(text)) for text in warnings)
    notes = record.metrics.get("notes")
    if isinstance(notes, list) and notes:
        yield tag("ul", [tag("li", str(note)) for note in notes])
    told = words.told or TOLD
    yield tag("p", "; ".join(f"{word} {said(provenance[key])}" for key, word in told.items() if key in provenance))
    yield metrics_tables(record, words)
    yield cases_part(record, words)
    rows: list[list[Child]] = [[name, plain(value)] for name, value in provenance.items() if name != "warnings"]
    rows += baselines_told(record, words)
    rows += [[name, tag("code", value)] for name, value in references_of(record)]
    yield fold("how it was measured", table(["what", "value"], rows, caption="Provenance"))
    if record.files:
        listed: list[list[Child]] = [
            [name, str(entry.get("type", "")), size(float(entry.get("bytes", 0)))]
            for name, entry in record.files.items()
        ]
        yield fold("its other files", table(["file", "type", "size"], listed, caption="Files beside the metrics"))


def warning(word: str, text: str) -> Markup:
    """A box that stands before the numbers it is about."""
    return tag("div", tag("p", tag("strong", word), f" {text}"), class_="box warn")


def said(value: Any) -> str:
    """A value of the provenance in one line of text."""
    return str(list(value)) if isinstance(value, list) else str(value)


def title_of(record: EvaluationRecord, words: Words) -> str:
    """What was evaluated, on what kind of labels."""
    checkpoint = record.metrics.get("checkpoint")
    name = "Evaluation"
    if isinstance(checkpoint, Mapping) and checkpoint.get("stage"):
        name = f"{checkpoint['stage']} at step {checkpoint.get('step', '?')}"
    mode = words.modes.get(str(provenance_of(record).get(words.mode_field)))
    said = [word for word in (mode, f"{PSEUDO}-label" if is_pseudo(record.metrics) else None) if word]
    whole = f"{name} ({', '.join(said)})" if said else name
    return f"{record.name}: {whole}" if record.name else whole


def titles_of(evaluations: Sequence[EvaluationRecord], words: Words) -> list[str]:
    """A heading for each; those that would read alike also tell the settings in which they differ."""
    plain_titles = [title_of(record, words) for record in evaluations]
    found = []
    for record, title in zip(evaluations, plain_titles, strict=True):
        alike = [other for other, same in zip(evaluations, plain_titles, strict=True) if same == title]
        told = [
            f"{key.replace('_', ' ')} {said(value)}"
            for key, value in sorted(settings_of(record).items())
            if any(settings_of(other).get(key) != value for other in alike)
        ]
        more = f", {len(told) - TOLD_APART} more" if len(told) > TOLD_APART else ""
        found.append(f"{title}: {', '.join(told[:TOLD_APART])}{more}" if told else title)
    return found


def settings_of(record: EvaluationRecord) -> Json:
    """Flat settings and provenance of an evaluation whose values fit into a line."""
    both = dict(flat(mapping(record.metrics.get("settings")))) | dict(flat(provenance_of(record)))
    return {key: value for key, value in both.items() if len(said(value)) <= MAX_SAID and key != "warnings"}


def provenance_of(record: EvaluationRecord) -> Json:
    """The evaluation's own account of how it was made."""
    found = record.metrics.get("provenance")
    return found if isinstance(found, Mapping) else {}


def references_of(record: EvaluationRecord) -> Iterator[tuple[str, str]]:
    """Checkpoint and data by URI and digest, and the evaluation's own name."""
    for name in ("checkpoint", "data"):
        found = record.metrics.get(name)
        if isinstance(found, Mapping) and found.get("uri"):
            yield name, f"{found['uri']}@sha256:{found.get('digest', '')}"
    yield "evaluation", record.fingerprint


def is_pseudo(metrics: Json) -> bool:
    """Whether an evaluation's provenance says that its labels are pseudo-labels; a path that says so does not count."""
    return PSEUDO in str(mapping(metrics.get("provenance")).get("labels", "")).lower()


def metrics_tables(record: EvaluationRecord, words: Words) -> Markup:
    """Metrics as rows, modes and trivial methods as columns, the number of samples last; all but the main ones folded.

    A metric that is a mean over its samples has its 95 % interval in the usual mode, and no more digits than that."""
    cells, modes = metric_cells(record.metrics.get("metrics"), words)
    counts, reasons = record.metrics.get("num_samples"), record.metrics.get("reasons")
    why = reasons if isinstance(reasons, Mapping) else {}
    suffix = f" ({PSEUDO}-label)" if is_pseudo(record.metrics) else ""
    main = [name for name in words.main_metrics if name in cells] or list(cells)[:MAIN_METRICS]
    trivial, intervals = baselines_of(record), intervals_of(record, {name: cells[name] for name in main}, words)
    rows: dict[str, list[Child]] = {}
    for name in main + [name for name in cells if name not in main]:
        digits = 3 if name in intervals else 4
        shown: list[Child] = [
            measure(cells[name][mode], why.get(name, ""), digits) if mode in cells[name] else "" for mode in modes
        ]
        shown[1:1] = [intervals.get(name, "")] if intervals else []
        shown += [measure(v, "", digits) if (v := s["metrics"].get(name)) is not None else "" for s in trivial.values()]
        rows[name] = [words.metrics.get(name, name) + suffix, *shown, sample_count(counts, name)]
    titles: list[Child] = [words.modes.get(mode, "value") for mode in modes]
    titles[1:1] = ["95 % interval"] if intervals else []
    heads: list[Child] = ["metric", *titles, *(words.baselines.get(name, name) for name in trivial), "samples"]
    first, rest = [rows[name] for name in main], [row for name, row in rows.items() if name not in main]
    parts: list[Child] = [table(heads, first, caption="Metrics" + suffix, class_="numbers")]
    if rest:
        more = table(heads, rest, caption="More metrics" + suffix, class_="numbers")
        parts.append(fold(f"{len(rest)} more metrics", more))
    return tag("div", parts)


def intervals_of(record: EvaluationRecord, cells: Mapping[str, Mapping[str, Any]], words: Words) -> dict[str, Child]:
    """Metric -> interval of its usual mode, of those that are means over samples. cells: metric -> mode -> value."""
    found: dict[str, Child] = {}
    usual = next(iter(words.modes), "")
    for name, by_modes in cells.items():
        value = by_modes.get(usual, by_modes.get(""))
        values = next(iter(by_mode(record, name, words).values()), {})
        one = interval_of_metric(float(value), values) if isinstance(value, int | float) else None
        if one is not None:
            found[name] = interval_cell(one.low, one.interval)
    return found


def measure(value: Any, reason: Any = "", decimals: int = 4) -> Markup:
    """A metric with so many decimals, so that columns line up; whole numbers from 10 on are counts.

    reason: why there is no value, where there is none.
    """
    if value is None:
        return tag("span", f"none ({reason})" if reason else "none", class_="quiet")
    return measured(value, decimals) if isinstance(value, float) else number(value)


def metric_cells(metrics: Any, words: Words) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """{"a": 1, "a_off": 2} -> ({"a": {"on": 1, "off": 2}}, ["on", "off"]); one column "" without modes.

    A nested mapping counts as modes where its keys are modes, else its keys are joined with a dot. words: the family's;
    their first mode is that of a metric without one.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, value in flat(metrics if isinstance(metrics, Mapping) else {}):
        mode = next((m for m in words.modes if re.fullmatch(rf".+[/._]{re.escape(m)}", name)), "")
        found.setdefault(name[: -len(mode) - 1] if mode else name, {})[mode] = value
    has_modes = any(mode for by_mode in found.values() for mode in by_mode)
    if has_modes:
        usual = next(iter(words.modes))
        found = {base: {mode or usual: value for mode, value in by_mode.items()} for base, by_mode in found.items()}
    modes = [mode for mode in ("", *words.modes) if any(mode in by_mode for by_mode in found.values())]
    return found, modes


def flat(value: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings with dotted names."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def sample_count(counts: Any, name: str) -> Child:
    """How many samples a metric is over."""
    if isinstance(counts, Mapping):
        match = next((counts[key] for key in (name, name.split(".")[0], "samples", "all") if key in counts), None)
        return number(match) if match is not None else ""
    return number(counts) if counts is not None else ""
