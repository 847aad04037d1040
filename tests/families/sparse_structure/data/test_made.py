"""Made-up rooms: voxels are what a solid fills, rotations what they say, rooms keep their laws, splits are apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageline.errors import ConfigError, DataError
from stageline.families.sparse_structure.data.furniture import CLASSES, NUM_PARAMETERS, STYLES, make_furniture
from stageline.families.sparse_structure.data.made import AIM_DEG, MadeScene, make_scene, shape_split, style_of
from stageline.families.sparse_structure.data.poses import (
    MODALITIES,
    Poses,
    PoseStatistics,
    decode_poses,
    encode_poses,
    rotation_from_6d,
    rotation_to_6d,
    yaw_rotation,
)
from stageline.families.sparse_structure.data.solids import ball, box, drum, hole, join
from stageline.families.sparse_structure.data.voxels import Mesh, canonical, fill_solid, fill_surface

SEED = 3


def centres(resolution: int) -> np.ndarray:
    """(R, R, R, 3) middles of the voxels of the canonical cube."""
    along = (np.arange(resolution) + 0.5) / resolution - 0.5
    return np.stack(np.meshgrid(along, along, along, indexing="ij"), axis=-1)


def test_a_box_fills_the_voxels_whose_centres_lie_in_it() -> None:
    for low, high in (((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5)), ((-0.4, -0.11, -0.3), (0.31, 0.09, 0.42))):
        for resolution in (4, 16):
            at = centres(resolution)
            inside = ((at > low) & (at < high)).all(-1)
            found, num_open = fill_solid(box(low, high), resolution)
            assert num_open == 0
            np.testing.assert_array_equal(found, inside)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_drum_and_a_ball_fill_what_their_equations_say(axis: int) -> None:
    at = centres(24)
    others = [(axis + 1) % 3, (axis + 2) % 3]
    across = np.hypot(at[..., others[0]] / 0.4, at[..., others[1]] / 0.3)
    inside = (across < 1) & (np.abs(at[..., axis]) < 0.35)
    found, num_open = fill_solid(drum((0, 0, 0), (0.4, 0.3), 0.7, axis=axis, sides=400), 24)
    sure = np.abs(across - 1) > 1e-3
    assert num_open == 0
    np.testing.assert_array_equal(found[sure], inside[sure])
    radii = np.array([0.4, 0.3, 0.45])
    distance = np.linalg.norm(at / radii, axis=-1)
    found, num_open = fill_solid(ball((0, 0, 0), radii, sides=200), 24)
    assert num_open == 0
    np.testing.assert_array_equal(found[np.abs(distance - 1) > 5e-3], (distance < 1)[np.abs(distance - 1) > 5e-3])


def test_parts_may_overlap_holes_are_empty_and_gaps_are_noticed() -> None:
    outer, inner = box((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5)), box((-0.2, -0.2, -0.2), (0.2, 0.2, 0.2))
    solid, _ = fill_solid(join([outer, inner]), 8)
    assert solid.all()
    shell, num_open = fill_solid(join([outer, hole(inner)]), 8)
    assert num_open == 0
    np.testing.assert_array_equal(shell, ~fill_solid(inner, 8)[0])
    without_lid = Mesh(outer.vertices, np.array([face for face in outer.faces if not (face % 2).all()]))
    assert fill_solid(without_lid, 8)[1] == 64
    surface = fill_surface(outer, 8)
    assert surface.sum() == 8**3 - 6**3
    assert fill_surface(without_lid, 8).sum() == surface.sum() - 6 * 6


@given(angles=st.tuples(*[st.floats(-math.pi, math.pi)] * 3))
def test_six_numbers_are_the_first_two_columns_and_give_the_rotation_back(angles: tuple[float, float, float]) -> None:
    a, b, c = (yaw_rotation(angle) for angle in angles)
    swap = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    rotation = a @ swap @ b @ swap @ c
    numbers = rotation_to_6d(rotation)
    np.testing.assert_array_equal(numbers, [*rotation[:, 0], *rotation[:, 1]])
    np.testing.assert_allclose(rotation_from_6d(numbers), rotation, atol=1e-12)
    np.testing.assert_allclose(rotation_from_6d(numbers * [2, 2, 2, 0.5, 0.5, 0.5]), rotation, atol=1e-12)


def test_a_quarter_turn_takes_the_front_to_the_left() -> None:
    np.testing.assert_allclose(yaw_rotation(math.pi / 2) @ [1, 0, 0], [0, 1, 0], atol=1e-15)
    pose = Poses(yaw_rotation(np.array([math.pi / 2])), np.array([[1.0, 2, 3]]), np.array([[2.0, 4, 6]]))
    placed = pose.place(np.array([[[0.5, 0, 0], [0, 0.5, 0.5]]]))
    np.testing.assert_allclose(placed, [[[1, 3, 3], [-1, 2, 6]]], atol=1e-12)
    seen = encode_poses(pose)
    np.testing.assert_allclose(seen["6drotation_normalized"], [[0, 1, 0, -1, 0, 0]], atol=1e-7)
    np.testing.assert_allclose(seen["translation"], [[1 / 6, 2 / 6, 3 / 6]], atol=1e-7)
    np.testing.assert_allclose(seen["scale"], np.log([[2.0, 4, 6]]), atol=1e-6)
    np.testing.assert_allclose(seen["translation_scale"], [[np.log(6.0)]], atol=1e-6)


def test_poses_come_back_from_what_the_network_sees() -> None:
    rng = np.random.default_rng(0)
    scenes = []
    for _ in range(7):
        n = int(rng.integers(1, 5))
        scale = rng.uniform(0.2, 2, (n, 3))
        scenes.append(Poses(yaw_rotation(rng.uniform(-3, 3, n)), rng.normal(size=(n, 3)), scale))
    encoded = [encode_poses(poses) for poses in scenes]
    statistics = PoseStatistics.of(encoded)
    seen = [statistics.standardise(numbers) for numbers in encoded]
    for poses, numbers in zip(scenes, seen, strict=True):
        back = decode_poses(statistics.restore(numbers))
        np.testing.assert_allclose(back.rotation, poses.rotation, atol=1e-5)
        np.testing.assert_allclose(back.translation, poses.translation, atol=1e-5)
        np.testing.assert_allclose(back.scale, poses.scale, rtol=1e-5)
    for name in MODALITIES:
        rows = np.concatenate([numbers[name] for numbers in seen]).astype(np.float64)
        np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)
        constant = np.ptp(rows, axis=0) < 1e-9
        np.testing.assert_allclose(rows.std(0)[~constant], 1, atol=1e-4)
        assert (statistics.deviation[name] == np.where(constant, 1.0, statistics.deviation[name])).all()
    assert PoseStatistics.from_json(statistics.to_json()) == PoseStatistics.from_array(statistics.to_array())


@pytest.mark.parametrize("plain", [{}, None, {"translation": {"mean": [1], "deviation": [0]}}])
def test_statistics_that_are_none_are_refused(plain: object) -> None:
    with pytest.raises(DataError, match="means and positive deviations"):
        PoseStatistics.from_json(plain)
    with pytest.raises(DataError, match="no objects"):
        PoseStatistics.of([])


@pytest.fixture(scope="module")
def rooms() -> list[MadeScene]:
    return [make_scene("train", index, SEED) for index in range(40)]


def test_styles_carry_at_least_two_fifths_of_the_variance_within_a_class() -> None:
    rng = np.random.default_rng(0)
    for kind in CLASSES:
        shapes = np.array(
            [
                [
                    fill_solid(canonical(make_furniture(kind, style, rng.random(NUM_PARAMETERS))), 16)[0].reshape(-1)
                    for _ in range(20)
                ]
                for style in STYLES
            ],
            dtype=np.float64,
        )
        within = ((shapes - shapes.mean(1, keepdims=True)) ** 2).sum()
        total = ((shapes - shapes.mean((0, 1))) ** 2).sum()
        assert 1 - within / total >= 0.4, kind
        for style, own in zip(STYLES, shapes, strict=True):
            assert len({shape.tobytes() for shape in own}) >= 4, f"{kind} {style}: parameters hardly show"


def test_every_piece_is_closed_stands_on_the_floor_and_is_not_its_mirror_image() -> None:
    for kind in CLASSES:
        for style in STYLES:
            mesh = make_furniture(kind, style, (0.3, 0.6, 0.5, 0.5, 0.4, 0.7))
            voxels, num_open = fill_solid(canonical(mesh), 16)
            assert num_open == 0
            assert voxels.any()
            assert mesh.vertices[:, 2].min() == 0
            if kind in ("chair", "sofa", "mug"):
                assert (voxels != voxels[::-1]).any(), "what faces +x has a front and a back"
    seat, back = (fill_solid(canonical(make_furniture("chair", s, [0.5] * 6)), 16)[0] for s in ("slab", "post"))
    for chair in (seat, back):
        assert chair[:8, :, -1].any(), "a chair's back is behind"
        assert not chair[8:, :, -1].any(), "a chair's front is open"


def test_nothing_overlaps_and_everything_stands_on_the_floor(rooms: list[MadeScene]) -> None:
    """Points of every solid, placed by its pose, against every other object's voxels."""
    for scene in rooms:
        at = centres(16)
        poses = scene.poses
        clouds = [
            poses.place(np.stack([at[thing.voxels]] * len(poses)))[place] for place, thing in enumerate(scene.objects)
        ]
        for place, thing in enumerate(scene.objects):
            low = poses.translation[place, 2] - thing.size[2] / 2
            assert low == pytest.approx(0, abs=1e-9)
            corners = poses.place(
                np.broadcast_to(canonical(thing.mesh).vertices, (len(poses), *thing.mesh.vertices.shape))
            )
            assert corners[place, :, 2].min() == pytest.approx(0, abs=1e-9)
        for place, cloud in enumerate(clouds):
            for other, thing in enumerate(scene.objects):
                if other == place:
                    continue
                local = (cloud - poses.translation[other]) @ poses.rotation[other] / poses.scale[other]
                cell = np.floor((local + 0.5) * 16).astype(int)
                inside = ((cell >= 0) & (cell < 16)).all(1)
                assert not thing.voxels[tuple(cell[inside].T)].any(), f"{scene.name}: {place} in {other}"


