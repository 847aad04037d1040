"""Junctions of a mask: where three or more branches of its skeleton meet; their heat map, and matching of nodes.

A node is found by the crossing number of its skeleton pixel (transitions around the ring of 8 neighbours) or by three
skeleton neighbours, never by fewer: counting two neighbours would call every pixel of a line a junction. Points are
(row, column) in pixels. Used as the truth where the data carry no exact nodes, and by the metrics. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage import morphology

from stageline.errors import ConfigError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MIN_HOLE_PIXELS = 8
MIN_COMPONENT_PIXELS = 16
SPUR_RADII = 1.2
"""An end branch shorter than this many local radii + `SPUR_PIXELS` is a spur of the skeleton, no branch."""
SPUR_PIXELS = 2.0
DISC_RADII = 1.5
"""A node's disc covers at least this many local radii."""
EIGHT = np.ones((3, 3), dtype=bool)
_RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


@dataclass(frozen=True)
class Junctions:
    """Nodes of one mask: points (N, 2), local vessel radius (N,) in pixels, number of branches that leave (N,)."""

    points: Floats
    radii: Floats
    degrees: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.points)


def check_degree_threshold(degree_threshold: int) -> None:
    """Refuse a threshold that would call line pixels junctions."""
    if isinstance(degree_threshold, bool) or not isinstance(degree_threshold, int) or degree_threshold < 3:
        raise ConfigError(
            f"degree_threshold is {degree_threshold!r}; it counts the branches that meet at a node, so at least 3",
            remedy="set junction_gating_config.degree_threshold: 3; T junctions are found by it",
        )


def clean_mask(mask: ArrayLike) -> Bools:
    """Fill holes of < 8 px and drop components of < 16 px. mask: (H, W), non-zero is vessel."""
    clean = np.asarray(mask) != 0
    holes, count = ndimage.label(~clean)
    if count:
        small = np.bincount(holes.ravel()) < MIN_HOLE_PIXELS
        small[0] = False
        clean = clean | small[holes]
    parts, count = ndimage.label(clean, EIGHT)
    if count:
        small = np.bincount(parts.ravel()) < MIN_COMPONENT_PIXELS
        small[0] = False
        clean = clean & ~small[parts]
    return np.asarray(clean)


def _ring(skeleton: Bools) -> NDArray[np.uint8]:
    """The 8 neighbours of every pixel in order around it, (8, H, W)."""
    padded = np.pad(skeleton, 1).astype(np.uint8)
    height, width = skeleton.shape
    return np.stack([padded[1 + r : 1 + r + height, 1 + c : 1 + c + width] for r, c in _RING])


def _seeds(skeleton: Bools) -> Bools:
    """Skeleton pixels with crossing number >= 3 or >= 3 skeleton neighbours."""
    ring = _ring(skeleton)
    crossing = (ring != np.roll(ring, 1, axis=0)).sum(axis=0) // 2
    seeds: Bools = skeleton & ((crossing >= 3) | (ring.sum(axis=0) >= 3))
    return seeds


def skeleton_of(mask: ArrayLike) -> Bools:
    """The 8-connected skeleton of a mask, (H, W) bool; empty masks give an empty skeleton."""
    filled = np.asarray(mask) != 0
    if not filled.any():
        return np.zeros(filled.shape, dtype=bool)
    # One pixel of frame: the skeleton of a vessel that leaves the picture then reaches the border.
    skeleton: Bools = morphology.skeletonize(np.pad(filled, 1, mode="edge"))[1:-1, 1:-1]  # type: ignore[no-untyped-call]
    return skeleton


def prune(skeleton: Bools, distance: Floats) -> Bools:
    """Drop end branches shorter than 1.2 local radii + 2 px and thin again.

    distance: (H, W) distance transform of the mask. The radius is taken where the branch leaves the skeleton.
    """
    seeds = _seeds(skeleton)
    if not seeds.any():
        return skeleton
    branches, count = ndimage.label(skeleton & ~seeds, EIGHT)
    if not count:
        return skeleton
    lengths = np.bincount(branches.ravel(), minlength=count + 1)
    ends = np.unique(branches[skeleton & (_ring(skeleton).sum(axis=0) == 1)])
    around = ndimage.grey_dilation(np.where(seeds, distance, 0.0), footprint=EIGHT)
    roots = np.asarray(ndimage.maximum(around, branches, np.arange(count + 1)))
    short = np.zeros(count + 1, dtype=bool)
    for end in ends[ends > 0]:
        short[end] = roots[end] > 0 and lengths[end] < SPUR_RADII * roots[end] + SPUR_PIXELS
    if not short.any():
        return skeleton
    return np.asarray(morphology.skeletonize(skeleton & ~short[branches]))  # type: ignore[no-untyped-call]


def _branches_at(skeleton: Bools, cluster: Bools) -> int:
    """How many branches leave a cluster of seeds: connected parts of the skeleton around it."""
    around = ndimage.binary_dilation(cluster, EIGHT) & skeleton & ~cluster
    return int(ndimage.label(around, EIGHT)[1])


