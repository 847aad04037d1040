"""What was measured: metric tables with counts and provenance, and the pictures that go with them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stageline.verbs.report.html import Child, Markup, fold, number, plain, table, tag
from stageline.verbs.report.pictures import Picture, gallery
from stageline.verbs.report.record import EvaluationRecord

Json = Mapping[str, Any]
MODES = {"on": "FiLM on", "off": "FiLM off", "shuffle": "conditions shuffled", "swapped": "prompts swapped"}
"""Names of the ways an evaluation may run the model, as metric suffixes, and in words."""
TOLD = {
    "film_stages_active": "decoder stages active:",
    "film_stages_origin": "known from",
    "film_mode": "FiLM",
    "nfe": "network evaluations (NFE)",
    "solver": "solver",
    "split": "split",
    "weights": "weights",
    "labels": "labels",
}
"""Fields of the provenance that are told before the numbers, where they are there."""
MAIN_METRICS = 12
_WITH_MODE = re.compile(rf"^(?P<base>.+?)[/._](?P<mode>{'|'.join(MODES)})$")
PSEUDO = "pseudo"


def metrics_part(evaluations: Sequence[EvaluationRecord]) -> list[Child]:
    """One table per evaluation."""
    if not evaluations:
        return [tag("p", "Nothing has been evaluated.", class_="quiet")]
    return [part for record in evaluations for part in evaluation_part(record)]


def evaluation_part(record: EvaluationRecord) -> Iterator[Child]:
    """Heading, what a reader has to be warned of, metrics, provenance."""
    provenance = provenance_of(record)
    yield tag("h3", title_of(record))
    if is_pseudo(record.metrics):
        yield warning(
            "Pseudo-label.",
            "The reference was made by a program, not by a person. These numbers say how well the model repeats that "
            "program; they are no accuracy.",
        )
    if provenance.get("ablation"):
        yield warning("Ablation.", "Not all trained decoder stages were active.")
    if provenance.get("oracle"):
        yield warning("Oracle.", "The evaluation was given part of the truth.")
    warnings = provenance.get("warnings")
    if isinstance(warnings, list):
        yield from (warning("Note.", str(text)) for text in warnings)
    notes = record.metrics.get("notes")
    if isinstance(notes, list) and notes:
        yield tag("ul", [tag("li", str(note)) for note in notes])
    yield tag("p", "; ".join(f"{word} {said(provenance[key])}" for key, word in TOLD.items() if key in provenance))
    yield metrics_tables(record)
    rows: list[list[Child]] = [[name, plain(value)] for name, value in provenance.items() if name != "warnings"]
    rows += [[name, tag("code", value)] for name, value in references_of(record)]
    yield fold("how it was measured", table(["what", "value"], rows, caption="Provenance"))


def warning(word: str, text: str) -> Markup:
    """A box that stands before the numbers it is about."""
    return tag("div", tag("p", tag("strong", word), f" {text}"), class_="box warn")


def said(value: Any) -> str:
    """A value of the provenance in one line of text."""
    return str(list(value)) if isinstance(value, list) else str(value)


def title_of(record: EvaluationRecord) -> str:
    """What was evaluated, on what kind of labels."""
    checkpoint = record.metrics.get("checkpoint")
    name = "Evaluation"
    if isinstance(checkpoint, Mapping) and checkpoint.get("stage"):
        name = f"{checkpoint['stage']} at step {checkpoint.get('step', '?')}"
    mode = provenance_of(record).get("film_mode")
    said = [word for word in (MODES.get(str(mode)), f"{PSEUDO}-label" if is_pseudo(record.metrics) else None) if word]
    return f"{name} ({', '.join(said)})" if said else name


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


def is_pseudo(value: Any) -> bool:
    """Whether anything in the record says that its labels are pseudo-labels."""
    if isinstance(value, str):
        return PSEUDO in value.lower()
    if isinstance(value, Mapping):
        return any(is_pseudo(item) for item in value.values())
    if isinstance(value, list):
        return any(is_pseudo(item) for item in value)
    return False


def metrics_tables(record: EvaluationRecord) -> Markup:
    """Metrics as rows, modes as columns, the number of samples last; beyond MAIN_METRICS folded."""
    cells, modes = metric_cells(record.metrics.get("metrics"))
    counts = record.metrics.get("num_samples")
    suffix = f" ({PSEUDO}-label)" if is_pseudo(record.metrics) else ""
    rows: list[list[Child]] = []
    for name, by_mode in cells.items():
        shown: list[Child] = [measure(by_mode[mode]) if mode in by_mode else "" for mode in modes]
        rows.append([name + suffix, *shown, sample_count(counts, name)])
    heads: list[Child] = ["metric", *(MODES.get(mode, "value") for mode in modes), "samples"]
    parts: list[Child] = [table(heads, rows[:MAIN_METRICS], caption="Metrics" + suffix, class_="numbers")]
    if len(rows) > MAIN_METRICS:
        more = table(heads, rows[MAIN_METRICS:], caption="More metrics" + suffix, class_="numbers")
        parts.append(fold(f"{len(rows) - MAIN_METRICS} more metrics", more))
    return tag("div", parts)


def measure(value: Any) -> Markup:
    """A metric with four decimals, so that columns line up; whole numbers from 10 on are counts."""
    if isinstance(value, float) and math.isfinite(value) and not (value.is_integer() and abs(value) >= 10):
        return tag("data", f"{value:.4f}", value=json.dumps(value))
    return number(value)


def metric_cells(metrics: Any) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """{"dice": 1, "dice_off": 2} -> ({"dice": {"on": 1, "off": 2}}, ["on", "off"]); one column "" without modes.

    A nested mapping counts as modes where its keys are modes, else its keys are joined with a dot.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, value in flat(metrics if isinstance(metrics, Mapping) else {}):
        match = _WITH_MODE.match(name)
        base, mode = (match["base"], match["mode"]) if match else (name, "")
        found.setdefault(base, {})[mode] = value
    has_modes = any(mode for by_mode in found.values() for mode in by_mode)
    if has_modes:
        found = {base: {mode or "on": value for mode, value in by_mode.items()} for base, by_mode in found.items()}
    modes = [mode for mode in ("", *MODES) if any(mode in by_mode for by_mode in found.values())]
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


