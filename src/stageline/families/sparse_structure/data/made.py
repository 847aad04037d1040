"""Made-up rooms: furniture of one hidden style, on the floor, chairs around a table and facing it. No torch.

z points up, the floor is z = 0, metres. A scene has 2 to 6 objects; what is told of them is their class alone, so the
style can be read off the other objects' shapes and off nothing else. A shape is a function of the voxels it fills, and
the hash of these says which split it is of: no shape of one split occurs in another. Everything is a function of
(seed, split, index).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stageline.data.rng import numpy_rng
from stageline.errors import ConfigError
from stageline.families.sparse_structure.data.furniture import CLASSES, NUM_PARAMETERS, STYLES, make_furniture
from stageline.families.sparse_structure.data.poses import Poses, yaw_rotation
from stageline.families.sparse_structure.data.voxels import Mesh, bounding_box, canonical, fill_solid

POOLS: Mapping[str, tuple[int, ...]] = {"train": (0, 1), "val": (2,), "test": (3,)}
"""Split -> remainders, by 4, of the hashes of its shapes."""
FEWEST_OBJECTS, MOST_OBJECTS = 2, 6
TABLE_SHARE = 0.8
"""Of the scenes that have a table; the others have no chairs."""
MOST_CHAIRS = 3
GAP = 0.05
"""Metres between any two objects, at least."""
AIM_DEG = 5.0
"""By which a chair may miss the middle of the table."""
ROOM_SIDE = 4.0
"""Metres; grows where objects find no place."""
TRIES = 40
MOST_DRAWS = 2000
"""Until a shape of a split's own must be found: with the fifty shapes that each class and style has at least, a draw
fails three times in four."""

Array = NDArray[Any]
Corners = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class MadeObject:
    """One piece of furniture in a room.

    kind: its class.  parameters: numbers in [0, 1) that its sizes follow from.  mesh: metres, standing on z = 0, facing
    +x.  voxels: (R, R, R) bool, canonical.  centre: (3,) of its box in the room.  yaw_rad: about the vertical.
    """

    kind: str
    style: str
    parameters: tuple[float, ...]
    mesh: Mesh
    voxels: Array
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    yaw_rad: float = 0.0

    @property
    def size(self) -> Array:
        """(3,) metres of its box."""
        size: Array = np.ptp(self.mesh.vertices, axis=0)
        return size

    def placed(self, x: float, y: float, yaw_rad: float) -> MadeObject:
        """The same object at another place on the floor."""
        centre = (float(x), float(y), float(self.size[2] / 2))
        return MadeObject(self.kind, self.style, self.parameters, self.mesh, self.voxels, centre, float(yaw_rad))

    @cached_property
    def footprint(self) -> tuple[tuple[float, float], ...]:
        """The four corners of its box seen from above, anticlockwise, metres."""
        x, y, _ = (side / 2 for side in self.size.tolist())
        cos, sin = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        corners = ((x, y), (-x, y), (-x, -y), (x, -y))
        return tuple((self.centre[0] + cos * a - sin * b, self.centre[1] + sin * a + cos * b) for a, b in corners)


@dataclass(frozen=True)
class MadeScene:
    """A room. style: of all its objects, hidden from what is told of it."""

    split: str
    index: int
    style: str
    objects: tuple[MadeObject, ...]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:04d}"

    @property
    def poses(self) -> Poses:
        """Of the objects' canonical cubes."""
        sizes = [bounding_box(thing.mesh).size for thing in self.objects]
        return Poses(
            yaw_rotation(np.array([thing.yaw_rad for thing in self.objects])),
            np.array([thing.centre for thing in self.objects]),
            np.repeat(np.array(sizes)[:, None], 3, axis=1),
        )


