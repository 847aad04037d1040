"""Synthetic vessel trees with exactly known junctions, and the prompted pairs of them.

A tree grows from a border inwards, branch by branch, and never touches itself: a branch that would come nearer than
`min_gap` to another one ends there. Radii follow Murray's law (r^3 is kept at a split), so the split's flow fraction
f gives radii r f^(1/3) and r (1-f)^(1/3). Bifurcations are recorded where both children really grew; where a second
tree lies over the first, their crossings are recorded apart. Every sample is a function of (seed, split, index).
Coordinates are (row, column) in pixels, the centre of pixel (0, 0) at (0, 0). No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stageline.data.rng import numpy_rng

Floats = NDArray[np.float64]

SPLIT_ANGLE = (0.35, 0.6)
"""Radians between a child and its parent's heading (film-flow specification 11.1)."""
FLOW_FRACTION = (0.35, 0.65)
SEGMENT_LENGTH = (0.16, 0.27)
"""Length of a branch of the first generation as a share of the picture's size."""
GENERATION_FACTOR = 0.88
HEADING_NOISE = 0.05
"""Standard deviation of the heading's change per pixel step, radians; chosen here so that branches bend visibly."""
SUPERSAMPLING = 4


@dataclass(frozen=True)
class TreeShape:
    """How a tree grows. Lengths in pixels where no share is named.

    depth: generations of branches, drawn per tree.  root_radius: radius of the first branch as a share of the size,
    with a floor of `min_root_radius` px.  min_gap: free space kept between two branches, beside their radii.
    """

    depth: tuple[int, int] = (3, 4)
    root_radius: tuple[float, float] = (0.014, 0.021)
    min_root_radius: float = 1.3
    min_radius: float = 0.9
    min_gap: float = 2.5


@dataclass(frozen=True)
class Branch:
    """One branch: points (N, 2) about one pixel apart, first to last, and its radius in pixels."""

    points: Floats
    radius: float


@dataclass(frozen=True)
class Tree:
    """A grown tree: its branches, and its bifurcations (N, 3) as row, column, local radius."""

    branches: tuple[Branch, ...]
    bifurcations: Floats


@dataclass
class _Tip:
    """A branch that is still to grow. kin: branches it may touch; sibling: the one it must leave within `clear` px."""

    start: Floats
    heading: float
    radius: float
    generation: int
    kin: frozenset[int]
    sibling: int | None
    clear: float


def _path(tip: _Tip, size: int, rng: np.random.Generator) -> Floats:
    """The wished way of a branch, cut at the border: (N, 2), steps of one pixel, the start point first."""
    low, high = SEGMENT_LENGTH
    steps = max(3, round(size * rng.uniform(low, high) * GENERATION_FACTOR**tip.generation))
    headings = tip.heading + np.cumsum(rng.normal(0.0, HEADING_NOISE, steps))
    moves = np.stack([np.sin(headings), np.cos(headings)], axis=1)
    points = np.concatenate([tip.start[None], tip.start + np.cumsum(moves, axis=0)])
    inside = np.all((points >= 0) & (points <= size - 1), axis=1)
    inside[0] = True
    outside = np.flatnonzero(~inside)
    return points[: outside[0]] if outside.size else points


def _free_length(points: Floats, tip: _Tip, grown: list[Branch], min_gap: float) -> int:
    """How many points of a wished path keep `min_gap` to every branch that is no kin."""
    free = len(points)
    for number, other in enumerate(grown):
        if number in tip.kin:
            continue
        gap = min_gap + tip.radius + other.radius
        offsets = points[:, None] - other.points[None]
        near = (offsets**2).sum(axis=2).min(axis=1) < gap**2
        if number == tip.sibling:
            near[: int(np.ceil(tip.clear))] = False
        met = np.flatnonzero(near)
        if met.size:
            free = min(free, int(met[0]))
    return free


def _root(size: int, shape: TreeShape, rng: np.random.Generator) -> _Tip:
    """A first branch on a random side, heading inwards."""
    side = int(rng.integers(4))
    along = rng.uniform(0.2, 0.8) * (size - 1)
    starts = [(0.0, along), (size - 1.0, along), (along, 0.0), (along, size - 1.0)]
    inward = [np.pi / 2, -np.pi / 2, 0.0, np.pi][side]
    radius = max(shape.min_root_radius, size * rng.uniform(*shape.root_radius))
    heading = inward + rng.uniform(-0.35, 0.35)
    return _Tip(np.array(starts[side]), heading, radius, 0, frozenset(), None, 0.0)


