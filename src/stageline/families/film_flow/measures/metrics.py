"""Metrics of a predicted mask against the true one: overlap, centreline, topology, junctions.

Per case, then as means over cases and pooled over all pixels; the number of cases stands with every mean. Where truth
and prediction are both empty an overlap is 1 and counted in `num_empty`. Numbers are in [0, 1] unless their name says
pixels or error. The Betti matching error (location-aware) needs a package of its own (`topolosses`) and is not
included; `BETTI_MATCHING` says so in reports. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage import measure

from stageline.errors import DataError
from stageline.families.film_flow.data.junctions import EIGHT, Junctions, find_junctions, match_nodes, skeleton_of

Bools = NDArray[np.bool_]

BETTI_MATCHING = "not included: needs the package topolosses"
NEAR_JUNCTION_PIXELS = 10.0
MIN_TOLERANCE_PIXELS = 3.0
OVERLAPS = ("dice", "iou", "precision", "recall", "specificity")
COUNTS = ("true_positive", "false_positive", "false_negative", "true_negative")


def _as_mask(value: ArrayLike, name: str) -> Bools:
    mask = np.asarray(value)
    if mask.ndim != 2 or mask.size == 0:
        raise DataError(f"{name} has the shape {mask.shape}, expected (H, W)")
    return np.asarray(mask != 0)


def _ratio(part: float, whole: float, empty: float) -> float:
    return part / whole if whole else empty


def overlap_scores(tp: float, fp: float, fn: float, tn: float) -> dict[str, float]:
    """Dice, IoU, precision, recall, specificity from pixel counts; 1 where there was nothing to find and nothing found.

    Precision of an empty prediction of a non-empty truth is 0, as is recall of an empty truth with a prediction.
    """
    empty = 1.0 if tp + fp + fn == 0 else 0.0
    return {
        "dice": _ratio(2 * tp, 2 * tp + fp + fn, 1.0),
        "iou": _ratio(tp, tp + fp + fn, 1.0),
        "precision": _ratio(tp, tp + fp, empty),
        "recall": _ratio(tp, tp + fn, empty),
        "specificity": _ratio(tn, tn + fp, 1.0),
    }


def betti_numbers(mask: ArrayLike) -> tuple[int, int]:
    """(components, loops) of a mask (H, W), 8-connected; loops = components - Euler number."""
    filled = _as_mask(mask, "mask")
    components = int(ndimage.label(filled, EIGHT)[1])
    euler = int(measure.euler_number(filled, connectivity=2))  # type: ignore[no-untyped-call]
    return components, components - euler


def centreline_scores(prediction: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """clDice and the skeleton lengths it is made of (Shit et al. 2021, equations 1-3).

    Lengths are numbers of skeleton pixels: of the prediction inside and outside the true mask, of the truth inside and
    outside the predicted one.
    """
    found, true = _as_mask(prediction, "prediction"), _as_mask(truth, "truth")
    found_line, true_line = skeleton_of(found), skeleton_of(true)
    within, over = int((found_line & true).sum()), int((found_line & ~true).sum())
    covered, missed = int((true_line & found).sum()), int((true_line & ~found).sum())
    empty = 1.0 if within + over + covered + missed == 0 else 0.0
    precision = _ratio(within, within + over, empty)
    recall = _ratio(covered, covered + missed, empty)
    return {
        "cldice": _ratio(2 * precision * recall, precision + recall, 0.0),
        "skeleton_precision": precision,
        "skeleton_recall": recall,
        "skeleton_within_pixels": float(within),
        "skeleton_over_pixels": float(over),
        "skeleton_covered_pixels": float(covered),
        "skeleton_missed_pixels": float(missed),
    }


def junction_scores(found: ArrayLike, true: ArrayLike, tolerance: ArrayLike) -> dict[str, float]:
    """Precision, recall and F1 of nodes, matched one to one within a distance.

    found: (N, 2).  true: (M, 2).  tolerance: pixels, one number or (M,). No nodes on both sides: all 1.
    """
    num_found, num_true = len(np.asarray(found).reshape(-1, 2)), len(np.asarray(true).reshape(-1, 2))
    matched = len(match_nodes(found, true, tolerance))
    empty = 1.0 if num_found + num_true == 0 else 0.0
    return {
        "junction_precision": _ratio(matched, num_found, empty),
        "junction_recall": _ratio(matched, num_true, empty),
        "junction_f1": _ratio(2 * matched, num_found + num_true, empty),
        "num_junctions_found": float(num_found),
        "num_junctions_true": float(num_true),
        "num_junctions_matched": float(matched),
    }


def _distance_to(points: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Distance in pixels of every pixel to the nearest point; infinite without points."""
    if not len(points):
        return np.full(shape, np.inf)
    rows, columns = np.indices(shape)
    best = np.full(shape, np.inf)
    for row, column in points:
        np.minimum(best, (rows - row) ** 2 + (columns - column) ** 2, out=best)
    return np.asarray(np.sqrt(best))


