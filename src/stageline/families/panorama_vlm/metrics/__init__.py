"""Metrics of generated texts against references. `score` stands here because others call it by this short name.

tokenizing  texts -> words or characters, exact match
porter      Porter's stemmer
measures    BLEU, ROUGE-L, CIDEr-D, METEOR without synonyms, F1 of content words, one sample at a time
scoring     all of them over a set of samples, and per sample
"""

from stageline.families.panorama_vlm.metrics.scoring import (
    SampleScore,
    SampleScorer,
    Scores,
    score,
    score_samples,
    total_scores,
)

__all__ = ["SampleScore", "SampleScorer", "Scores", "score", "score_samples", "total_scores"]
