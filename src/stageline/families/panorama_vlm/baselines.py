"""The trivial answerer to compare a model with: it sees no picture and gives the commonest answer of training.

To a question that the training split asks too it gives the commonest answer to that question, to any other the
commonest of all; of equally common ones the first. No torch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from stageline.data.baselines import Baselines, BaselineScores
from stageline.families.panorama_vlm.metrics.scoring import score_samples, total_scores
from stageline.families.panorama_vlm.words import WORDS

if TYPE_CHECKING:
    from stageline.data.prepared import PreparedData
    from stageline.families.panorama_vlm.config import PanoramaVlmConfig

TRAIN = "train"


def score(config: PanoramaVlmConfig, data: PreparedData) -> dict[str, BaselineScores]:
    """The commonest answers on the rows that are evaluated."""
    training, rows = data.split(TRAIN), data.split(config.evaluation_split)
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    every: Counter[str] = Counter()
    for number in range(len(training)):
        fields = training.fields(number)
        answers[fields["query"]][fields["response"]] += 1
        every[fields["response"]] += 1
    commonest = {query: counts.most_common(1)[0][0] for query, counts in answers.items()}
    otherwise = every.most_common(1)[0][0]
    count = len(rows) if config.evaluate.max_samples is None else min(len(rows), config.evaluate.max_samples)
    asked = [rows.fields(number) for number in range(count)]
    references = [list(fields["references"]) for fields in asked]
    predictions = [commonest.get(fields["query"], otherwise) for fields in asked]
    scored = score_samples(predictions, references, config.metrics.tokenize)
    main, whole = WORDS.main_metrics, total_scores(scored)
    found = {
        str(fields["id"]): {name: getattr(sample, name) for name in main if hasattr(sample, name)}
        for fields, sample in zip(asked, scored, strict=True)
    }
    told = {
        "questions_of_training": len(commonest),
        "rows_with_such_a_question": sum(fields["query"] in commonest for fields in asked),
    }
    return {"commonest": BaselineScores({name: whole[name] for name in main if name in whole}, found, told)}


def off(config: PanoramaVlmConfig, data: PreparedData) -> str:
    """Why there are no such scores: nothing to count answers of."""
    del config
    return "" if TRAIN in data else "the prepared data have no rows of training, whose answers it gives"


BASELINES = Baselines(
    version=1,
    splits=lambda config: (TRAIN, config.evaluation_split),
    settings=lambda config: {
        "split": config.evaluation_split,
        "max_samples": config.evaluate.max_samples,
        "tokenize": config.metrics.tokenize,
    },
    score=score,
    off=off,
)
