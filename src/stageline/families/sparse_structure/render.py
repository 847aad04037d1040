"""Pictures of scenes: surfaces of voxels put where their poses say, shaded, seen from two sides. No torch.

Everything here is in metres and z points up, as in `data.poses`. A picture is drawn into a depth buffer, all triangles
of one size at once, and averaged down from a picture twice as wide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from stageline.families.sparse_structure.data.poses import Poses
from stageline.families.sparse_structure.data.voxels import Mesh

Array = NDArray[Any]

COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Of objects by their place in the scene; Okabe and Ito (2008), told apart by colour-blind people too."""
FLOOR_COLOUR = (226, 226, 222)
BACKGROUND = (255, 255, 255)
SIDES_DEG = ((35.0, 28.0), (-10.0, 75.0))
"""Azimuth and elevation of the two views: from the front and nearly from above."""
AMBIENT = 0.35
"""Share of the light that reaches a face which is turned away from the lamp."""
LAMP = (0.35, -0.5, 0.8)
"""Direction towards the lamp, in the scene."""
FINER = 2
"""Pixels drawn for one of the picture, along each side."""
MAX_SAMPLES = 1 << 21
"""Pixels that are looked at together: about 150 MB."""
EXACT = 16
"""Triangles of at most so many pixels along a side are looked at with others of just that many."""
INSIDE = 1e-9
"""What rounding may take away from a pixel's weights on the edge of a triangle."""


@dataclass(frozen=True)
class Frame:
    """What a picture shows. centre: (3,) metres.  radius: metres from there to the edge of the picture."""

    centre: Array
    radius: float

    @classmethod
    def around(cls, poses: Poses, margin: float = 0.9) -> Frame:
        """Room for a scene's objects, which seldom reach the corners of their cubes.

        margin: times the radius that holds all corners.
        """
        corners = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3, indexing="ij"), -1).reshape(1, 8, 3)
        points = poses.place(np.repeat(corners, len(poses), 0)).reshape(-1, 3)
        centre = (points.min(0) + points.max(0)) / 2
        return cls(centre, margin * float(np.linalg.norm(points - centre, axis=1).max()))


def surface(occupancy: Array) -> Mesh | None:
    """Where occupancy passes a half, in the canonical cube; None where no voxel does.

    occupancy: (R, R, R) in [0, 1]; beyond its sides there is nothing. Lorensen and Cline (1987), marching cubes.
    """
    cube = np.pad(np.asarray(occupancy, np.float32), 1)
    if not cube.max() > 0.5:
        return None
    vertices, faces, _, _ = marching_cubes(cube, 0.5)  # type: ignore[no-untyped-call]
    # Voxel i of the padded cube is voxel i - 1, whose centre is (i - 0.5) / R - 0.5. Its faces go round the other way.
    return Mesh((vertices - 0.5) / len(occupancy) - 0.5, faces[:, ::-1])


def surfaces(occupancy: Array, poses: Poses) -> list[Mesh | None]:
    """The objects of a scene, in their places. occupancy: (N, R, R, R) in [0, 1] -> N meshes in metres, or None."""
    found: list[Mesh | None] = []
    for place, cube in enumerate(occupancy):
        mesh = surface(cube)
        if mesh is not None:
            points = mesh.vertices[None] * poses.scale[place] @ poses.rotation[place].T + poses.translation[place]
            mesh = Mesh(points[0], mesh.faces)
        found.append(mesh)
    return found


def draw(meshes: Sequence[Mesh | None], frame: Frame, *, size: int = 256, floor_m: float | None = 0.0) -> Array:
    """Both views of a scene, side by side.

    meshes: of the objects, in metres; None draws nothing and keeps the colours of the others.
    frame: what is seen; the same for pictures that are to be compared.  size: pixels along a side of each view.
    floor_m: height of the floor, drawn as a square below the frame; None leaves it out.
    Returns (size, 2 size, 3) uint8.
    """
    triangles, colours = [], []
    if floor_m is not None:
        ground = _floor(frame, floor_m)
        triangles.append(ground)
        colours.append(np.broadcast_to(np.array(FLOOR_COLOUR), (len(ground), 3)))
    for place, mesh in enumerate(meshes):
        if mesh is not None:
            triangles.append(mesh.vertices[mesh.faces])
            colours.append(np.broadcast_to(np.array(COLOURS[place % len(COLOURS)]), (len(mesh.faces), 3)))
    if not triangles:
        return np.full((size, 2 * size, 3), BACKGROUND, np.uint8)
    corners = np.concatenate(triangles).astype(np.float64)
    lit = _lit(corners, np.concatenate(colours).astype(np.float64))
    views = [_view(corners, lit, frame, size * FINER, *side) for side in SIDES_DEG]
    fine = np.concatenate(views, axis=1).reshape(size, FINER, 2 * size, FINER, 3)
    picture: Array = fine.mean((1, 3)).round().astype(np.uint8)
    return picture


