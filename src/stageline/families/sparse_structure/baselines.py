"""The trivial method to compare with: what the training split says of a class, without a look at scene or object.

Its shape is the mean shape of its class, occupied where half of the class is; its style is drawn as often as training
has it in that class, each object by itself, so that its agreement is an expectation. No torch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from stageline.data.baselines import Baselines, BaselineScores

if TYPE_CHECKING:
    from stageline.data.prepared import PreparedData
    from stageline.families.sparse_structure.config import SparseStructureConfig

TRAIN = "train"


def score(config: SparseStructureConfig, data: PreparedData) -> dict[str, BaselineScores]:
    """The method on the scenes that are evaluated."""
    training, scenes = data.split(TRAIN), data.split(config.evaluate.split)
    sums: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    styles: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for number in range(len(training)):
        fields, voxels = training.fields(number), training.array(number, "voxels")
        for kind, cube in zip(fields["classes"], voxels, strict=True):
            sums[kind] = sums.get(kind, 0.0) + cube.astype(np.float64)
            counts[kind] += 1
            if "style" in fields:
                styles[kind][fields["style"]] += 1
    means = {kind: total / counts[kind] >= 0.5 for kind, total in sums.items()}
    rows: dict[str, dict[str, float | None]] = {}
    for number in range(len(scenes))[: config.evaluate.max_scenes]:
        fields, voxels = scenes.fields(number), scenes.array(number, "voxels").astype(bool)
        empty = np.zeros(voxels.shape[1:], dtype=bool)
        overlaps = [
            _overlap(cube, means.get(kind, empty)) for kind, cube in zip(fields["classes"], voxels, strict=True)
        ]
        rows[str(fields["id"])] = {
            "iou_vae": float(np.mean(overlaps)),
            "agreement": _expected_agreement([styles.get(kind, Counter()) for kind in fields["classes"]]),
        }
    metrics: dict[str, float | None] = {}
    for name in ("agreement", "iou_vae"):
        values = [value for row in rows.values() if (value := row[name]) is not None]
        metrics[name] = sum(values) / len(values) if values else None
    return {"class_alone": BaselineScores(metrics, rows, {"objects_of_training": dict(sorted(counts.items()))})}


def _overlap(first: Any, second: Any) -> float:
    union = (first | second).sum()
    return float((first & second).sum() / union) if union else 1.0


def _expected_agreement(styles: list[Counter[str]]) -> float | None:
    """Of styles that are drawn apart from each other; None below two objects, or where training tells no style."""
    if len(styles) < 2 or not all(styles):
        return None
    return float(
        np.mean([sum(a[style] * b[style] for style in a) / (a.total() * b.total()) for a, b in combinations(styles, 2)])
    )


def off(config: SparseStructureConfig, data: PreparedData) -> str:
    """Why there are no such scores."""
    if not config.has_vae:
        return "latents have no classes that a mean could be taken of"
    return "" if TRAIN in data else "the prepared data have no scenes of training, whose classes it describes"


BASELINES = Baselines(
    version=1,
    splits=lambda config: (TRAIN, config.evaluate.split),
    settings=lambda config: {"split": config.evaluate.split, "max_scenes": config.evaluate.max_scenes},
    score=score,
    off=off,
)