def pictures_part(evaluations: Sequence[EvaluationRecord]) -> list[Child]:
    """Every evaluation's pictures."""
    parts: list[Child] = []
    for record in evaluations:
        if not record.pictures:
            continue
        parts.append(tag("h3", title_of(record)))
        if provenance_of(record).get("pictures"):
            parts.append(tag("p", str(provenance_of(record)["pictures"])))
        parts.append(gallery([picture_of(record, name, data) for name, data in record.pictures]))
    return parts or [tag("p", "No evaluation has left pictures.", class_="quiet")]


def picture_of(record: EvaluationRecord, name: str, data: bytes) -> Picture:
    """A picture with words for it: which sample it shows, its prompt and its Dice in each mode, where rows say so."""
    stem = name.rsplit("/", 1)[-1].removesuffix(".png")
    pseudo = f" ({PSEUDO}-label)" if is_pseudo(record.metrics) else ""
    match = re.fullmatch(r"sample-(\d+)", stem)
    rows = rows_of_sample(record.rows, int(match[1])) if match else []
    if not rows:
        return Picture(name, data, stem.replace("_", " ") + pseudo, f"Sample picture {stem}{pseudo}")
    prompt = f", prompt {rows[0]['prompt']!r}" if rows[0].get("prompt") else ""
    caption = f"{rows[0]['id']}{prompt}{pseudo}"
    scores = [f"{MODES.get(r.get('mode', ''), r.get('mode', ''))} {r['dice'][:4]}" for r in rows if r.get("dice")]
    alt = (
        f"Image, truth, predictions, probability and junctions of {caption}. Dice: {', '.join(scores) or 'not given'}."
    )
    return Picture(name, data, caption, alt)


def rows_of_sample(rows: Sequence[Mapping[str, str]], index: int) -> list[Mapping[str, str]]:
    """The rows of the sample with that place in the order of first appearance, one per mode."""
    ids = list(dict.fromkeys(row["id"] for row in rows if row.get("id")))
    return [row for row in rows if row.get("id") == ids[index]] if index < len(ids) else []