def test_chairs_face_the_table(rooms: list[MadeScene]) -> None:
    num_chairs = 0
    for scene in rooms:
        tables = [place for place, thing in enumerate(scene.objects) if thing.kind == "table"]
        for place, thing in enumerate(scene.objects):
            if thing.kind != "chair":
                continue
            num_chairs += 1
            assert tables, "a chair without a table"
            front = scene.poses.rotation[place] @ [1, 0, 0]
            towards = scene.poses.translation[tables[0]] - scene.poses.translation[place]
            cosine = front[:2] @ towards[:2] / np.linalg.norm(towards[:2])
            assert math.degrees(math.acos(min(cosine, 1))) <= AIM_DEG + 1e-6
    assert num_chairs >= 40


def test_rooms_are_varied_and_a_function_of_their_place(rooms: list[MadeScene]) -> None:
    assert {len(scene.objects) for scene in rooms} == {2, 3, 4, 5, 6}
    assert {thing.kind for scene in rooms for thing in scene.objects} == set(CLASSES)
    again = make_scene("train", 7, SEED)
    assert encode_poses(again.poses)["translation"].tobytes() == encode_poses(rooms[7].poses)["translation"].tobytes()
    assert all((a.voxels == b.voxels).all() for a, b in zip(again.objects, rooms[7].objects, strict=True))
    assert make_scene("train", 7, SEED + 1).objects[0].parameters != again.objects[0].parameters
    assert [len(make_scene("val", index, 0, num_objects=(3, 3)).objects) for index in range(3)] == [3, 3, 3]
    with pytest.raises(ConfigError, match="'dev'"):
        make_scene("dev", 0, 0)


