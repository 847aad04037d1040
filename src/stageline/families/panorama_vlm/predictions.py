"""`predictions.csv` of an evaluation, written and read back, and what its answers are worth; no torch.

A reference stands there as it is; several stand there as a JSON list, so that metrics can be repeated from the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stageline.config.bounds import read_json
from stageline.data.tables import csv_rows, csv_text
from stageline.errors import DataError, Faults
from stageline.families.panorama_vlm.metrics import Scores, score

PREDICTIONS = "predictions.csv"
COLUMNS = (
    *("sample_id", "row", "image_path", "query", "reference", "prediction", "status", "finish"),
    *("prompt_tokens", "vision_tokens", "new_tokens", "latency_ms"),
    *("exact", "rouge_l", "bleu4_sentence", "cider", "meteor_es"),
)
RENAMED = {"sample_id": "id", "image_path": "image", "exact": "exact_match", "bleu4_sentence": "bleu_4"}
"""Column -> the same in a row of an evaluation, where it is called otherwise."""
SCORED, ASIDE = "ok", "quarantined"
STOPPED_BY_LENGTH = "length"


@dataclass(frozen=True)
class Answers:
    """What was answered, in the order of the rows.

    predictions: (N,) texts.  references: (N,) lists of texts.  finishes: (N,) `eos` or `length`.
    """

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]
    finishes: Sequence[str]

    def measure(self, tokenize: str) -> Scores:
        """All metrics of them, and how long they are. tokenize: `word` or `char`."""
        found = score(self.predictions, self.references, tokenize)
        counts = {
            "empty_predictions": float(sum(not text.strip() for text in self.predictions)),
            "stopped_by_length": float(sum(finish == STOPPED_BY_LENGTH for finish in self.finishes)),
            "prediction_words": _mean_words(self.predictions),
            "reference_words": _mean_words([texts[0] for texts in self.references]),
        }
        return Scores({**found, **counts}, found.reasons)


def _mean_words(texts: Sequence[str]) -> float:
    return sum(len(text.split()) for text in texts) / len(texts) if texts else 0.0


def predictions_text(
    rows: Sequence[Mapping[str, Any]], references: Sequence[Sequence[str]], aside: Sequence[tuple[int, str]]
) -> str:
    """The text of `predictions.csv`.

    rows: of the evaluation, those that were answered.  references: all of each.  aside: number and file of those that
    were set aside when the data were prepared.
    """
    lines: list[dict[str, Any]] = []
    for row, texts in zip(rows, references, strict=True):
        told = {**row, "reference": _one_cell(texts), "status": SCORED}
        lines.append({name: told[RENAMED.get(name, name)] for name in COLUMNS})
    lines += [{"row": number, "image_path": file, "status": ASIDE} for number, file in aside]
    return csv_text(COLUMNS, lines)


def read_predictions(text: str, where: str) -> Answers:
    """What such a file says of the rows that were answered; DataError with all faults. where: its name in errors."""
    rows = csv_rows(text)
    faults = Faults(DataError, where, f"give a {PREDICTIONS} as eval.py writes it")
    needed = ("reference", "prediction", "status", "finish")
    missing = [name for name in needed if rows and name not in rows[0]]
    if missing or not rows:
        faults.add(f"column {', '.join(missing)} is missing" if rows else "it has no rows")
    faults.raise_if_any()
    for number, row in enumerate(rows, start=1):
        if row["status"] not in (SCORED, ASIDE):
            faults.add(f"line {number + 1}: status is {row['status']!r}, expected {SCORED} or {ASIDE}")
        elif row["status"] == SCORED and not row["reference"]:
            faults.add(f"line {number + 1}: it has no reference")
    faults.raise_if_any()
    scored = [row for row in rows if row["status"] == SCORED]
    return Answers(
        [row["prediction"] for row in scored],
        [_texts_of(row["reference"]) for row in scored],
        [row["finish"] for row in scored],
    )


def _one_cell(texts: Sequence[str]) -> str:
    """References as one cell: a single text as it is, unless it reads as a list."""
    if len(texts) == 1 and _texts_of(texts[0]) == [texts[0]]:
        return texts[0]
    return json.dumps(list(texts), ensure_ascii=False)


def _texts_of(cell: str) -> list[str]:
    if cell.startswith("["):
        try:
            found = read_json(cell)
        except ValueError:
            return [cell]
        if isinstance(found, list) and found and all(isinstance(text, str) for text in found):
            return found
    return [cell]
