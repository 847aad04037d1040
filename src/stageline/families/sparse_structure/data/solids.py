"""Closed triangle meshes of simple solids, and several joined into one. Faces look outwards. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stageline.families.sparse_structure.data.voxels import Mesh

SIDES = 20
"""Of a polygon that stands for a circle."""

Vector = Sequence[float]


def box(low: Vector, high: Vector) -> Mesh:
    """A box between two corners, metres."""
    corners = np.array(
        [[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])], dtype=np.float64
    )
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return Mesh(corners, np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]))


def drum(centre: Vector, radii: Vector, length: float, *, end: float = 1.0, axis: int = 2, sides: int = SIDES) -> Mesh:
    """A cylinder, or a cone cut off, with elliptic ends.

    centre: (3,) metres.  radii: two, along the axes that follow `axis` in turn.  length: along `axis`.
    end: width of the far end as a share of the near one's.  axis: 0, 1 or 2.
    """
    angle = 2 * np.pi * (np.arange(sides) + 0.5) / sides
    ring = np.stack([np.cos(angle) * radii[0], np.sin(angle) * radii[1]], axis=1)
    vertices = np.zeros((2 * sides + 2, 3))
    others = [(axis + 1) % 3, (axis + 2) % 3]
    for place, (width, along) in enumerate(((1.0, -length / 2), (end, length / 2))):
        vertices[place * sides : (place + 1) * sides, others] = ring * width
        vertices[place * sides : (place + 1) * sides, axis] = along
        vertices[2 * sides + place, axis] = along
    i, j = np.arange(sides), (np.arange(sides) + 1) % sides
    near, far = np.full(sides, 2 * sides), np.full(sides, 2 * sides + 1)
    faces = np.concatenate(
        [
            np.stack(three, axis=1)
            for three in ((i, j, sides + j), (i, sides + j, sides + i), (near, j, i), (far, sides + i, sides + j))
        ]
    )
    return Mesh(vertices + np.asarray(centre, dtype=np.float64), faces)


def ball(centre: Vector, radii: Vector, *, sides: int = SIDES) -> Mesh:
    """An ellipsoid. centre, radii: (3,) metres."""
    rings = sides // 2
    polar = np.pi * np.arange(1, rings) / rings
    angle = 2 * np.pi * (np.arange(sides) + 0.5) / sides
    middle = np.stack(
        [
            np.outer(np.sin(polar), np.cos(angle)),
            np.outer(np.sin(polar), np.sin(angle)),
            np.repeat(-np.cos(polar)[:, None], sides, axis=1),
        ],
        axis=-1,
    ).reshape(-1, 3)
    vertices = np.concatenate([middle, [[0, 0, -1], [0, 0, 1]]])
    bottom, top = len(middle), len(middle) + 1
    faces = []
    for i in range(sides):
        j = (i + 1) % sides
        faces.append((bottom, j, i))
        for ring in range(rings - 2):
            a, b = ring * sides, (ring + 1) * sides
            faces += [(a + i, a + j, b + j), (a + i, b + j, b + i)]
        last = (rings - 2) * sides
        faces.append((top, last + i, last + j))
    return Mesh(vertices * np.asarray(radii) + np.asarray(centre, dtype=np.float64), np.array(faces))


def hole(mesh: Mesh) -> Mesh:
    """The mesh turned inside out: joined with one that contains it, it is a hole."""
    return Mesh(mesh.vertices, mesh.faces[:, ::-1])


def join(parts: Sequence[Mesh]) -> Mesh:
    """Several meshes as one; they may overlap."""
    starts = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    faces: NDArray[Any] = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=True)])
    return Mesh(np.concatenate([part.vertices for part in parts]), faces)
