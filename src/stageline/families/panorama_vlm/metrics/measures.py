"""Measures of one tokenised prediction against its tokenised references.

BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004) and CIDEr-D (Vedantam et al. 2015) with the choices of the COCO caption
toolkit; METEOR (Lavie and Agarwal 2007) with the matchers "exact" and "Porter stem" alone, as nltk aligns. Values equal
those libraries'. Tokens are tuples of words; a sample has at least one reference.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from stageline.families.panorama_vlm.metrics.porter import stem_of

Tokens = tuple[str, ...]
NGrams = Counter[Tokens]

ORDERS = 4
"""Longest n-grams of BLEU and CIDEr."""
BLEU_NUMERATOR, BLEU_DENOMINATOR = 1e-15, 1e-9
"""What the COCO toolkit adds to matches and to totals against a division by zero; it is no smoothing."""
ROUGE_BETA = 1.2
CIDER_SIGMA, CIDER_SCALE = 6.0, 10.0
METEOR_ALPHA, METEOR_BETA, METEOR_GAMMA = 0.9, 3.0, 0.5
FUNCTION_WORDS = (
    "a an the this that these those some any each every no and or but nor so if than then as because while of to "
    "in on at by for from with without into onto over under between through during about against i you he she it "
    "we they me him her us them my your his its our their mine yours who whom whose which what where when why how "
    "there here is are was were be been being am do does did done doing have has had having can could will would "
    "shall should may might must not very too also just only own same such both all more most other s t don"
)
STOP_WORDS = frozenset(FUNCTION_WORDS.split())
"""What `content_f1` leaves out. Words of direction (left, right, front, behind, above, ...) stay in."""


def count_ngrams(tokens: Tokens) -> NGrams:
    """How often each n-gram of 1 to 4 tokens occurs."""
    return Counter(tokens[i : i + n] for n in range(1, ORDERS + 1) for i in range(len(tokens) - n + 1))


@dataclass(frozen=True)
class BleuCounts:
    """What BLEU adds up over samples: matched and all n-grams by order, length of prediction and closest reference."""

    matched: tuple[int, ...] = (0,) * ORDERS
    total: tuple[int, ...] = (0,) * ORDERS
    length: int = 0
    reference_length: int = 0

    def __add__(self, other: BleuCounts) -> BleuCounts:
        return BleuCounts(
            tuple(a + b for a, b in zip(self.matched, other.matched, strict=True)),
            tuple(a + b for a, b in zip(self.total, other.total, strict=True)),
            self.length + other.length,
            self.reference_length + other.reference_length,
        )

    def bleu(self) -> tuple[float, ...]:
        """BLEU-1 to BLEU-4 of everything added up."""
        found, product = [], 1.0
        ratio = (self.length + BLEU_NUMERATOR) / (self.reference_length + BLEU_DENOMINATOR)
        brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        for order, (matched, total) in enumerate(zip(self.matched, self.total, strict=True), 1):
            product *= (matched + BLEU_NUMERATOR) / (total + BLEU_DENOMINATOR)
            found.append(brevity * product ** (1 / order))
        return tuple(found)


def bleu_counts(prediction: Tokens, references: Sequence[Tokens]) -> BleuCounts:
    """Clipped matches against the largest count of each n-gram in any reference; on a tie the shorter is closest."""
    most: NGrams = Counter()
    for reference in references:
        most |= count_ngrams(reference)
    matched = [0] * ORDERS
    for ngram, count in count_ngrams(prediction).items():
        matched[len(ngram) - 1] += min(count, most[ngram])
    length = len(prediction)
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    total = tuple(max(0, length - order) for order in range(ORDERS))
    return BleuCounts(tuple(matched), total, length, closest)


def common_length(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for token in a:
        corner = 0
        for place, other in enumerate(b, 1):
            above = row[place]
            row[place] = corner + 1 if token == other else max(above, row[place - 1])
            corner = above
    return row[-1]


def rouge_l(prediction: Tokens, references: Sequence[Tokens]) -> float:
    """F of the longest common subsequence, from the best precision and the best recall over the references.

    No tokens at all are one empty token, as in the toolkit: two empty texts are equal.
    """
    found = prediction or ("",)
    pairs = [(common_length(found, true or ("",)), len(true) or 1) for true in references]
    precision = max(common / len(found) for common, _ in pairs)
    recall = max(common / length for common, length in pairs)
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


class CiderCorpus:
    """Document frequencies of a reference corpus: in how many samples an n-gram stands in any reference.

    references: of every sample, each a list of token tuples.
    """

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        self.log_samples = math.log(max(1, len(references)))
        self.frequency: NGrams = Counter()
        for sample in references:
            self.frequency.update({ngram for reference in sample for ngram in count_ngrams(reference)})

    def weigh(self, tokens: Tokens) -> tuple[dict[Tokens, float], list[float], int]:
        """tf-idf of the n-grams, its norm by order, and the number of bigrams, which the toolkit takes as length."""
        weights = {
            ngram: count * (self.log_samples - math.log(max(1, self.frequency[ngram])))
            for ngram, count in count_ngrams(tokens).items()
        }
        squares = [0.0] * ORDERS
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight * weight
        return weights, [math.sqrt(square) for square in squares], max(0, len(tokens) - 1)

    def cider(self, prediction: Tokens, references: Sequence[Tokens]) -> float:
        """CIDEr-D of one sample: mean over references and orders, in [0, 10]."""
        found, found_norms, found_length = self.weigh(prediction)
        total = 0.0
        for reference in references:
            true, true_norms, true_length = self.weigh(reference)
            products = [0.0] * ORDERS
            for ngram, weight in found.items():
                other = true.get(ngram, 0.0)
                products[len(ngram) - 1] += min(weight, other) * other
            cosines = [
                product / (a * b) if a and b else product
                for product, a, b in zip(products, found_norms, true_norms, strict=True)
            ]
            total += sum(cosines) / ORDERS * math.exp(-((found_length - true_length) ** 2) / (2 * CIDER_SIGMA**2))
        return CIDER_SCALE * total / len(references)


def _match(found: dict[int, str], true: dict[int, str]) -> list[tuple[int, int]]:
    """Pairs of places of equal words, last words first, taken out of both: as nltk aligns."""
    places: dict[str, list[int]] = {}
    for place, word in true.items():
        places.setdefault(word, []).append(place)
    pairs = [(place, places[word].pop()) for place, word in reversed(found.items()) if places.get(word)]
    for a, b in pairs:
        del found[a], true[b]
    return pairs


def _meteor(prediction: Tokens, reference: Tokens) -> float:
    found, true = dict(enumerate(prediction)), dict(enumerate(reference))
    pairs = _match(found, true)
    stemmed = ({place: stem_of(word) for place, word in side.items()} for side in (found, true))
    pairs = sorted(pairs + _match(*stemmed))
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(prediction), len(pairs) / len(reference)
    mean = precision * recall / (METEOR_ALPHA * precision + (1 - METEOR_ALPHA) * recall)
    joints = sum(b == (a[0] + 1, a[1] + 1) for a, b in pairwise(pairs))
    penalty: float = METEOR_GAMMA * ((len(pairs) - joints) / len(pairs)) ** METEOR_BETA
    return mean * (1 - penalty)


def meteor(prediction: Tokens, references: Sequence[Tokens]) -> float:
    """METEOR without synonyms against the reference that suits best."""
    return max(_meteor(prediction, reference) for reference in references)


def content_f1(prediction: Tokens, references: Sequence[Tokens]) -> float:
    """F1 of the sets of stems of content words, best over references; without any on both sides 1."""

    def f1(found: set[str], true: set[str]) -> float:
        return 2 * len(found & true) / (len(found) + len(true)) if found or true else 1.0

    def stems(tokens: Tokens) -> set[str]:
        return {stem_of(word) for word in tokens if word not in STOP_WORDS}

    found = stems(prediction)
    return max(f1(found, stems(reference)) for reference in references)