def style_of(split: str, index: int, seed: int, styles: Sequence[str] = STYLES) -> str:
    """The hidden style of a scene: each of `styles` once in as many scenes as there are of them, in random order."""
    order = numpy_rng(seed, split, index // len(styles), "styles").permutation(len(styles))
    return styles[int(order[index % len(styles)])]


def make_scene(
    split: str,
    index: int,
    seed: int,
    *,
    resolution: int = 16,
    num_objects: tuple[int, int] = (FEWEST_OBJECTS, MOST_OBJECTS),
    styles: Sequence[str] = STYLES,
) -> MadeScene:
    """The scene of a place in a split.

    split: of `POOLS`.  resolution: voxels along a side.  num_objects: fewest and most.
    styles: of `STYLES`, those that scenes have.
    """
    if split not in POOLS:
        raise ConfigError(f"there is no split {split!r} of made-up scenes", remedy=f"use one of {', '.join(POOLS)}")
    style, rng = style_of(split, index, seed, styles), numpy_rng(seed, split, index, "scene")
    kinds = _kinds(rng, int(rng.integers(num_objects[0], num_objects[1] + 1)))
    placed: list[MadeObject] = []
    for kind in kinds:
        thing = _draw_object(rng, split, kind, style, resolution)
        placed.append(_place(rng, thing, placed))
    order = rng.permutation(len(placed))
    return MadeScene(split, index, style, tuple(placed[place] for place in order))


def shape_split(voxels: Array) -> str:
    """The split that a shape belongs to. voxels: (R, R, R) bool."""
    remainder = hashlib.sha256(np.packbits(voxels).tobytes()).digest()[0] % 4
    return next(split for split, own in POOLS.items() if remainder in own)


def _kinds(rng: np.random.Generator, count: int) -> list[str]:
    """Classes of a scene's objects; a table comes first, its chairs next."""
    kinds = []
    if rng.random() < TABLE_SHARE:
        chairs = int(rng.integers(1, min(MOST_CHAIRS, count - 1) + 1)) if count > 1 else 0
        kinds = ["table", *["chair"] * chairs]
    others = [kind for kind in CLASSES if kind not in ("table", "chair")]
    return kinds + [others[int(place)] for place in rng.integers(len(others), size=count - len(kinds))]


def _draw_object(rng: np.random.Generator, split: str, kind: str, style: str, resolution: int) -> MadeObject:
    for _ in range(MOST_DRAWS):
        parameters = tuple(map(float, rng.random(NUM_PARAMETERS)))
        mesh = make_furniture(kind, style, parameters)
        voxels, _ = fill_solid(canonical(mesh), resolution)
        if shape_split(voxels) == split:
            return MadeObject(kind, style, parameters, mesh, voxels)
    raise ConfigError(
        f"no {kind} of style {style} with {resolution} voxels a side is a shape of split {split!r}",
        remedy="use a finer resolution",
    )


def _place(rng: np.random.Generator, thing: MadeObject, others: Sequence[MadeObject]) -> MadeObject:
    """The object at a free place: chairs near the table and facing it, all else anywhere."""
    if thing.kind == "chair":
        return _place_chair(rng, thing, others)
    side = ROOM_SIDE if others else 0.5
    while True:
        for _ in range(TRIES):
            x, y = rng.uniform(-side / 2, side / 2, size=2)
            found = thing.placed(x, y, rng.uniform(-np.pi, np.pi))
            if all(are_apart(found.footprint, other.footprint, GAP) for other in others):
                return found
        side *= 1.1


def _place_chair(rng: np.random.Generator, chair: MadeObject, others: Sequence[MadeObject]) -> MadeObject:
    table = next(other for other in others if other.kind == "table")
    distance = float(table.size[:2].min() + chair.size[0]) / 2
    while True:
        for angle in rng.uniform(-np.pi, np.pi, size=4):
            x, y = table.centre[0] + distance * np.cos(angle), table.centre[1] + distance * np.sin(angle)
            found = chair.placed(x, y, angle + np.pi + np.deg2rad(rng.uniform(-AIM_DEG, AIM_DEG)))
            if all(are_apart(found.footprint, other.footprint, GAP) for other in others):
                return found
        distance += 0.03


def are_apart(first: Corners, second: Corners, gap: float) -> bool:
    """Whether two rectangles have `gap` metres between them: along a side of one of them. first, second: corners."""
    for corners in (first, second):
        for end in (0, 2):
            x, y = corners[end][0] - corners[1][0], corners[end][1] - corners[1][1]
            length = math.hypot(x, y)
            a = [(px * x + py * y) / length for px, py in first]
            b = [(px * x + py * y) / length for px, py in second]
            if min(a) - max(b) >= gap or min(b) - max(a) >= gap:
                return True
    return False
