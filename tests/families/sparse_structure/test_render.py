"""Pictures of scenes against silhouettes that are known: what a transposed rotation or a scale without its exponential
would show elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stageline.families.sparse_structure import render
from stageline.families.sparse_structure.data.poses import Poses, decode_poses, encode_poses, yaw_rotation
from stageline.families.sparse_structure.data.voxels import Mesh
from stageline.families.sparse_structure.render import BACKGROUND, FINER, Frame, draw, surface, surfaces

SIZE = 96
FRAME = Frame(np.array([0.3, -0.2, 0.5]), 2.0)


def poses(yaw_rad: float = 0.5) -> Poses:
    """A long flat object, turned and moved; its pose went through the numbers that the network sees."""
    given = Poses(yaw_rotation(yaw_rad)[None], np.array([[0.6, 0.1, 0.5]]), np.array([[1.6, 0.5, 0.8]]))
    return decode_poses(encode_poses(given))


def silhouette(picture: NDArray[Any]) -> NDArray[np.bool_]:
    seen: NDArray[np.bool_] = (picture != np.array(BACKGROUND)).any(-1)
    return seen


def expected(corners: NDArray[Any], azimuth_deg: float, elevation_deg: float) -> NDArray[np.bool_]:
    """Pixels in the outline of a convex body, by the half-planes of every pair of its corners; computed on its own."""
    a, e = np.deg2rad([azimuth_deg, elevation_deg])
    x = corners[:, 0] * np.cos(a) + corners[:, 1] * np.sin(a)
    away = -corners[:, 0] * np.sin(a) + corners[:, 1] * np.cos(a)
    y = -(corners[:, 2] * np.cos(e) + away * np.sin(e))
    points = np.stack([x, y], 1) * SIZE / (2 * FRAME.radius) + SIZE / 2
    grid = np.stack(np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5), -1)
    inside = np.ones((SIZE, SIZE), bool)
    for p in points:
        for q in points:
            side = (points - p) @ np.array([q[1] - p[1], p[0] - q[0]])
            if np.linalg.norm(q - p) > 1e-9 and side.max() <= 1e-9:  # all corners on one side: an edge of the outline
                inside &= (grid - p) @ np.array([q[1] - p[1], p[0] - q[0]]) <= 0
    return inside


def test_a_box_is_seen_where_its_pose_says() -> None:
    """A full cube of voxels, in both views: all but pixels at the edge, of which marching cubes rounds some off."""
    place = poses()
    picture = draw(surfaces(np.ones((1, 16, 16, 16)), place), FRAME, size=SIZE, floor_m=None)
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    inside = place.place(corners[None])[0] - FRAME.centre
    for number, (azimuth, elevation) in enumerate(render.SIDES_DEG):
        seen = silhouette(picture[:, number * SIZE : (number + 1) * SIZE])
        wanted = expected(inside, azimuth, elevation)
        assert wanted.sum() > 300
        assert (seen ^ wanted).sum() < 0.08 * wanted.sum(), number


@pytest.mark.parametrize("fault", ["transposed rotation", "logarithm of scale"])
def test_a_wrong_pose_is_seen_elsewhere(fault: str) -> None:
    """The silhouette test has teeth: both faults move far more than the pixels it allows."""
    right = poses()
    wrong = {
        "transposed rotation": Poses(right.rotation.swapaxes(1, 2), right.translation, right.scale),
        "logarithm of scale": Poses(right.rotation, right.translation, np.abs(np.log(right.scale))),
    }[fault]
    seen = [
        silhouette(draw(surfaces(np.ones((1, 16, 16, 16)), p), FRAME, size=SIZE, floor_m=None)) for p in (right, wrong)
    ]
    assert (seen[0] ^ seen[1]).sum() > 0.2 * seen[0].sum()


def test_what_is_nearer_hides_what_is_behind() -> None:
    """Two squares that face the first view: the one further along its line of sight is hidden, in either order."""
    azimuth, elevation = np.deg2rad(render.SIDES_DEG[0])
    into = np.array([-np.sin(azimuth) * np.cos(elevation), np.cos(azimuth) * np.cos(elevation), -np.sin(elevation)])
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0])
    up = np.cross(right, into)
    square = np.array([-right - up, right - up, right + up, -right + up]) * 0.5
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    frame = Frame(np.zeros(3), 1.0)
    near, far = Mesh(square - 0.5 * into, faces), Mesh(square + 0.5 * into, faces)
    for meshes, nearest in (([near, far], 0), ([far, near], 1)):
        colour = draw(meshes, frame, size=32, floor_m=None)[16, 16].astype(float)
        hues = np.array([render.COLOURS[0], render.COLOURS[1]], float)
        alike = (hues @ colour) / np.linalg.norm(hues, axis=1)
        assert alike.argmax() == nearest


def test_a_triangle_covers_its_area() -> None:
    """The number of pixels is the area, whatever the size of the triangle: none is counted twice or left out."""
    flat = np.array([[[1.2, 2.3], [60.7, 5.1], [20.4, 70.9]], [[3.0, 3.0], [3.4, 3.0], [3.0, 3.3]]])
    found = [pixel for which, pixel, _ in render._covered(flat, np.zeros((2, 3)), 80) for pixel in pixel[which == 0]]
    area = abs(np.linalg.det(np.stack([flat[0, 1] - flat[0, 0], flat[0, 2] - flat[0, 0]]))) / 2
    assert len(set(found)) == len(found) == pytest.approx(area, rel=0.01)


def test_the_surface_is_where_occupancy_ends() -> None:
    """One voxel of eight: the surface lies between its centre and its neighbours' centres; nothing has none."""
    cube = np.zeros((8, 8, 8))
    assert surface(cube) is None
    assert draw([None], FRAME, size=8, floor_m=None).min() == 255
    cube[2, 3, 4] = 1
    mesh = surface(cube)
    assert mesh is not None
    centre = (np.array([2, 3, 4]) + 0.5) / 8 - 0.5
    np.testing.assert_allclose(mesh.vertices.mean(0), centre, atol=1e-6)
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), 1 / 8, atol=1e-6)
    a, b, c = (mesh.vertices[mesh.faces[:, k]] - centre for k in range(3))
    assert (np.einsum("ij,ij->i", a, np.cross(b, c)) > 0).all(), "faces go round anticlockwise, seen from outside"


def test_a_frame_holds_all_cubes() -> None:
    place = poses()
    frame = Frame.around(place, margin=1.0)
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    away = np.linalg.norm(place.place(corners[None])[0] - frame.centre, axis=1)
    assert away.max() == pytest.approx(frame.radius)


def test_finer_pixels_are_averaged() -> None:
    picture = draw(surfaces(np.ones((1, 4, 4, 4)), poses()), FRAME, size=SIZE)
    assert picture.shape == (SIZE, 2 * SIZE, 3)
    assert picture.dtype == np.uint8
    assert FINER > 1
