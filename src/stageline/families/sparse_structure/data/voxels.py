"""Triangle meshes as voxels of the canonical cube [-0.5, 0.5]^3: solid, by winding numbers, or their surface alone.

Voxel (x, y, z) of R^3 is the cube around ((x, y, z) + 0.5) / R - 0.5. Memory is bounded whatever the mesh. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 19
"""Crossings or points that are looked at together: about 50 MB."""
ASIDE = (1.93e-7, 1.31e-7)
"""Of a voxel, by which rays pass beside voxel centres: chosen here so that none meets an edge of a mesh whose
coordinates are round numbers."""
SPACING = 0.5
"""Of a voxel, between neighbouring points by which a surface is found."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Mesh:
    """Triangles. vertices: (V, 3) float.  faces: (F, 3) integers, anticlockwise as seen from outside."""

    vertices: Array
    faces: Array


@dataclass(frozen=True)
class Box:
    """What a mesh fills. centre: (3,) of its bounding box.  size: its longest side, positive."""

    centre: Array
    size: float


def bounding_box(mesh: Mesh) -> Box:
    """The box by which a mesh is moved into the canonical cube. ValueError for a mesh without extent."""
    used = mesh.vertices[np.unique(mesh.faces)] if len(mesh.faces) else mesh.vertices[:0]
    if not len(used):
        raise ValueError("it has no faces")
    low, high = used.min(0), used.max(0)
    size = float((high - low).max())
    if not size > 0:
        raise ValueError("all its points are one")
    return Box((low + high) / 2, size)


def canonical(mesh: Mesh) -> Mesh:
    """The mesh moved and stretched, equally along all axes, so that its longest side fills the canonical cube."""
    box = bounding_box(mesh)
    return Mesh((mesh.vertices - box.centre) / box.size, mesh.faces)


def fill_solid(mesh: Mesh, resolution: int) -> tuple[Array, int]:
    """Voxels whose centre lies inside: where the faces wind around it.

    mesh: canonical; parts may overlap, and parts that are turned inside out are holes.  resolution: R.
    Returns (R, R, R) bool and the number of vertical rays, of R^2, along which the mesh is not closed.
    """
    R = resolution
    points = (mesh.vertices.astype(np.float64) + 0.5) * R - 0.5  # the centre of voxel i lies at i
    points[:, :2] -= ASIDE
    steps = np.zeros((R, R, R + 1), dtype=np.int32)
    corners = points[mesh.faces]
    for triangles, columns in _columns(corners[:, :, :2], R):
        a, b, c = (corners[triangles, corner] for corner in range(3))
        ab, bc, ca = (_cross(p, q, columns) for p, q in ((a, b), (b, c), (c, a)))
        up = (ab > 0) & (bc > 0) & (ca > 0)
        down = (ab < 0) & (bc < 0) & (ca < 0)
        hit = up | down
        area = (ab + bc + ca)[hit]
        height = (bc[hit] * a[hit, 2] + ca[hit] * b[hit, 2] + ab[hit] * c[hit, 2]) / area
        above = np.clip(np.ceil(height), 0, R).astype(np.int64)
        x, y = columns[hit].T
        np.add.at(steps, (x, y, above), np.where(up[hit], -1, 1))
    winding = steps.cumsum(2)
    return winding[:, :, :R] != 0, int(np.count_nonzero(winding[:, :, R]))


def fill_surface(mesh: Mesh, resolution: int) -> Array:
    """Voxels that hold a point of the surface, (R, R, R) bool; for meshes that are not closed, too.

    mesh: canonical.  resolution: R.  Points lie half a voxel apart, so a voxel that is cut at a corner may be missed.
    """
    R = resolution
    corners = ((mesh.vertices.astype(np.float64) + 0.5) * R)[mesh.faces]
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(1)
    counts = np.ceil(edges / SPACING).astype(np.int64).clip(1)
    found = np.zeros((R, R, R), dtype=bool)
    for count in np.unique(counts):
        i, j = np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij")
        i, j = i[i + j <= count], j[i + j <= count]
        weights = np.stack([i, j, count - i - j], axis=1) / count
        group = corners[counts == count]
        step = max(1, CHUNK // len(weights))
        for start in range(0, len(group), step):
            points = np.einsum("pk,nkd->npd", weights, group[start : start + step]).reshape(-1, 3)
            found[tuple(np.clip(np.floor(points), 0, R - 1).astype(np.int64).T)] = True
    return found


def _cross(p: Array, q: Array, at: Array) -> Array:
    """Twice the signed area, seen from above, of (p, q, at); (n,)."""
    area: Array = (q[:, 0] - p[:, 0]) * (at[:, 1] - p[:, 1]) - (q[:, 1] - p[:, 1]) * (at[:, 0] - p[:, 0])
    return area


def _columns(flat: Array, resolution: int) -> Iterator[tuple[Array, Array]]:
    """Pairs of a triangle and a vertical ray that may meet, some at a time: numbers (n,) and columns (n, 2).

    flat: (F, 3, 2) triangles seen from above, in voxels.
    """
    low = np.clip(np.ceil(flat.min(1)), 0, resolution).astype(np.int64)
    high = np.clip(np.floor(flat.max(1)), -1, resolution - 1).astype(np.int64)
    wide = np.maximum(high - low + 1, 0)
    counts = wide.prod(1)
    ends = counts.cumsum()
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + CHUNK, side="right")))
        triangles = np.repeat(np.arange(start, stop), counts[start:stop])
        place = np.arange(len(triangles)) - np.repeat(
            ends[start:stop] - counts[start:stop] - before, counts[start:stop]
        )
        y_count = wide[triangles, 1]
        yield triangles, np.stack([place // y_count, place % y_count], axis=1) + low[triangles]
        start = stop
