"""Situations a cluster gets into, as its API server shows them: each explained in one sentence with a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stageline.jobs.cluster.explain.diagnosis import diagnose
from stageline.jobs.cluster.explain.signatures import IMAGE, LAST_LINES, MOUNT, REFUSED, STARTING, UNSCHEDULABLE

CORPUS = sorted((Path(__file__).parent / "diagnosis").glob("*.json"))


def read(path: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return plain


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_situation_is_explained(path: Path) -> None:
    case = read(path)
    found = diagnose(case["job"], case["pods"], case["events"], case["nodes"])
    expected = case["expected"]
    if expected is None:
        assert found is None, case["situation"]
        return
    assert found is not None, case["situation"]
    assert (found.kind, found.exit_code) == (expected["kind"], expected["exit_code"])
    for words in expected["says"]:
        assert words in found.sentence
    for words in expected["remedy"]:
        assert words in found.remedy
    for text in (found.sentence, found.remedy):
        assert "{" not in text.replace("{kubernetes.io/arch: amd64}", ""), "a place was left unfilled"
        assert "\n" not in text


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_the_order_in_which_things_are_listed_does_not_matter(path: Path) -> None:
    case = read(path)
    found = diagnose(case["job"], case["pods"], case["events"], case["nodes"])
    assert diagnose(case["job"], case["pods"][::-1], case["events"][::-1], case["nodes"]) == found


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_less_knowledge_is_no_error(path: Path) -> None:
    """Events or nodes that may not be read, a job that is gone, pods without a status."""
    case = read(path)
    diagnose(case["job"], case["pods"], [], None)
    diagnose(None, case["pods"], case["events"], case["nodes"])
    diagnose(case["job"], [{**pod, "status": {}} for pod in case["pods"]], case["events"], None)
    diagnose(None, [], [], None)


def test_the_corpus_is_large_and_much_of_it_was_recorded() -> None:
    cases = [read(path) for path in CORPUS]
    assert len(cases) >= 30
    assert sum(case["source"].startswith("recorded") for case in cases) >= 20


def test_every_signature_is_in_the_corpus() -> None:
    """A pattern that no situation needs is a guess."""
    said = " ".join(json.dumps(case) for case in map(read, CORPUS))
    texts = said.replace("\\n", "\n").replace('\\"', '"')
    for table in (REFUSED[:-1], MOUNT, UNSCHEDULABLE, LAST_LINES, IMAGE[:5]):
        for entry in table:
            assert entry.pattern.search(texts), entry.pattern.pattern
    assert STARTING[0].pattern.search(texts)
