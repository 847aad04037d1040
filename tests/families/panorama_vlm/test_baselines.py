"""The answerer that sees no picture: the commonest answer of training to the same question."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import small

from stageline.data.prepared import open_prepared
from stageline.families.panorama_vlm.baselines import BASELINES
from stageline.families.panorama_vlm.data.made import DIRECTIONS
from stageline.verbs.prepare import prepare_data


def test_it_is_right_where_most_of_training_says_so(tmp_path: Path) -> None:
    """Of 6 rooms to learn from and 5 to ask about: each direction has its own answer, right as often as counted."""
    config = small(tmp_path, "data.num_train=6", "data.num_test=5")
    data = open_prepared(prepare_data(config).reference)
    said: dict[str, list[str]] = {}
    for number in range(24):
        fields = data.split("train").fields(number)
        said.setdefault(fields["query"], []).append(fields["response"])
    assert len(said) == len(DIRECTIONS)
    truths = [data.split("test").fields(number) for number in range(20)]
    (found,) = BASELINES.score(config, data).values()
    for fields in truths:
        answers = said[fields["query"]]
        guess = max(dict.fromkeys(answers), key=answers.count)
        assert found.rows[fields["id"]]["exact_match"] == float(guess == fields["response"])
    mean = sum(row["exact_match"] for row in found.rows.values()) / 20
    assert found.metrics["exact_match"] == pytest.approx(mean)
    assert found.told == {"questions_of_training": 4, "rows_with_such_a_question": 20}
    fewer = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"max_samples": 3})})
    (some,) = BASELINES.score(fewer, data).values()
    assert len(some.rows) == 3
