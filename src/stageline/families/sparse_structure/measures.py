"""What is measured of the objects of a scene among each other: interpenetration, facing, equal styles. No torch.

Each is a number of one scene (`agreement_across` of all), or None where nothing is there that it could be read off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stageline.families.sparse_structure.data.poses import Poses

FACING, FACED = "chair", "table"
"""Objects of the first class look at one of the second."""
Array = NDArray[Any]


def agreement(labels: Sequence[int | str]) -> float | None:
    """Share of the pairs of objects whose labels are equal; None below two objects."""
    pairs = list(combinations(labels, 2))
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else None


def agreement_across(scenes: Sequence[Sequence[int | str]]) -> float | None:
    """Share of the pairs of objects of different scenes whose labels are equal; None below two scenes with objects.

    What agreement within scenes would be if scenes meant nothing; 1 where all scenes are made alike.
    """
    sizes, counts = [len(labels) for labels in scenes], [Counter(labels) for labels in scenes]
    pairs = sum(sizes) ** 2 - sum(size**2 for size in sizes)
    equal = sum(n**2 for n in sum(counts, Counter()).values()) - sum(n**2 for one in counts for n in one.values())
    return equal / pairs if pairs else None


def interpenetration(voxels: Array, poses: Poses) -> float | None:
    """Share of an object's occupied voxels whose centres lie in an occupied voxel of another one, mean over objects.

    voxels: (N, R, R, R) bool in canonical cubes, placed by `poses`. None below two objects that are not empty.
    """
    size, occupied = voxels.shape[1], [np.argwhere(cube) for cube in voxels]
    objects = [place for place, points in enumerate(occupied) if len(points)]
    if len(objects) < 2:
        return None
    shares = []
    for place in objects:
        canonical = (occupied[place] + 0.5) / size - 0.5
        points = canonical * poses.scale[place] @ poses.rotation[place].T + poses.translation[place]
        inside = np.zeros(len(points), dtype=bool)
        for other in objects:
            if other != place:
                local = (points - poses.translation[other]) @ poses.rotation[other] / poses.scale[other]
                index = np.floor((local + 0.5) * size).astype(np.int64)
                within = ((index >= 0) & (index < size)).all(1)
                x, y, z = index[within].T
                inside[within] |= voxels[other][x, y, z]
        shares.append(inside.mean())
    return float(np.mean(shares))


def facing_error(poses: Poses, classes: Sequence[str]) -> float | None:
    """Degrees, seen from above, between where chairs look (their +x) and the nearest table's middle, mean over chairs.

    classes: of the objects. None without a chair or a table. A direction at random has 90 on average.
    """
    chairs, tables = ([place for place, kind in enumerate(classes) if kind == wanted] for wanted in (FACING, FACED))
    if not chairs or not tables:
        return None
    errors = []
    for chair in chairs:
        towards = poses.translation[tables, :2] - poses.translation[chair, :2]
        nearest = towards[np.argmin(np.linalg.norm(towards, axis=1))]
        forward = poses.rotation[chair, :2, 0]
        angle = np.arctan2(nearest[1], nearest[0]) - np.arctan2(forward[1], forward[0])
        errors.append(abs((np.rad2deg(angle) + 180) % 360 - 180))
    return float(np.mean(errors))
