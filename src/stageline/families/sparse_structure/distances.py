"""How far samples are from data, as distributions of objects: the sliced Wasserstein distance of their features.

W_2 between the projections of both on fixed random directions, which for numbers on a line is the distance of their
quantiles (Bonneel et al. 2015, Sliced and Radon Wasserstein Barycenters). Of an object its projections are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stageline.families.sparse_structure.config.model import SHAPE
from stageline.objectives.step import seeded

DIRECTIONS = 64
CELLS = 4
"""Edge of the grid on which occupancy is averaged before it is compared."""
Array = NDArray[Any]


def object_features(latents: Mapping[str, Tensor], occupancy: Tensor | None) -> Tensor:
    """(N, F): what is compared of objects.

    latents: modality -> (N, L, ch).  occupancy: (N, R, R, R) in [0, 1], which takes the place of the shape's latents:
    its averages over cubes, each as far from the others as an edge of the grid says.
    """
    poses = [x.flatten(1) for name, x in sorted(latents.items()) if name != SHAPE]
    if occupancy is None:
        shape = latents[SHAPE].flatten(1) / latents[SHAPE].shape[1] ** 0.5
    else:
        shape = functional.adaptive_avg_pool3d(occupancy.float()[:, None], CELLS).flatten(1) / CELLS
    return torch.cat([shape.cpu(), *(pose.cpu() for pose in poses)], 1)


def project(features: Tensor) -> Array:
    """(N, DIRECTIONS) float64: features on directions that depend on their number alone. features: (N, F)."""
    width = features.shape[1]
    directions = torch.randn(width, DIRECTIONS, generator=seeded("directions", width), dtype=torch.float64)
    projected: Array = (features.double() @ (directions / directions.norm(dim=0))).numpy()
    return projected


def sliced_distance(first: Array, second: Array) -> float:
    """Root mean square over directions of W_2 between two sets of projections, (N, D) and (M, D)."""
    count = max(len(first), len(second))
    middle = 2 * np.arange(count) + 1

    def quantiles(values: Array) -> Array:
        """Of the levels (i + 1/2) / count: the smallest values below which that share lies, sorting once."""
        places = -(-middle * len(values) // (2 * count)) - 1
        found: Array = np.sort(values, axis=0)[places]
        return found

    return float(np.sqrt(np.mean((quantiles(first) - quantiles(second)) ** 2)))
