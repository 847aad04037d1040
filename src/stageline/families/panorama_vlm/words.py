"""How panorama_vlm names things to people: modes, metrics, pictures, what a report tells first. No torch."""

from __future__ import annotations

from stageline.contract import Words

_BLEU = tuple(f"bleu_{order}" for order in range(1, 5))

WORDS = Words(
    modes={
        "asked": "pictures as they are",
        "shuffled": "pictures of other rows",
        "rolled": "turned by a quarter",
    },
    metrics={
        "exact_match": "exact match",
        "content_f1": "F1 of content words",
        "rouge_l": "ROUGE-L",
        "cider": "CIDEr-D",
        "meteor_es": "METEOR without synonyms",
        "meteor": "METEOR",
        "spice": "SPICE",
        **{name: f"BLEU-{name[-1]}" for name in _BLEU},
        "empty_predictions": "empty predictions",
        "stopped_by_length": "predictions ended by their length",
        "prediction_words": "words of a prediction",
        "reference_words": "words of a reference",
    },
    pictures={
        "prediction": "Panorama with its tiles, query, reference and prediction",
        "panorama": "panorama",
        "tiles": "panorama with the borders of its tiles",
    },
    samples={"query": "question", "reference": "reference", "prediction": "answer"},
    main_metrics=("exact_match", "content_f1", "cider", "rouge_l", "meteor_es", "bleu_1", "bleu_4"),
    headline="Exact match {exact_match}, ROUGE-L {rouge_l}, BLEU-4 {bleu_4}.",
    higher_is_better=frozenset(
        {"exact_match", "content_f1", "rouge_l", "cider", "meteor_es", "meteor", "spice", *_BLEU}
    ),
    told={
        "plan": "tile plan",
        "views": "views",
        "stitching": "stitching",
        "resampler": "resampler",
        "image_tokens": "image tokens",
        "split": "split",
        "weights": "weights",
        "quarantined": "rows set aside",
        "max_new_tokens": "new tokens at most",
    },
    compared={
        "plan": "tile plan",
        "stitching": "stitching",
        "resampler": "resampler",
        "tiles": "tiles",
        "views": "views",
        "image_tokens": "image tokens",
        "tower_operations": "tower: operations of a panorama, predicted",
        "tower_seconds_per_panorama": "tower: seconds of a panorama, measured",
        "tower_views_per_second": "tower: views per second, measured",
        "training_operations": "training: operations of a sample, predicted",
        "training_operations_cached": "training: the same with cached features, predicted",
        "samples_per_second": "evaluation: questions per second, measured",
        "new_tokens_per_second": "evaluation: new tokens per second, measured",
        "peak_memory_bytes": "evaluation: bytes of memory at most, measured",
    },
    baselines={"commonest": "commonest answer"},
    cautions={
        "limited": "Only the first rows were evaluated.",
        "profile_tiny": "Tiny made models: these numbers say nothing of the models named.",
    },
)
