"""How sparse_structure names things to people: modes, metrics, pictures, what a report tells first. No torch."""

from __future__ import annotations

from stageline.contract import Words

STEPS = (1, 2, 4, 8, 16, 25, 32, 64, 128)
"""Numbers of sampling steps that have a caption; any other may be evaluated too."""
SAMPLED, ALONE, TRUTH = "sampled", "sparse", "truth"
"""Modes of an evaluation: the last number of steps, by the branch of one object alone, and the true scenes."""


def mode_of(steps: int) -> str:
    """The mode of another number of steps."""
    return f"steps_{steps}"


WORDS = Words(
    modes={
        SAMPLED: "sampled in the most steps",
        TRUTH: "the truth, by way of the autoencoder",
        ALONE: "the branch of one object alone",
        **{mode_of(steps): f"sampled in {steps} step{'s' * (steps > 1)}" for steps in STEPS},
    },
    metrics={
        "agreement": "pairs of objects of one style",
        "agreement_across": "the same of objects of different scenes",
        "interpenetration": "share of an object inside of others",
        "facing_error": "degrees by which chairs miss the table",
        "iou": "overlap of sampled voxels with those of the true object",
        "iou_vae": "overlap of the autoencoder's reconstruction with the truth",
        "distance": "sliced Wasserstein distance to the truth",
        "distance_floor": "the same between training scenes and the truth",
        "reader_accuracy": "styles read right of reconstructions",
    },
    pictures={"truth": "the true scene", "scene": "the scene"},
    main_metrics=(
        "agreement",
        "agreement_across",
        "iou_vae",
        "distance",
        "distance_floor",
        "interpenetration",
        "facing_error",
    ),
    headline="Objects of a scene are of one style in {agreement} of the pairs; sampled objects are {distance} from the "
    "true ones, training scenes {distance_floor}.",
    higher_is_better=frozenset({"agreement", "iou", "iou_vae", "reader_accuracy"}),
    told={
        "steps": "sampling steps",
        "scene_strength": "guidance by the scene",
        "scenes": "scenes",
        "objects": "objects",
        "split": "split",
        "weights": "weights",
    },
    baselines={"class_alone": "what training says of each class by itself"},
    cautions={"limited": "Only the first scenes were evaluated."},
)
