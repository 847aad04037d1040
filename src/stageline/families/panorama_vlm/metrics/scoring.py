"""All metrics of a set of predictions, and of every sample alone.

Per-sample values stand in the rows of an evaluation and are what a paired bootstrap draws from; those of CIDEr keep the
document frequencies of the whole reference corpus, so their mean is the corpus value. BLEU of a set is made from added
counts, not from a mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stageline.errors import ConfigError, DataError, Faults
from stageline.families.panorama_vlm.metrics.measures import (
    ORDERS,
    BleuCounts,
    CiderCorpus,
    bleu_counts,
    content_f1,
    meteor,
    rouge_l,
)
from stageline.families.panorama_vlm.metrics.tokenizing import TOKENIZERS, plain_text

NEEDS_JAVA = "needs Java"
NO_SAMPLES = "no scored samples"
LONE_SAMPLE = (
    "fewer than 2 samples: every document frequency equals the number of samples, so CIDEr is 0 by construction"
)
MEANS = ("rouge_l", "cider", "meteor_es", "content_f1", "exact_match")
"""Metrics of a set that are means over samples; each has a value in every `SampleScore`."""


@dataclass(frozen=True)
class SampleScore:
    """The metrics of one sample, in [0, 1]; cider in [0, 10], None where the set has fewer than 2 samples.

    bleu: its counts, to be added up.
    """

    bleu: BleuCounts
    rouge_l: float
    cider: float | None
    meteor_es: float
    content_f1: float
    exact_match: float

    @property
    def bleu_4(self) -> float:
        """BLEU-4 of this sentence alone."""
        return self.bleu.bleu()[-1]


class Scores(dict[str, float | None]):
    """Metric -> value; None where there is none, with why in `reasons`."""

    def __init__(self, values: Mapping[str, float | None], reasons: Mapping[str, str]) -> None:
        super().__init__(values)
        self.reasons = dict(reasons)


def score_samples(
    predictions: Sequence[str], references: Sequence[Sequence[str] | str], tokenize: str = "word"
) -> list[SampleScore]:
    """The metrics of every sample.

    predictions: (N,) texts.
    references: (N,) each a list of texts, or one text.
    tokenize: `word`, or `char` for languages without spaces.

    Raises DataError for lists of different lengths, a sample without references and anything that is no text.
    """
    texts = _checked(predictions, references)
    scorer = SampleScorer([true for _, true in texts], tokenize)
    return [scorer.score(number, prediction) for number, (prediction, _) in enumerate(texts)]


class SampleScorer:
    """Scores predictions one by one against a fixed reference corpus, in any order.

    references: (N,) lists of texts.  tokenize: `word` or `char`.
    """

    def __init__(self, references: Sequence[Sequence[str]], tokenize: str = "word") -> None:
        if tokenize not in TOKENIZERS:
            raise ConfigError(f"metrics.tokenize is {tokenize!r}", remedy=f"use one of {', '.join(TOKENIZERS)}")
        self._split = TOKENIZERS[tokenize]
        self._exact = [{plain_text(text) for text in sample} for sample in references]
        self._tokens = [[self._split(text) for text in sample] for sample in references]
        self._corpus = CiderCorpus(self._tokens)

    def score(self, number: int, prediction: str) -> SampleScore:
        """The metrics of one prediction. number: of its sample, in [0, N)."""
        found, true = self._split(prediction), self._tokens[number]
        return SampleScore(
            bleu=bleu_counts(found, true),
            rouge_l=rouge_l(found, true),
            cider=self._corpus.cider(found, true) if len(self._tokens) > 1 else None,
            meteor_es=meteor(found, true),
            content_f1=content_f1(found, true),
            exact_match=float(plain_text(prediction) in self._exact[number]),
        )


def total_scores(samples: Sequence[SampleScore]) -> Scores:
    """The metrics of a set of samples, or of a draw from one."""
    names = [*(f"bleu_{order}" for order in range(1, ORDERS + 1)), *MEANS]
    values: dict[str, float | None] = dict.fromkeys(names)
    reasons: dict[str, str] = {}
    if samples:
        bleu = sum((sample.bleu for sample in samples), BleuCounts()).bleu()
        values.update({f"bleu_{order}": value for order, value in enumerate(bleu, 1)})
        for name in MEANS:
            known = [value for sample in samples if (value := getattr(sample, name)) is not None]
            values[name] = sum(known) / len(known) if len(known) == len(samples) else None
        if values["cider"] is None:
            reasons["cider"] = LONE_SAMPLE
    else:
        reasons = dict.fromkeys(names, NO_SAMPLES)
    absent = {"meteor": NEEDS_JAVA, "spice": NEEDS_JAVA}
    return Scores({**values, **dict.fromkeys(absent)}, {**reasons, **absent})


def score(predictions: Sequence[str], references: Sequence[Sequence[str] | str], tokenize: str = "word") -> Scores:
    """bleu_1 to bleu_4, rouge_l, cider, meteor_es, content_f1 and exact_match of a set; meteor and spice are None.

    Arguments and errors as those of `score_samples`. Why a metric has no value stands in `.reasons`.
    """
    return total_scores(score_samples(predictions, references, tokenize))


def _checked(predictions: Sequence[str], references: Sequence[Sequence[str] | str]) -> list[tuple[str, list[str]]]:
    if isinstance(predictions, str) or isinstance(references, str):
        raise DataError("one text where a list of texts is expected", remedy="give a list with one entry per sample")
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions and {len(references)} lists of references; expected as many")
    faults = Faults(DataError, "texts to score")
    pairs = []
    for number, (prediction, true) in enumerate(zip(predictions, references, strict=True)):
        listed = [true] if isinstance(true, str) else list(true)
        if not isinstance(prediction, str):
            faults.add(f"sample {number}: the prediction is {type(prediction).__name__}, expected a text")
        if not listed or not all(isinstance(text, str) for text in listed):
            faults.add(f"sample {number}: its references are {listed!r}, expected one text or more")
        pairs.append((prediction, listed))
    faults.raise_if_any()
    return pairs