def find_junctions(mask: ArrayLike, *, degree_threshold: int = 3) -> Junctions:
    """Nodes of a mask (H, W), non-zero is vessel, where at least `degree_threshold` branches meet.

    Clean, skeletonise, prune spurs, seed, merge seeds that touch after one 3 x 3 dilation, take centroids.
    Raises ConfigError for a threshold under 3.
    """
    check_degree_threshold(degree_threshold)
    clean = clean_mask(mask)
    none = Junctions(np.empty((0, 2)), np.empty(0), np.empty(0, dtype=np.int64))
    if not clean.any():
        return none
    # The frame of zeros is left out: a vessel cut by the border is no thinner there.
    distance = np.asarray(ndimage.distance_transform_edt(np.pad(clean, 1, mode="edge")))[1:-1, 1:-1]
    skeleton = prune(skeleton_of(clean), distance)
    seeds = _seeds(skeleton)
    clusters, count = ndimage.label(ndimage.binary_dilation(seeds, EIGHT), EIGHT)
    if not count:
        return none
    clusters = np.where(seeds, clusters, 0)
    numbers = np.arange(1, count + 1)
    points = np.array(ndimage.center_of_mass(seeds, clusters, numbers)).reshape(-1, 2)
    radii = np.asarray(ndimage.maximum(distance, clusters, numbers), dtype=np.float64)
    degrees = np.ones(count, dtype=np.int64)
    for number, box in enumerate(ndimage.find_objects(clusters), start=1):
        near = tuple(slice(max(0, side.start - 2), side.stop + 2) for side in box)
        degrees[number - 1] = _branches_at(skeleton[near], clusters[near] == number)
    # At 3 every merged seed counts, also one whose branches run together next to it.
    kept = degrees >= degree_threshold if degree_threshold > 3 else np.ones(count, dtype=bool)
    return Junctions(points[kept], radii[kept], degrees[kept])


def disc_radii(radii: ArrayLike, radius_px: float) -> Floats:
    """Radius of each node's disc: max(radius_px, 1.5 x local radius), pixels."""
    return np.maximum(float(radius_px), DISC_RADII * np.asarray(radii, dtype=np.float64))


def junction_heat(points: ArrayLike, radii: ArrayLike, shape: tuple[int, int], radius_px: float) -> NDArray[np.float32]:
    """Heat map (H, W) in [0, 1]: the maximum of Gaussians around the nodes, sigma = disc radius / 3.

    points: (N, 2); a node's centre is its nearest pixel, so that every node has one pixel of heat 1.
    radii: (N,) local vessel radii in pixels.  Nodes outside the picture give their heat inside it.
    """
    heat = np.zeros(shape, dtype=np.float32)
    centres = np.rint(np.asarray(points, dtype=np.float64).reshape(-1, 2))
    for (row, column), disc in zip(centres, disc_radii(radii, radius_px).ravel(), strict=True):
        sigma = disc / 3
        reach = int(np.ceil(4 * sigma))
        top, left = max(0, int(row) - reach), max(0, int(column) - reach)
        window = heat[top : max(0, int(row) + reach + 1), left : max(0, int(column) + reach + 1)]
        rows = np.arange(top, top + window.shape[0])[:, None] - row
        columns = np.arange(left, left + window.shape[1])[None] - column
        np.maximum(window, np.exp(-(rows**2 + columns**2) / (2 * sigma**2)).astype(np.float32), out=window)
    return heat


def find_peaks(heat: ArrayLike, *, threshold: float = 0.2, window: int = 5) -> Floats:
    """Peaks (N, 2) of a heat map (H, W): pixels that are the highest in their window and above the threshold.

    Equal neighbours are one peak, at their centroid.
    """
    values = np.asarray(heat, dtype=np.float64)
    top = (values == ndimage.maximum_filter(values, size=window, mode="constant")) & (values > threshold)
    parts, count = ndimage.label(top, EIGHT)
    if not count:
        return np.empty((0, 2))
    return np.array(ndimage.center_of_mass(top, parts, np.arange(1, count + 1))).reshape(-1, 2)


def match_nodes(found: ArrayLike, true: ArrayLike, tolerance: ArrayLike) -> NDArray[np.int64]:
    """Pairs (K, 2) of indices (found, true), one to one, as many as possible and then as near as possible.

    found: (N, 2).  true: (M, 2).  tolerance: largest distance in pixels, one number or (M,), one per true node.
    Hungarian assignment.
    """
    from scipy import optimize

    a = np.asarray(found, dtype=np.float64).reshape(-1, 2)
    b = np.asarray(true, dtype=np.float64).reshape(-1, 2)
    if not len(a) or not len(b):
        return np.empty((0, 2), dtype=np.int64)
    distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=2))
    limit = np.broadcast_to(np.asarray(tolerance, dtype=np.float64), (len(b),))
    # A pair that is too far costs more than all near pairs together, so the number of near pairs is the largest.
    far = (limit.max() + 1.0) * (min(len(a), len(b)) + 1)
    rows, columns = optimize.linear_sum_assignment(np.where(distance <= limit[None], distance, far))
    pairs = np.stack([rows, columns], axis=1).astype(np.int64)
    return np.asarray(pairs[distance[rows, columns] <= limit[columns]])
