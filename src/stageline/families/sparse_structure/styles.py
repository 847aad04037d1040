"""Which style an object has, read off its voxels: what style agreement is measured with. No torch.

One linear model per class, fitted in closed form to what the autoencoder makes of training objects whose style is known
(ridge regression on one column per style, +1 or -1: Rifkin, Yeo and Poggio, Regularized least-squares classification,
2003). It is asked about what is sampled only where it reads reconstructions of the evaluated scenes right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_ACCURACY = 0.95
"""Below this share of right answers on reconstructions of the truth no style is read off samples."""
RIDGE = 1.0
"""What is added to the diagonal, in units of the mean square of an object's centred voxels."""
MOST_VOXELS = 16
"""Edge of the grid that voxels are averaged down to."""
Array = NDArray[Any]


class StyleReader:
    """Reads styles of objects.

    occupancy: (N, R, R, R) in [0, 1] of training objects.  classes, styles: of them.
    """

    def __init__(self, occupancy: Array, classes: Sequence[str], styles: Sequence[str]) -> None:
        self.styles = sorted(set(styles))
        features, kinds = _features(occupancy), np.array(classes)
        targets = 2.0 * (np.array(styles)[:, None] == np.array(self.styles)) - 1
        self.of_class = {
            kind: _fit(features[kinds == kind], targets[kinds == kind]) for kind in sorted(set(kinds.tolist()))
        }

    def read(self, occupancy: Array, classes: Sequence[str]) -> list[str | None]:
        """Styles of objects; None where training had none of the class. Arguments as above."""
        found: list[str | None] = []
        for row, kind in zip(_features(occupancy), classes, strict=True):
            if kind not in self.of_class:
                found.append(None)
                continue
            centre, weights, mean = self.of_class[kind]
            found.append(self.styles[int(np.argmax((row - centre) @ weights + mean))])
        return found

    def accuracy(self, occupancy: Array, classes: Sequence[str], styles: Sequence[str]) -> float:
        """Share of objects whose style is read right."""
        found = self.read(occupancy, classes)
        return sum(a == b for a, b in zip(found, styles, strict=True)) / len(found)


def _features(occupancy: Array) -> Array:
    """(N, F) float64: voxels, averaged over cubes where there are more than `MOST_VOXELS` along an edge."""
    count, size = len(occupancy), occupancy.shape[1]
    cell = -(-size // MOST_VOXELS)
    padded = np.pad(occupancy.astype(np.float64), [(0, 0), *[(0, -size % cell)] * 3])
    edge = padded.shape[1] // cell
    averaged: Array = padded.reshape(count, edge, cell, edge, cell, edge, cell).mean((2, 4, 6))
    return averaged.reshape(count, -1)


def _fit(features: Array, targets: Array) -> tuple[Array, Array, Array]:
    """(centre, weights, mean) of a class, by the system of its objects, which are fewer than voxels."""
    centre, mean = features.mean(0), targets.mean(0)
    centred = features - centre
    gram = centred @ centred.T
    ridge = RIDGE * max(float(np.trace(gram)) / len(gram), 1e-9)
    weights: Array = centred.T @ np.linalg.solve(gram + ridge * np.eye(len(gram)), targets - mean)
    return centre, weights, mean
