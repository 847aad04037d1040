"""Synthetic trees: exact junctions, self-avoidance, Murray's law, prompts, samples that are functions of an index."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from guards import HANG_SECONDS

from stageline.families.film_flow.data.junctions import find_junctions, match_nodes
from stageline.families.film_flow.data.tree_pictures import (
    PROMPTS,
    PictureLook,
    make_prompted_picture,
    make_tree_picture,
)
from stageline.families.film_flow.data.trees import (
    Branch,
    Tree,
    TreeShape,
    find_crossings,
    grow_tree,
    rasterise,
    tree_rng,
)
from stageline.families.film_flow.measures.metrics import betti_numbers


def straight(*ends: tuple[float, float], radius: float = 1.5) -> Tree:
    (r0, c0), (r1, c1) = ends
    steps = int(np.hypot(r1 - r0, c1 - c0)) + 1
    points = np.stack([np.linspace(r0, r1, steps), np.linspace(c0, c1, steps)], axis=1)
    return Tree((Branch(points, radius),), np.empty((0, 3)))


def test_mask_junctions_agree_with_the_recorded_ones():
    """Acceptance check 14."""
    found = true = matched = 0
    for index in range(60):
        made = make_tree_picture(0, "train", index, 128)
        nodes = find_junctions(made.masks[0]).points
        matched += len(match_nodes(nodes, made.nodes[:, :2], 4.0))
        found, true = found + len(nodes), true + len(made.nodes)
    assert true > 150
    assert 2 * matched / (found + true) >= 0.90


def test_trees_avoid_themselves():
    for index in range(30):
        tree = grow_tree(128, tree_rng(3, "train", index))
        components, loops = betti_numbers(rasterise(tree, 128) >= 0.5)
        assert components == 1
        assert loops <= 1, f"tree {index} closes {loops} loops"
    loops = [betti_numbers(make_tree_picture(3, "train", i, 128).masks[0])[1] for i in range(40)]
    assert np.mean(loops) < 0.1


def test_branches_keep_their_distance():
    shape = TreeShape()
    for index in range(10):
        tree = grow_tree(128, tree_rng(1, "train", index), shape)
        for number, one in enumerate(tree.branches):
            for other in tree.branches[number + 1 :]:
                gap = np.sqrt(((one.points[:, None] - other.points[None]) ** 2).sum(-1)).min()
                related = gap < 1e-9 or np.allclose(one.points[0], other.points[0])
                family = min(
                    np.linalg.norm(a - b) for a in (one.points[0], one.points[-1]) for b in other.points[[0, -1]]
                )
                assert related or family < 6 or gap >= shape.min_gap + one.radius + other.radius - 1e-9


def test_radii_follow_murray():
    shape = TreeShape(min_radius=0.0, root_radius=(0.03, 0.03))
    checked = 0
    for index in range(20):
        tree = grow_tree(160, tree_rng(2, "train", index), shape)
        for row, column, _ in tree.bifurcations:
            at = np.array([row, column])
            children = [b.radius for b in tree.branches if np.allclose(b.points[0], at)]
            parents = [b.radius for b in tree.branches if np.allclose(b.points[-1], at)]
            assert len(children) == 2
            assert len(parents) == 1
            assert children[0] ** 3 + children[1] ** 3 == pytest.approx(parents[0] ** 3)
            checked += 1
    assert checked > 30


def test_segments_shrink_by_generation():
    tree = grow_tree(256, tree_rng(0, "train", 1))
    longest = max(len(branch.points) for branch in tree.branches)
    assert longest <= round(256 * 0.27) + 1
    for branch in tree.branches:
        steps = np.linalg.norm(np.diff(branch.points, axis=0), axis=1)
        np.testing.assert_allclose(steps, 1.0)


def test_coverage_of_a_straight_branch_is_its_area():
    coverage = rasterise(straight((32.0, 0.0), (32.0, 63.0), radius=2.5), 64)
    np.testing.assert_allclose(coverage[:, 20:40].sum(axis=0), 5.0, atol=0.5)
    assert coverage.dtype == np.float32
    assert coverage.min() >= 0
    assert coverage.max() <= 1
    centre = (coverage[:, 30] * np.arange(64)).sum() / coverage[:, 30].sum()
    assert centre == pytest.approx(32.0, abs=0.15)


def test_crossing_of_two_lines_is_where_they_cross():
    found = find_crossings(straight((10.0, 0.0), (10.0, 60.0), radius=1.0), straight((0.0, 25.5), (60.0, 25.5)))
    np.testing.assert_allclose(found, [[10.0, 25.5, 1.5]], atol=1e-9)
    parallel = find_crossings(straight((10.0, 0.0), (10.0, 60.0)), straight((20.0, 0.0), (20.0, 60.0)))
    assert parallel.shape == (0, 3)


def test_crossings_are_recorded_apart_from_bifurcations():
    made = next(s for i in range(20) if len((s := make_tree_picture(0, "train", i, 96, num_trees=2)).crossings))
    assert made.nodes.shape[0] == len(made.bifurcations) + len(made.crossings)
    row, column, _ = made.crossings[0]
    assert made.masks[0][round(row), round(column)] == 1


def test_prompted_picture_is_dark_and_bright():
    for index in range(8):
        made = make_prompted_picture(0, "val", index, 64, PictureLook(noise=0.0, background=0.0))
        assert made.prompts == PROMPTS == ("dark branches", "bright branches")
        dark, bright = (mask.astype(bool) for mask in made.masks)
        ground = np.median(made.pixels[~dark & ~bright])
        assert made.pixels[dark & ~bright].mean() < ground - 20
        assert made.pixels[bright].mean() > ground + 20


def test_distractors_change_the_picture_but_no_label():
    plain = make_prompted_picture(0, "train", 0, 64)
    crowded = make_prompted_picture(0, "train", 0, 64, PictureLook(distractors=True))
    assert not np.array_equal(plain.pixels, crowded.pixels)
    for a, b in zip(plain.coverage, crowded.coverage, strict=True):
        np.testing.assert_array_equal(a, b)


def test_samples_are_functions_of_seed_split_and_index():
    in_order = [make_prompted_picture(5, "train", index, 48) for index in range(4)]
    alone = make_prompted_picture(5, "train", 3, 48)
    np.testing.assert_array_equal(in_order[3].pixels, alone.pixels)
    np.testing.assert_array_equal(in_order[3].nodes, alone.nodes)
    others = [make_prompted_picture(*key, 48) for key in ((5, "val", 3), (6, "train", 3), (5, "train", 2))]
    assert not any(np.array_equal(alone.pixels, other.pixels) for other in others)
    for one, two in pairwise(in_order):
        assert not np.array_equal(one.masks[0], two.masks[0])


def test_another_process_makes_the_same_sample():
    code = (
        "import hashlib\n"
        "from stageline.families.film_flow.data.tree_pictures import make_prompted_picture\n"
        "s = make_prompted_picture(5, 'train', 3, 48)\n"
        "print(hashlib.sha256(s.pixels.tobytes() + s.masks[1].tobytes()).hexdigest())\n"
        "import sys; assert 'torch' not in sys.modules\n"
    )
    import hashlib

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANG_SECONDS
    )
    here = make_prompted_picture(5, "train", 3, 48)
    assert done.stdout.strip() == hashlib.sha256(here.pixels.tobytes() + here.masks[1].tobytes()).hexdigest()
