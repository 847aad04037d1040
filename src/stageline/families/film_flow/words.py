"""How film_flow names things to people: modes, metrics, pictures, what a report tells first. No torch."""

from __future__ import annotations

from stageline.contract import Words

WORDS = Words(
    modes={
        "on": "FiLM on",
        "off": "FiLM off",
        "shuffle": "conditions shuffled",
        "swapped": "prompts swapped",
    },
    metrics={},
    pictures={
        "sample": "Image, truth, predictions, probability and junctions",
        "image": "input image",
        "truth": "true mask",
        "pseudo_label": "mask of the pseudo-label",
        "outlines": "outlines of both masks",
        "prediction": "predicted mask",
        "probability": "probability of the mask",
        "spread": "spread of the ensemble (white: 0.5)",
        "junctions": "predicted junctions, crosses at the true ones",
    },
    samples={"prompt": "prompt"},
    main_metrics=(
        *("dice", "cldice", "iou", "precision", "recall"),
        *("junction_f1", "betti0_error", "betti1_error", "pooled_dice", "condition_cosine"),
    ),
    headline="Dice {dice}, clDice {cldice}, junction F1 {junction_f1}.",
    higher_is_better=frozenset(
        {
            *("dice", "cldice", "iou", "precision", "recall", "specificity"),
            *("junction_precision", "junction_recall", "junction_f1", "skeleton_precision", "skeleton_recall"),
            *("pooled_dice", "pooled_iou", "pooled_precision", "pooled_recall", "pooled_junction_f1"),
        }
    ),
    told={
        "film_stages_active": "decoder stages active:",
        "film_stages_origin": "known from",
        "film_mode": "FiLM",
        "nfe": "network evaluations (NFE)",
        "solver": "solver",
        "split": "split",
        "weights": "weights",
        "labels": "labels",
    },
    cautions={
        "ablation": "Not all trained decoder stages were active.",
        "oracle": "The evaluation was given part of the truth.",
    },
    mode_field="film_mode",
    baselines={"otsu": "Otsu threshold", "ridge": "ridge filter"},
)