def test_every_style_has_its_share_whatever_the_number_and_kinds_do_not_tell_it(rooms: list[MadeScene]) -> None:
    for split, number in (("train", 400), ("val", 60), ("test", 61)):
        styles = [style_of(split, index, SEED) for index in range(number)]
        assert min(styles.count(style) for style in STYLES) >= 0.15 * number
    some = [style_of("val", index, SEED, ("post", "block")) for index in range(8)]
    assert (some.count("post"), some.count("block")) == (4, 4)
    assert make_scene("val", 3, SEED, styles=("round",)).style == "round"
    assert {thing.style for thing in rooms[5].objects} == {rooms[5].style}
    first = {style: sum(s.style == style for s in rooms for _ in s.objects) for style in STYLES}
    assert max(first.values()) < 2 * min(first.values())


def test_no_shape_of_one_split_occurs_in_another(rooms: list[MadeScene]) -> None:
    found = {"train": {thing.voxels.tobytes() for scene in rooms for thing in scene.objects}}
    parameters = {"train": {thing.parameters for scene in rooms for thing in scene.objects}}
    for split in ("val", "test"):
        scenes = [make_scene(split, index, SEED) for index in range(12)]
        assert all(shape_split(thing.voxels) == split for scene in scenes for thing in scene.objects)
        found[split] = {thing.voxels.tobytes() for scene in scenes for thing in scene.objects}
        parameters[split] = {thing.parameters for scene in scenes for thing in scene.objects}
    for several in (found, parameters):
        assert sum(map(len, several.values())) == len(set().union(*several.values()))
