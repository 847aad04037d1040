"""Junctions of a mask: closed cases, the heat map, peaks, matching."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from stageline.errors import ConfigError
from stageline.families.film_flow.data.junctions import (
    clean_mask,
    disc_radii,
    find_junctions,
    find_peaks,
    junction_heat,
    match_nodes,
)


def bar(size=64, rows=slice(30, 35), columns=slice(5, 60)):
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[rows, columns] = 1
    return mask


def test_straight_bar_has_no_node():
    """Acceptance check 14."""
    for angle in range(0, 180, 15):
        row, column = np.mgrid[0:96, 0:96] - 47.5
        along = row * np.sin(np.radians(angle)) + column * np.cos(np.radians(angle))
        across = -row * np.cos(np.radians(angle)) + column * np.sin(np.radians(angle))
        mask = (np.abs(across) < 2.5) & (np.abs(along) < 40)
        assert len(find_junctions(mask)) == 0, f"at {angle} degrees"


def test_bar_that_leaves_the_picture_has_no_node():
    assert len(find_junctions(bar(columns=slice(None)))) == 0


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("width", [1, 3, 5, 8])
def test_t_has_exactly_one_node(turns, width):
    """Acceptance check 14."""
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[30 : 30 + width, 4:60] = 1
    mask[30:60, 30 : 30 + width] = 1
    found = find_junctions(np.rot90(mask, turns))
    assert len(found) == 1
    assert found.degrees.tolist() == [3]


def test_cross_has_degree_four():
    mask = bar(columns=slice(None))
    mask[:, 30:35] = 1
    found = find_junctions(mask)
    np.testing.assert_allclose(found.points, [[32, 32]], atol=1)
    assert found.degrees.tolist() == [4]
    assert len(find_junctions(mask, degree_threshold=4)) == 1
    assert len(find_junctions(mask, degree_threshold=5)) == 0


def test_degree_threshold_four_leaves_out_forks():
    mask = bar(columns=slice(None))
    mask[30:, 30:35] = 1
    assert len(find_junctions(mask)) == 1
    assert len(find_junctions(mask, degree_threshold=4)) == 0


@pytest.mark.parametrize("threshold", [2, 1, 0, -1, True, 2.5])
def test_thresholds_that_would_mark_lines_are_refused(threshold):
    """Acceptance check 14."""
    with pytest.raises(ConfigError, match="degree_threshold"):
        find_junctions(bar(), degree_threshold=threshold)


def test_short_spur_is_pruned_and_long_branch_is_not():
    spur = bar()
    spur[27:30, 31:33] = 1
    assert len(find_junctions(spur)) == 0
    branch = bar()
    branch[10:30, 31:34] = 1
    assert len(find_junctions(branch)) == 1


def test_cleaning_fills_small_holes_and_drops_specks():
    mask = bar(rows=slice(20, 40))
    mask[28:30, 20:23] = 0  # a hole of 6 pixels
    mask[30:33, 40:43] = 0  # a hole of 9 pixels
    mask[2:5, 2:7] = 1  # 15 pixels
    mask[50:54, 2:6] = 1  # 16 pixels
    clean = clean_mask(mask)
    assert clean[28:30, 20:23].all()
    assert not clean[30:33, 40:43].any()
    assert not clean[2:5, 2:7].any()
    assert clean[50:54, 2:6].all()


def test_empty_and_full_masks_have_no_nodes():
    assert len(find_junctions(np.zeros((20, 20)))) == 0
    assert len(find_junctions(np.ones((20, 20)))) == 0


def test_heat_is_a_gaussian_with_one_peak_per_node():
    heat = junction_heat([[20.3, 30.6]], [1.0], (48, 64), radius_px=6.0)
    assert heat.shape == (48, 64)
    assert heat[20, 31] == 1.0
    assert (heat > 0.99).sum() == 1
    assert heat[20, 33] == pytest.approx(np.exp(-(2**2) / (2 * 2.0**2)), rel=1e-5)
    assert heat[20, 31 + 6] == pytest.approx(np.exp(-4.5), rel=1e-4)


def test_heat_of_several_nodes_is_their_maximum():
    points, radii = np.array([[10, 10], [14, 12], [30, 40]]), np.array([1.0, 4.0, 2.0])
    one_by_one = [junction_heat(p[None], r[None], (40, 50), 5.0) for p, r in zip(points, radii, strict=True)]
    np.testing.assert_array_equal(junction_heat(points, radii, (40, 50), 5.0), np.max(one_by_one, axis=0))
    np.testing.assert_allclose(disc_radii(radii, 5.0), [5.0, 6.0, 5.0])


def test_heat_of_nodes_at_and_over_the_border():
    assert junction_heat([[0, 0]], [1.0], (20, 20), 4.0)[0, 0] == 1.0
    outside = junction_heat([[-3, 5], [500, 5]], [1.0, 1.0], (20, 20), 4.0)
    assert 0 < outside.max() < 1
    assert junction_heat(np.empty((0, 2)), np.empty(0), (20, 20), 4.0).max() == 0


def test_peaks_of_a_heat_map_are_its_nodes():
    points = np.array([[10, 10], [30, 44], [30, 30]])
    heat = junction_heat(points, np.ones(3), (48, 64), 6.0)
    peaks = find_peaks(heat)
    assert len(match_nodes(peaks, points, 0.1)) == len(peaks) == 3
    assert len(find_peaks(np.zeros((8, 8)))) == 0
    assert len(find_peaks(np.full((8, 8), 0.5))) == 1


def test_matching_is_the_best_one_to_one():
    rng = np.random.default_rng(0)
    for _ in range(50):
        found, true = rng.uniform(0, 12, (4, 2)), rng.uniform(0, 12, (5, 2))
        distance = np.linalg.norm(found[:, None] - true[None], axis=2)
        best = max(
            (
                sum(distance[i, j] <= 4 for i, j in enumerate(p)),
                -sum(d for i, j in enumerate(p) if (d := distance[i, j]) <= 4),
            )
            for p in permutations(range(5), 4)
        )
        pairs = match_nodes(found, true, 4.0)
        assert len(pairs) == best[0]
        assert sum(distance[i, j] for i, j in pairs) == pytest.approx(-best[1])
        assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)


def test_matching_prefers_two_near_pairs_to_one_perfect_pair():
    pairs = match_nodes([[0, 0], [0, 3.9]], [[0, 3.9], [0, 7.9]], 4.0)
    assert sorted(map(tuple, pairs.tolist())) == [(0, 0), (1, 1)]


def test_matching_takes_a_tolerance_per_true_node():
    found, true = [[0, 0], [20, 0]], [[0, 3], [20, 3]]
    assert match_nodes(found, true, [2.0, 4.0]).tolist() == [[1, 1]]
    assert match_nodes(np.empty((0, 2)), true, 4.0).shape == (0, 2)