def _floor(frame: Frame, height_m: float) -> Array:
    """(2, 3, 3): a square as wide as the frame."""
    x, y = frame.centre[:2]
    r = frame.radius * 0.9
    corners = np.array([[x - r, y - r], [x + r, y - r], [x + r, y + r], [x - r, y + r]])
    square = np.concatenate([corners, np.full((4, 1), height_m)], axis=1)
    triangles: Array = square[[[0, 1, 2], [0, 2, 3]]]
    return triangles


def _lit(corners: Array, colours: Array) -> Array:
    """Colours of faces under the lamp (Lambert). corners: (T, 3, 3).  colours: (T, 3) -> (T, 3)."""
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normal, axis=1)
    lamp = np.array(LAMP) / np.linalg.norm(LAMP)
    towards = np.clip(normal @ lamp / np.where(length > 0, length, 1), 0, 1)
    lit: Array = colours * (AMBIENT + (1 - AMBIENT) * towards)[:, None]
    return lit


def _view(corners: Array, colours: Array, frame: Frame, size: int, azimuth_deg: float, elevation_deg: float) -> Array:
    """One parallel projection, (size, size, 3) float. Azimuth 0 looks along +y, elevation 90 straight down."""
    azimuth, elevation = np.deg2rad([azimuth_deg, elevation_deg])
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    into = np.array([-np.sin(azimuth) * np.cos(elevation), np.cos(azimuth) * np.cos(elevation), -np.sin(elevation)])
    up = np.cross(right, into)
    seen = (corners - frame.centre) @ np.stack([right, -up, into], axis=1)
    scale = size / (2 * frame.radius)
    flat, depth = seen[..., :2] * scale + size / 2, seen[..., 2]
    nearest = np.full(size * size, np.inf)
    picture = np.empty((size * size, 3))
    picture[:] = BACKGROUND
    for which, pixel, at in _covered(flat, depth, size):
        closer = np.flatnonzero(at < nearest[pixel])
        # The farthest first: of several in one pixel the last one stays, of equally near ones the first triangle.
        order = closer[np.argsort(at[closer], kind="stable")[::-1]]
        nearest[pixel[order]] = at[order]
        picture[pixel[order]] = colours[which[order]]
    return picture.reshape(size, size, 3)


def _covered(flat: Array, depth: Array, size: int) -> Iterator[tuple[Array, Array, Array]]:
    """Pixels whose centre lies in a triangle: number of the triangle, of the pixel, and the depth there.

    flat: (T, 3, 2) pixels.  depth: (T, 3).  Triangles whose boxes are about equally wide are looked at together.
    """
    low = np.clip(np.ceil(flat.min(1) - 0.5), 0, size).astype(np.int64)
    high = np.clip(np.floor(flat.max(1) - 0.5), -1, size - 1).astype(np.int64)
    side = (high - low + 1).max(1)
    first, second = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
    area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    seen = (high >= low).all(1) & (area != 0)
    steps = np.where(side <= EXACT, side, 2 ** np.ceil(np.log2(np.maximum(side, 1))).astype(np.int64))
    for step in np.unique(steps[seen]):
        numbers = np.flatnonzero(seen & (steps == step))
        together = max(1, MAX_SAMPLES // int(step) ** 2)
        for begin in range(0, len(numbers), together):
            which = numbers[begin : begin + together]
            x, y = (low[which, None, axis] + np.arange(step) for axis in (0, 1))
            # Weights of the second and third corner are affine in both coordinates, so rows and columns are summed.
            px, py = (c + 0.5 - flat[which, 0, axis, None] for axis, c in enumerate((x, y)))
            a, b, whole = first[which, :, None], second[which, :, None], area[which, None]
            on_second = (px * (b[:, 1] / whole))[:, None, :] - (py * (b[:, 0] / whole))[:, :, None]
            on_third = (py * (a[:, 0] / whole))[:, :, None] - (px * (a[:, 1] / whole))[:, None, :]
            inside = (on_second >= -INSIDE) & (on_third >= -INSIDE) & (on_second + on_third <= 1 + INSIDE)
            inside &= (x <= high[which, None, 0])[:, None, :] & (y <= high[which, None, 1])[:, :, None]
            triangle, row, column = np.nonzero(inside)
            d = depth[which[triangle]]
            at = d[:, 0] + on_second[inside] * (d[:, 1] - d[:, 0]) + on_third[inside] * (d[:, 2] - d[:, 0])
            yield which[triangle], y[triangle, row] * size + x[triangle, column], at
