"""`predictions.csv`, written and read back."""

from __future__ import annotations

import pytest

from stageline.errors import DataError
from stageline.families.panorama_vlm.predictions import COLUMNS, Answers, predictions_text, read_predictions

TEXTS = ["The front is red.", 'two\nlines, "quoted"', "", "\r", "공원 🙂"]
REFERENCES = [["The front is red."], ["one", "zwei, drei"], ['["looks", "like a list"]'], ["[not json"], ["[]"]]
FINISHES = ["eos", "length", "eos", "eos", "eos"]


def row(number: int) -> dict[str, object]:
    named = {"id": f"s{number}", "image": "a.png", "exact_match": 1.0, "bleu_4": 0.5, "row": number + 1}
    own = {"prediction": TEXTS[number], "reference": "not this one", "finish": FINISHES[number]}
    return {**dict.fromkeys(COLUMNS, 0), **named, **own}


def test_what_is_written_is_read_and_measures_the_same() -> None:
    """Check 20: metrics from the file are those of the evaluation, whatever characters texts and references hold."""
    text = predictions_text([row(number) for number in range(5)], REFERENCES, [(6, "gone.png")])
    found, given = read_predictions(text, "here"), Answers(TEXTS, REFERENCES, FINISHES)
    assert (found.predictions, found.references, found.finishes) == (TEXTS, REFERENCES, FINISHES)
    assert found.measure("word") == given.measure("word")
    assert found.measure("char")["stopped_by_length"] == 1.0
    lines = text.splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert lines[-1] == ",6,gone.png,,,,quarantined" + "," * 10


def test_files_that_are_no_predictions_are_refused() -> None:
    with pytest.raises(DataError, match="reference, prediction, status, finish"):
        read_predictions("sample_id\na\n", "here")
    with pytest.raises(DataError, match="no rows"):
        read_predictions(",".join(COLUMNS) + "\n", "here")
    text = predictions_text([row(0), row(1)], REFERENCES[:2], []).replace(",ok,", ",error,", 1)
    with pytest.raises(DataError, match="line 2: status is 'error'"):
        read_predictions(text, "here")