def grow_tree(size: int, rng: np.random.Generator, shape: TreeShape | None = None) -> Tree:
    """One self-avoiding tree in a size x size picture."""
    shape = shape or TreeShape()
    depth = int(rng.integers(shape.depth[0], shape.depth[1] + 1))
    grown: list[Branch] = []
    splits: list[Floats] = []
    pending = [[_root(size, shape, rng)]]
    while pending:
        family = pending.pop(0)
        children: list[tuple[int, _Tip, bool]] = []
        for tip in family:
            sibling = children[0][0] if children else None
            tip = _Tip(tip.start, tip.heading, tip.radius, tip.generation, tip.kin, sibling, tip.clear)
            wished = _path(tip, size, rng)
            free = _free_length(wished, tip, grown, shape.min_gap)
            points = wished[:free]
            # A stub shorter than the tube of its parent would not show in the mask: it did not really grow.
            if len(points) < max(5.0, 3.0 * tip.radius + 3.0, tip.clear):
                continue
            grown.append(Branch(points, tip.radius))
            whole = free == len(wished) and bool(np.all((points[-1] > 1) & (points[-1] < size - 2)))
            children.append((len(grown) - 1, tip, whole))
        if len(family) == 2 and len(children) == 2:
            splits.append(np.array([*family[0].start, max(tip.radius for tip in family) * 2 ** (1 / 3)]))
        for number, tip, whole in children:
            if whole and tip.generation + 1 < depth:
                pending.append(_split(grown[number], number, tip, shape, rng))
    return Tree(tuple(grown), np.array(splits).reshape(-1, 3))


def _split(branch: Branch, number: int, tip: _Tip, shape: TreeShape, rng: np.random.Generator) -> list[_Tip]:
    """The two children at the end of branch `number`, which grew to its end."""
    points = branch.points
    end = points[-1]
    back = points[max(0, len(points) - 4)]
    heading = float(np.arctan2(end[0] - back[0], end[1] - back[1]))
    fraction = rng.uniform(*FLOW_FRACTION)
    radii = [max(shape.min_radius, tip.radius * share ** (1 / 3)) for share in (fraction, 1 - fraction)]
    turns = [rng.uniform(*SPLIT_ANGLE), -rng.uniform(*SPLIT_ANGLE)]
    if rng.random() < 0.5:
        turns.reverse()
    # Two straight lines at this angle are the asked distance apart after so many pixels.
    clear = (shape.min_gap + sum(radii)) / (2 * np.sin((abs(turns[0]) + abs(turns[1])) / 2)) + 2.0
    kin = frozenset({number})
    return [
        _Tip(end, heading + turn, radius, tip.generation + 1, kin, None, float(clear))
        for turn, radius in zip(turns, radii, strict=True)
    ]


@lru_cache(maxsize=64)
def _disc(radius: float) -> NDArray[np.int64]:
    """Offsets (N, 2) of the cells within `radius` cells of a centre."""
    reach = int(np.ceil(radius))
    grid = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1).T
    offsets: NDArray[np.int64] = grid[(grid**2).sum(axis=1) <= radius**2].astype(np.int64)
    return offsets


def rasterise(tree: Tree, size: int) -> NDArray[np.float32]:
    """Coverage (size, size) in [0, 1]: discs along every branch, drawn on a grid 4 times finer and averaged."""
    fine = size * SUPERSAMPLING
    canvas = np.zeros((fine, fine), dtype=bool)
    for branch in tree.branches:
        points = branch.points
        if len(points) > 1:
            middle = (points[1:] + points[:-1]) / 2
            points = np.concatenate([points, middle])
        # Cell k of the fine grid has its centre at (k + 0.5) / 4 - 0.5 pixels.
        cells = np.rint((points + 0.5) * SUPERSAMPLING - 0.5).astype(np.int64)
        marks = (cells[:, None] + _disc(round(branch.radius * SUPERSAMPLING * 8) / 8)[None]).reshape(-1, 2)
        marks = marks[np.all((marks >= 0) & (marks < fine), axis=1)]
        canvas[marks[:, 0], marks[:, 1]] = True
    blocks = canvas.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float32))


def find_crossings(first: Tree, second: Tree) -> Floats:
    """Where branches of two trees cross: (N, 3) as row, column, larger radius; exact on the branches' polylines."""
    found: list[Floats] = []
    for a in first.branches:
        for b in second.branches:
            a0, a1 = a.points[:-1, None], a.points[1:, None]
            b0, b1 = b.points[None, :-1], b.points[None, 1:]
            u, v, w = a1 - a0, b1 - b0, b0 - a0
            denominator = u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
            safe = np.where(denominator == 0, 1.0, denominator)
            along_a = (w[..., 0] * v[..., 1] - w[..., 1] * v[..., 0]) / safe
            along_b = (w[..., 0] * u[..., 1] - w[..., 1] * u[..., 0]) / safe
            inside = (along_a >= 0) & (along_a < 1) & (along_b >= 0) & (along_b < 1)
            hits = np.argwhere((denominator != 0) & inside)
            radius = max(a.radius, b.radius)
            for i, j in hits:
                point = a.points[i] + along_a[i, j] * (a.points[i + 1] - a.points[i])
                found.append(np.array([*point, radius]))
    return np.array(found).reshape(-1, 3)


def tree_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of one sample: any sample can be made alone, in any process."""
    return numpy_rng("trees", seed, split, index)
