"""Metrics: closed forms, limits, agreement of two definitions on random masks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from stageline.errors import DataError
from stageline.families.film_flow.data.junctions import Junctions
from stageline.families.film_flow.data.tree_pictures import make_tree_picture
from stageline.families.film_flow.measures.metrics import (
    betti_numbers,
    case_metrics,
    centreline_scores,
    junction_scores,
    overlap_scores,
    pool_metrics,
)


def ring(centre, size=64, inner=8, outer=12):
    row, column = np.mgrid[0:size, 0:size]
    radius = np.hypot(row - centre[0], column - centre[1])
    return (radius >= inner) & (radius <= outer)


def dumb_bell():
    row, column = np.mgrid[0:64, 0:64]
    ends = (np.hypot(row - 32, column - 14) < 9) | (np.hypot(row - 32, column - 50) < 9)
    return ends | ((np.abs(row - 32) < 3) & (column > 14) & (column < 50))


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        pytest.param(ring((32, 32)), (1, 1), id="ring"),
        pytest.param(ring((32, 16)) | ring((32, 48)), (2, 2), id="two rings"),
        pytest.param(dumb_bell(), (1, 0), id="dumb-bell without holes"),
        pytest.param(ring((32, 26)) | ring((32, 38)), (1, 3), id="two linked rings"),
        pytest.param(np.zeros((9, 9)), (0, 0), id="empty"),
        pytest.param(np.ones((9, 9)), (1, 0), id="full"),
        pytest.param(np.eye(9), (1, 0), id="diagonal is one 8-connected line"),
    ],
)
def test_betti_numbers_of_known_shapes(mask, expected):
    """Acceptance check 15."""
    assert betti_numbers(mask) == expected


def test_euler_and_background_counts_agree_on_random_masks():
    """Acceptance check 15."""
    rng = np.random.default_rng(0)
    for number in range(200):
        shape = tuple(rng.integers(4, 40, 2))
        mask = rng.random(shape) < rng.uniform(0.05, 0.95)
        if number % 2:
            mask = ndimage.binary_dilation(mask, iterations=int(rng.integers(1, 3)))
        components, loops = betti_numbers(mask)
        background = ndimage.label(~np.pad(mask, 1))[1]
        assert loops == background - 1
        assert components == ndimage.label(mask, np.ones((3, 3)))[1]


def test_overlaps_from_counts():
    scores = overlap_scores(tp=6, fp=2, fn=4, tn=88)
    assert scores["dice"] == pytest.approx(12 / 18)
    assert scores["iou"] == pytest.approx(6 / 12)
    assert scores["precision"] == pytest.approx(6 / 8)
    assert scores["recall"] == pytest.approx(6 / 10)
    assert scores["specificity"] == pytest.approx(88 / 90)
    assert scores["dice"] == pytest.approx(2 * scores["iou"] / (1 + scores["iou"]))


def test_nothing_to_find_and_nothing_found_is_perfect():
    """Acceptance check 15."""
    empty = np.zeros((32, 32))
    metrics = case_metrics(empty, empty)
    for name in ("dice", "iou", "precision", "recall", "specificity", "cldice", "junction_f1"):
        assert metrics[name] == 1.0, name
    assert metrics["empty"] == 1.0
    one_sided = case_metrics(np.eye(32), empty)
    assert one_sided["dice"] == one_sided["recall"] == one_sided["cldice"] == one_sided["empty"] == 0.0
    assert overlap_scores(tp=0, fp=0, fn=5, tn=5)["precision"] == 0.0


def test_perfect_prediction_is_perfect():
    """Acceptance check 15."""
    for index in range(5):
        mask = make_tree_picture(0, "val", index, 96).masks[0]
        metrics = case_metrics(mask, mask)
        for name in ("dice", "iou", "precision", "recall", "cldice", "junction_f1", "junction_recall"):
            assert metrics[name] == 1.0, name
        assert metrics["betti0_error"] == metrics["betti1_error"] == 0
        assert metrics["skeleton_over_pixels"] == metrics["skeleton_missed_pixels"] == 0
        assert metrics["false_positives_near_junctions_fraction"] == 0


def test_centreline_forgives_width_but_not_breaks():
    thin, thick = np.zeros((40, 80), dtype=bool), np.zeros((40, 80), dtype=bool)
    thin[19:22, 5:75] = True
    thick[16:25, 5:75] = True
    assert centreline_scores(thin, thick)["skeleton_precision"] == 1.0
    assert centreline_scores(thick, thin)["cldice"] > 0.9
    broken = thin.copy()
    broken[:, 40:75] = False
    scores = centreline_scores(broken, thin)
    assert scores["skeleton_precision"] == 1.0
    assert scores["skeleton_recall"] == pytest.approx(0.5, abs=0.03)
    lengths = scores["skeleton_covered_pixels"] + scores["skeleton_missed_pixels"]
    assert lengths == pytest.approx(68, abs=4)
    swapped = centreline_scores(thin, broken)
    assert swapped["cldice"] == pytest.approx(scores["cldice"])


def test_junction_scores_count_matches_once():
    scores = junction_scores([[10, 10], [11, 10], [50, 50]], [[10, 12], [30, 30]], 4.0)
    assert scores["junction_precision"] == pytest.approx(1 / 3)
    assert scores["junction_recall"] == pytest.approx(1 / 2)
    assert scores["junction_f1"] == pytest.approx(2 / 5)
    none = np.empty((0, 2))
    assert junction_scores(none, none, 4.0)["junction_f1"] == 1.0
    assert junction_scores(none, [[1, 1]], 4.0)["junction_f1"] == 0.0


def test_false_positives_near_junctions_are_a_share():
    truth = np.zeros((64, 64), dtype=bool)
    truth[32, 4:60] = True
    nodes = Junctions(np.array([[32.0, 10.0]]), np.array([1.0]), np.array([3]))
    prediction = truth.copy()
    prediction[32 + 5, 10] = True  # 5 px from the node
    prediction[32 + 5, 50] = prediction[32 - 5, 50] = prediction[2, 2] = True
    metrics = case_metrics(prediction, truth, nodes=nodes)
    assert metrics["false_positive"] == 4
    assert metrics["false_positives_near_junctions_pixels"] == 1
    assert metrics["false_positives_near_junctions_fraction"] == 0.25


def test_pooled_values_come_from_summed_counts():
    rng = np.random.default_rng(1)
    pairs = [(rng.random((24, 24)) < 0.3, rng.random((24, 24)) < 0.2) for _ in range(4)]
    pairs.append((np.zeros((24, 24)), np.zeros((24, 24))))
    cases = [case_metrics(p, t) for p, t in pairs]
    pooled = pool_metrics(cases)
    assert pooled["num_cases"] == 5
    assert pooled["num_empty"] == 1
    assert pooled["dice"] == pytest.approx(np.mean([case["dice"] for case in cases]))
    whole = case_metrics(np.concatenate([p for p, _ in pairs]), np.concatenate([t for _, t in pairs]))
    for name in ("dice", "iou", "precision", "recall", "specificity"):
        assert pooled[f"pooled_{name}"] == pytest.approx(whole[name])
    assert pool_metrics(cases[:1])["dice"] == pytest.approx(cases[0]["dice"])


def test_wrong_shapes_are_refused():
    with pytest.raises(DataError, match="one size"):
        case_metrics(np.zeros((4, 4)), np.zeros((4, 5)))
    with pytest.raises(DataError, match="expected"):
        case_metrics(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)))
    with pytest.raises(DataError, match="no cases"):
        pool_metrics([])
