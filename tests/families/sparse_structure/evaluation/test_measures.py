"""What an evaluation measures of scenes, against closed forms and naive references."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch

from stageline.data.rng import numpy_rng
from stageline.families.sparse_structure.baselines import _expected_agreement
from stageline.families.sparse_structure.data.made import MadeScene, make_scene
from stageline.families.sparse_structure.data.poses import Poses, yaw_rotation
from stageline.families.sparse_structure.distances import DIRECTIONS, project, sliced_distance
from stageline.families.sparse_structure.measures import agreement, agreement_across, facing_error, interpenetration
from stageline.families.sparse_structure.styles import LEAST_ACCURACY, StyleReader


def poses(yaw_deg: list[float], translation: list[list[float]], scale: list[list[float]]) -> Poses:
    return Poses(yaw_rotation(np.deg2rad(np.array(yaw_deg))), np.array(translation), np.array(scale))


def test_the_sliced_distance_of_two_gaussians_is_that_of_their_parameters() -> None:
    """On a line W_2 of N(m, a²) and N(n, b²) is the root of (m - n)² + (a - b)²; so it is in the mean of directions."""
    rng = torch.Generator().manual_seed(0)
    sample = torch.randn(20_000, 3, generator=rng, dtype=torch.float64)
    other = torch.randn(20_000, 3, generator=rng, dtype=torch.float64)
    shift, scale = torch.tensor([0.6, -0.2, 0.3], dtype=torch.float64), 1.8
    along = project(torch.eye(3))  # the directions themselves
    expected = np.sqrt(np.mean((shift.numpy() @ along) ** 2) + (scale - 1) ** 2)
    assert sliced_distance(project(sample), project(scale * other + shift)) == pytest.approx(expected, abs=0.02)
    assert np.allclose(np.linalg.norm(along, axis=0), 1)
    assert along.shape == (3, DIRECTIONS)


def test_the_sliced_distance_of_equally_many_points_is_that_of_sorted_ones() -> None:
    rng = numpy_rng("points")
    a, b = rng.normal(size=(50, 7)), rng.normal(size=(50, 7)) + 0.5
    naive = [np.mean((np.sort(a[:, n]) - np.sort(b[:, n])) ** 2) for n in range(7)]
    assert sliced_distance(a, b) == pytest.approx(np.sqrt(np.mean(naive)))
    assert sliced_distance(a, a[::-1]) == 0
    assert sliced_distance(a, np.repeat(a, 3, axis=0)) == 0


def test_agreement_is_the_share_of_equal_pairs() -> None:
    assert agreement(["a", "a", "a"]) == 1
    assert agreement(["a", "b", "a"]) == pytest.approx(1 / 3)
    assert agreement(["a", "a", "b", "b"]) == pytest.approx(2 / 6)
    assert agreement([0, 1, 2, 3, 3]) == pytest.approx(1 / 10)
    assert agreement(["a"]) is None
    labels = numpy_rng("labels").integers(0, 4, size=400).tolist()
    assert agreement(labels) == pytest.approx(0.25, abs=0.02)


def test_agreement_across_scenes_is_the_share_of_equal_pairs_of_different_scenes() -> None:
    scenes = [numpy_rng("scene", number).integers(0, 3, size=size).tolist() for number, size in enumerate((2, 5, 1, 4))]
    pairs = [a == b for one, other in combinations(scenes, 2) for a in one for b in other]
    assert agreement_across(scenes) == pytest.approx(np.mean(pairs))
    assert agreement_across([["a", "a"], ["a"], ["a", "a", "a"]]) == 1
    assert agreement_across([["a", "a"], ["b", "b"]]) == 0
    assert agreement_across([["a", "a", "b"]]) is None
    assert agreement_across([]) is None


def test_styles_that_are_drawn_apart_agree_as_often_as_their_shares_say() -> None:
    chair, table = Counter({"slab": 3, "post": 1}), Counter({"slab": 1, "round": 1})
    assert _expected_agreement([chair, table]) == pytest.approx(3 / 4 * 1 / 2)
    even = Counter(dict.fromkeys("abcd", 7))
    assert _expected_agreement([even] * 5) == pytest.approx(1 / 4)
    assert _expected_agreement([even, Counter()]) is None
    assert _expected_agreement([even]) is None


def test_boxes_lie_inside_of_each_other_by_their_common_part() -> None:
    """Two cubes of one metre, half of each in the other; a small one within a large one; two that only touch."""
    full, one = np.ones((2, 8, 8, 8), dtype=bool), [1.0, 1.0, 1.0]
    half = poses([0, 0], [[0, 0, 0], [0.5, 0, 0]], [one, one])
    assert interpenetration(full, half) == pytest.approx(0.5)
    assert interpenetration(full, poses([0, 0], [[0, 0, 0], [1.0, 0, 0]], [one, one])) == 0
    nested = poses([0, 0], [[0, 0, 0], [0, 0, 0]], [one, [0.5, 0.5, 0.5]])
    assert interpenetration(full, nested) == pytest.approx((1 / 8 + 1) / 2)
    assert interpenetration(full[:1], poses([0], [[0, 0, 0]], [one])) is None
    empty = np.stack([full[0], np.zeros_like(full[0])])
    assert interpenetration(empty, half) is None


def test_interpenetration_takes_rotation_and_scale_of_each_axis() -> None:
    """A board of 4 x 1 x 1 metres, turned by a quarter, crosses another: each has a quarter in the other."""
    full, long = np.ones((2, 16, 16, 16), dtype=bool), [4.0, 1.0, 1.0]
    crossed = poses([0, 90], [[1, 2, 0], [1, 2, 0]], [long, long])
    assert interpenetration(full, crossed) == pytest.approx(0.25)
    apart = poses([0, 90], [[0, 0, 0], [2.6, 0, 0]], [long, long])
    assert interpenetration(full, apart) == 0
    turned = poses([30, 30], [[0, 0, 0], [2 * np.cos(np.pi / 6), 2 * np.sin(np.pi / 6), 0]], [long, long])
    assert interpenetration(full, turned) == pytest.approx(0.5)


@pytest.mark.parametrize("off_deg", [0.0, 30.0, -75.0, 180.0])
def test_the_facing_error_is_the_angle_by_which_a_chair_is_turned_away(off_deg: float) -> None:
    """Whatever the direction from chair to table, and of several tables the nearest counts."""
    for towards_deg in (-170.0, -20.0, 95.0):
        table = [2 * np.cos(np.deg2rad(towards_deg)), 2 * np.sin(np.deg2rad(towards_deg)), 0.7]
        far = [-5.0, 5.0, 0.7]
        placed = poses([towards_deg + off_deg, 0, 0], [[0, 0, 0.4], table, far], [[1.0, 1.0, 1.0]] * 3)
        assert facing_error(placed, ["chair", "table", "table"]) == pytest.approx(abs(off_deg), abs=1e-9)
    assert facing_error(placed, ["lamp", "table", "table"]) is None
    assert facing_error(placed, ["chair", "lamp", "lamp"]) is None


def test_made_rooms_are_without_fault() -> None:
    """Nothing in another object, chairs within 5 degrees, one style."""
    for index in range(3):
        scene = made(index)
        voxels = np.stack([thing.voxels for thing in scene.objects])
        assert interpenetration(voxels, scene.poses) == 0
        error = facing_error(scene.poses, [thing.kind for thing in scene.objects])
        assert error is None or error <= 5
        assert agreement([thing.style for thing in scene.objects]) == 1


def made(index: int) -> MadeScene:
    return make_scene("train", index, 0)


def objects(rng: np.random.Generator, number: int) -> tuple[np.ndarray, list[str], list[str]]:
    """Noisy grids in which a style is one filled half, another one in each class."""
    kinds, styles = [str(k) for k in rng.choice(["a", "b"], number)], [str(s) for s in rng.choice(["x", "y"], number)]
    cubes = 0.3 * rng.random((number, 6, 6, 6))
    for cube, kind, style in zip(cubes, kinds, styles, strict=True):
        half = slice(0, 3) if style == "x" else slice(3, 6)
        cube[(half,) if kind == "a" else (slice(None), half)] += 0.2
    return cubes, kinds, styles


def test_a_style_is_read_off_the_shape_of_its_class() -> None:
    rng = numpy_rng("reader")
    reader = StyleReader(*objects(rng, 80))
    cubes, kinds, styles = objects(rng, 40)
    assert reader.accuracy(cubes, kinds, styles) == 1
    assert reader.read(cubes[:1], ["c"]) == [None]
    assert reader.read(cubes[:2], kinds[:2]) == StyleReader(*objects(numpy_rng("reader"), 80)).read(
        cubes[:2], kinds[:2]
    )


def test_labels_that_no_shape_shows_stay_below_what_is_asked_of_a_reader() -> None:
    rng = numpy_rng("shuffled")
    cubes, kinds, styles = objects(rng, 80)
    reader = StyleReader(cubes, kinds, [str(s) for s in rng.permutation(styles)])
    assert reader.accuracy(*objects(rng, 60)) < LEAST_ACCURACY
