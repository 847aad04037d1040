"""Metrics of texts: equal to stored values of the libraries that define them, and their laws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stageline.errors import ConfigError, DataError
from stageline.families.panorama_vlm.metrics import score, score_samples, total_scores
from stageline.families.panorama_vlm.metrics.porter import stem_of
from stageline.families.panorama_vlm.metrics.tokenizing import characters_of, plain_text, words_of

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/panorama/metrics.json").read_text(encoding="utf-8"))
FOUR = ["the front is red", "the left wall is blue I think", "behind you stands a tree", "nothing of that kind"]


@pytest.mark.parametrize("name", GOLDEN["sets"])
def test_values_equal_those_of_the_libraries(name: str) -> None:
    """Check 19: BLEU, ROUGE-L, CIDEr and METEOR without synonyms, over a set and for each sample."""
    case: dict[str, Any] = GOLDEN["sets"][name]
    texts = case["predictions"], case["references"], case["tokenize"]
    total, samples = score(*texts), score_samples(*texts)
    assert {metric: total[metric] for metric in case["total"]} == pytest.approx(case["total"], abs=1e-6)
    for metric, stored in case["samples"].items():
        assert [getattr(sample, metric) for sample in samples] == pytest.approx(stored, abs=1e-6), metric


def test_stems_equal_those_of_the_library() -> None:
    assert {word: stem_of(word) for word in GOLDEN["stems"]} == GOLDEN["stems"]


def test_what_needs_java_has_no_value_but_a_reason() -> None:
    """Check 19: null, never 0."""
    found = score(FOUR, FOUR)
    assert found["spice"] is None
    assert found["meteor"] is None
    assert found.reasons == {"spice": "needs Java", "meteor": "needs Java"}


def test_identical_texts_are_perfect() -> None:
    """Check 19: exact 1, CIDEr 10."""
    found = score(FOUR, [[text] for text in FOUR])
    assert found["cider"] == pytest.approx(10)
    assert [found[name] for name in ("bleu_1", "bleu_4", "rouge_l", "content_f1", "exact_match")] == pytest.approx(
        [1] * 5
    )


def test_cider_of_one_sample_is_not_reported() -> None:
    found = score(["a red wall"], ["a red wall"])
    assert found["cider"] is None
    assert "fewer than 2" in found.reasons["cider"]
    assert found["rouge_l"] == 1


def test_without_samples_every_metric_says_so() -> None:
    found = score([], [])
    assert set(found.values()) == {None}
    assert found.reasons["bleu_4"] == "no scored samples"


def test_the_mean_of_the_samples_is_the_value_of_the_set() -> None:
    """What a paired bootstrap draws from; BLEU is added up instead."""
    case = GOLDEN["sets"]["captions"]
    samples = score_samples(case["predictions"], case["references"])
    found = score(case["predictions"], case["references"])
    drawn = total_scores([samples[0]] * 3 + [samples[3]])
    for name in ("rouge_l", "cider", "meteor_es", "content_f1", "exact_match"):
        values = [getattr(sample, name) for sample in samples]
        assert found[name] == pytest.approx(sum(values) / len(values))
        assert drawn[name] == pytest.approx((3 * values[0] + values[3]) / 4)
    assert drawn["bleu_1"] == pytest.approx(total_scores([samples[3]] + [samples[0]] * 3)["bleu_1"])


def test_bleu_is_not_smoothed() -> None:
    """Two sentences share no four words: what the toolkit adds against a division by zero leaves about nothing."""
    found = score(["a b c x y", "d e f z"], ["a b c q r", "q d e f"])
    assert found["bleu_3"] > 0.3  # type: ignore[operator]
    assert found["bleu_4"] < 1e-3  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The left-hand wall: it's RED!", ("the", "left", "hand", "wall", "it", "s", "red")),
        ("ＦＵＬＬ　width", ("full", "width")),
        ("밝은 방, 나무.", ("밝은", "방", "나무")),
        ("नमस्ते दुनिया।", ("नमस्ते", "दुनिया")),
        ("so\u00adft hy\u200dphen", ("soft", "hyphen")),
        ("…!?", ()),
        ("", ()),
    ],
)
def test_words(text: str, words: tuple[str, ...]) -> None:
    assert words_of(text) == words


def test_characters_keep_their_marks() -> None:
    assert characters_of("房间 2。नि") == ("房", "间", "2", "नि")
    assert characters_of("") == ()


@pytest.mark.parametrize(
    ("prediction", "reference", "equal"),
    [
        ("The front is red.", "the  front is\nred", True),
        ("The front is red!!", "The front is red", True),
        ("the front is red", "the front, is red", False),
        ("ｒｅｄ", "red", True),
        ("", "red", False),
    ],
)
def test_exact_match(prediction: str, reference: str, *, equal: bool) -> None:
    assert (plain_text(prediction) == plain_text(reference)) is equal
    assert score([prediction, "x"], [[reference, "other"], "y"])["exact_match"] == (0.5 if equal else 0)


def test_content_f1_looks_at_stems_and_not_at_function_words() -> None:
    found = score_samples(["a red wall is standing there", "it is"], ["the walls that stand are red", "you are"])
    assert [sample.content_f1 for sample in found] == [1, 1]
    assert score_samples(["left wall"], ["right wall"])[0].content_f1 == 0.5


def test_wrong_input_is_refused_at_once() -> None:
    with pytest.raises(DataError, match="3 predictions and 2 lists"):
        score(["a", "b", "c"], ["a", "b"])
    with pytest.raises(DataError, match=r"(?s)2 faults.*sample 0.*sample 1"):
        score(["a", 3], [[], "b"])  # type: ignore[list-item]
    with pytest.raises(DataError, match="one text where a list"):
        score("red", ["red"])
    with pytest.raises(ConfigError, match="'chars'"):
        score(["a"], ["a"], tokenize="chars")
