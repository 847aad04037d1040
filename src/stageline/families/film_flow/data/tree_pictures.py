"""Pictures of synthetic trees: one tree per picture, or a dark and a bright one of which a prompt names one.

In a prompted picture the task is ambiguous without the prompt, so a model that solves it uses its condition, and
swapping the prompt must swap the answer. A picture = smooth background + signed tree contrast + blur + noise,
optionally with distractors (a straight catheter line, rib-like bands, vignetting). 8-bit grey. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stageline.families.film_flow.data.prompts import PROMPTS, TREE_PROMPT
from stageline.families.film_flow.data.trees import (
    TreeShape,
    find_crossings,
    grow_tree,
    rasterise,
    tree_rng,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PictureLook:
    """How a picture of trees looks; levels in shares of the 8-bit range.

    contrast: range of a tree's difference from the background.  noise: standard deviation of the pixel noise.
    blur: sigma in pixels of the blur over everything but the noise.  background: height of the smooth background.
    """

    contrast: tuple[float, float] = (0.22, 0.35)
    noise: float = 0.025
    blur: float = 0.5
    background: float = 0.12
    distractors: bool = False


@dataclass(frozen=True)
class TreePicture:
    """One synthetic picture and everything known about it.

    pixels: (H, W) uint8.  coverage: one (H, W) float32 in [0, 1] per prompt, the exact share of each pixel.
    prompts: one per coverage.  bifurcations, crossings: (N, 3) as row, column, radius.
    """

    pixels: NDArray[np.uint8]
    coverage: tuple[NDArray[np.float32], ...]
    prompts: tuple[str, ...]
    bifurcations: Floats
    crossings: Floats

    @property
    def masks(self) -> tuple[NDArray[np.uint8], ...]:
        """One (H, W) {0, 1} per prompt: pixels at least half covered."""
        return tuple((part >= 0.5).astype(np.uint8) for part in self.coverage)

    @property
    def nodes(self) -> Floats:
        """All junctions of the picture (>= 3 branches meet): bifurcations, then crossings, (N, 3)."""
        return np.concatenate([self.bifurcations, self.crossings])


def _smooth_field(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A smooth random field (size, size) with values of about [-1, 1]: 4 x 4 numbers, stretched."""
    coarse = rng.uniform(-1, 1, (4, 4))
    rows = np.linspace(0, 3, size)
    grid = np.meshgrid(rows, rows, indexing="ij")
    return np.asarray(ndimage.map_coordinates(coarse, grid, order=1), dtype=np.float32)


def _distractors(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Things that are no vessel: a straight catheter, bands like ribs, a darker rim; (size, size), additive."""
    row, column = np.mgrid[0:size, 0:size].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    across = (row - size / 2) * np.cos(angle) - (column - size / 2) * np.sin(angle) - rng.uniform(-0.3, 0.3) * size
    width = max(0.8, 0.012 * size)
    catheter = -rng.uniform(0.15, 0.3) * np.exp(-0.5 * (across / width) ** 2)
    tilt = rng.uniform(-0.3, 0.3)
    ribs = 0.06 * np.sin(2 * np.pi * (row + tilt * column) / (size * rng.uniform(0.2, 0.35)) + rng.uniform(0, 6))
    radius = np.hypot(row - (size - 1) / 2, column - (size - 1) / 2) / (size / 2)
    vignette = -0.12 * np.clip(radius - 0.7, 0, None) ** 2 / 0.25
    return np.asarray(catheter + ribs + vignette, dtype=np.float32)


def _picture(tree: NDArray[np.float32], look: PictureLook, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Signed tree contrast (H, W) -> 8-bit picture."""
    size = tree.shape[0]
    level = 0.5 + look.background * _smooth_field(size, rng) + tree
    if look.distractors:
        level = level + _distractors(size, rng)
    level = ndimage.gaussian_filter(level, look.blur) + look.noise * rng.standard_normal((size, size), dtype=np.float32)
    return np.asarray(np.rint(np.clip(level, 0, 1) * 255), dtype=np.uint8)


def make_prompted_picture(seed: int, split: str, index: int, size: int, look: PictureLook | None = None) -> TreePicture:
    """A dark and a bright tree in one picture; masks and prompts in the order of `PROMPTS`. A few milliseconds."""
    look = look or PictureLook()
    rng = tree_rng(seed, f"prompted/{split}", index)
    dark, bright = grow_tree(size, rng), grow_tree(size, rng)
    coverage = rasterise(dark, size), rasterise(bright, size)
    signed = -rng.uniform(*look.contrast) * coverage[0]
    # Where the two cross, the later one lies on top: the earlier one shows through nowhere.
    signed = signed * (1 - coverage[1]) + rng.uniform(*look.contrast) * coverage[1]
    pixels = _picture(signed.astype(np.float32), look, rng)
    nodes = np.concatenate([dark.bifurcations, bright.bifurcations])
    return TreePicture(pixels, coverage, PROMPTS, nodes, find_crossings(dark, bright))


def make_tree_picture(
    seed: int, split: str, index: int, size: int, look: PictureLook | None = None, num_trees: int = 1
) -> TreePicture:
    """`num_trees` dark trees in one picture under one mask; where two lie over each other crossings are recorded."""
    look = look or PictureLook()
    rng = tree_rng(seed, f"trees{num_trees}/{split}", index)
    trees = [grow_tree(size, rng, TreeShape()) for _ in range(num_trees)]
    coverage = np.maximum.reduce([rasterise(tree, size) for tree in trees])
    pixels = _picture((-rng.uniform(*look.contrast) * coverage).astype(np.float32), look, rng)
    pairs = [(a, b) for i, a in enumerate(trees) for b in trees[i + 1 :]]
    crossings = np.concatenate([np.empty((0, 3)), *(find_crossings(a, b) for a, b in pairs)])
    nodes = np.concatenate([tree.bifurcations for tree in trees])
    return TreePicture(pixels, (coverage,), (TREE_PROMPT,), nodes, crossings)