def case_metrics(
    prediction: ArrayLike,
    truth: ArrayLike,
    *,
    nodes: Junctions | None = None,
    degree_threshold: int = 3,
    tolerance_px: float | None = None,
) -> dict[str, float]:
    """Every metric of one case.

    prediction, truth: (H, W), non-zero is vessel.  nodes: true junctions where they are known exactly, else those of
    the true mask.  tolerance_px: distance for matching nodes; None takes max(3, local radius) of each true node.
    """
    found, true = _as_mask(prediction, "prediction"), _as_mask(truth, "truth")
    if found.shape != true.shape:
        raise DataError(f"prediction is {found.shape}, truth is {true.shape}; they must be of one size")
    tp, fp = int((found & true).sum()), int((found & ~true).sum())
    fn, tn = int((~found & true).sum()), int((~found & ~true).sum())
    true_nodes = nodes if nodes is not None else find_junctions(true, degree_threshold=degree_threshold)
    found_nodes = find_junctions(found, degree_threshold=degree_threshold)
    tolerance = np.maximum(MIN_TOLERANCE_PIXELS, true_nodes.radii) if tolerance_px is None else tolerance_px
    near = _distance_to(true_nodes.points, true.shape) <= NEAR_JUNCTION_PIXELS
    components, loops = betti_numbers(found)
    true_components, true_loops = betti_numbers(true)
    return {
        **overlap_scores(tp, fp, fn, tn),
        **centreline_scores(found, true),
        "betti0_error": float(abs(components - true_components)),
        "betti1_error": float(abs(loops - true_loops)),
        **junction_scores(found_nodes.points, true_nodes.points, tolerance),
        "false_positives_near_junctions_pixels": float((found & ~true & near).sum()),
        "false_positives_near_junctions_fraction": _ratio(int((found & ~true & near).sum()), fp, 0.0),
        "true_positive": float(tp),
        "false_positive": float(fp),
        "false_negative": float(fn),
        "true_negative": float(tn),
        "empty": 1.0 if tp + fp + fn == 0 else 0.0,
    }


def pool_metrics(cases: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over cases (`dice`, ...), pooled values (`pooled_dice`, ...) and sums of counts, from `case_metrics`.

    A share whose denominator is empty in a case (false positives near junctions, where there are none) is pooled only.
    """
    if not cases:
        raise DataError("no cases to pool", remedy="the data split is empty; check data.num_val or the folder")
    means = (
        *OVERLAPS,
        "cldice",
        "betti0_error",
        "betti1_error",
        "junction_precision",
        "junction_recall",
        "junction_f1",
    )
    result = {name: float(np.mean([case[name] for case in cases])) for name in means}

    def total(name: str) -> float:
        return float(sum(case[name] for case in cases))

    pooled = overlap_scores(*(total(name) for name in COUNTS))
    result |= {f"pooled_{name}": value for name, value in pooled.items()}
    matched, found, true = (total(f"num_junctions_{part}") for part in ("matched", "found", "true"))
    result["pooled_junction_f1"] = _ratio(2 * matched, found + true, 1.0)
    near = total("false_positives_near_junctions_pixels")
    result["false_positives_near_junctions_fraction"] = _ratio(near, total("false_positive"), 0.0)
    for name in ("within", "over", "covered", "missed"):
        result[f"skeleton_{name}_pixels"] = total(f"skeleton_{name}_pixels")
    result["num_cases"] = float(len(cases))
    result["num_empty"] = total("empty")
    result["num_junctions_true"] = true
    return result
