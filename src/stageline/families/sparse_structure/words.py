"""How sparse_structure names things to people: metrics, pictures, what a report tells first. No torch."""

from __future__ import annotations

from stageline.contract import Words

STEPS = (1, 2, 4, 8, 16, 25, 32, 64, 128)
"""Numbers of sampling steps that have a caption; any other may be evaluated too."""

WORDS = Words(
    modes={f"steps_{steps}": f"sampled in {steps} step{'s' * (steps > 1)}" for steps in STEPS},
    metrics={
        "iou": "overlap of voxels with the truth",
        "iou_vae": "overlap of the autoencoder's reconstruction",
        "distance": "sliced Wasserstein distance to the truth",
        "distance_floor": "the same between training scenes and the truth",
    },
    main_metrics=("iou", "distance", "distance_floor"),
    headline="Sampled objects are {distance} from the true ones; training scenes are {distance_floor}.",
    higher_is_better=frozenset({"iou", "iou_vae"}),
    told={"steps": "sampling steps", "split": "split", "weights": "weights"},
)
