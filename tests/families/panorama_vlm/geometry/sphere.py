"""The reference in numpy and float64, written from the formulas: rays of pixels, scenes on the sphere."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def ray(fov_h: float, fov_v: float, yaw: float, pitch: float, height: int, width: int, centres: str = "half") -> Array:
    """(height, width, 3) unit world directions of the pixels of a view without roll; angles in degrees."""
    t_h, t_v = np.tan(np.radians(fov_h) / 2), np.tan(np.radians(fov_v) / 2)
    if centres == "half":
        x, y = ((np.arange(width) + 0.5) / width * 2 - 1) * t_h, (1 - (np.arange(height) + 0.5) / height * 2) * t_v
    else:
        x, y = np.linspace(-t_h, t_h, width), np.linspace(t_v, -t_v, height)
    x, y = np.meshgrid(x, y)
    psi, theta = np.radians(yaw), np.radians(pitch)
    up, ahead = y * np.cos(theta) + np.sin(theta), np.cos(theta) - y * np.sin(theta)
    d = np.stack((x * np.cos(psi) + ahead * np.sin(psi), up, -x * np.sin(psi) + ahead * np.cos(psi)), -1)
    return d / np.linalg.norm(d, axis=-1, keepdims=True)


def sphere(height: int, width: int) -> Array:
    """(height, width, 3) unit world directions of the pixels of a panorama."""
    lam = ((np.arange(width) + 0.5) / width - 0.5) * 2 * np.pi
    phi = (0.5 - (np.arange(height) + 0.5) / height) * np.pi
    lam, phi = np.meshgrid(lam, phi)
    return np.stack((np.cos(phi) * np.sin(lam), np.sin(phi), np.cos(phi) * np.cos(lam)), -1)


def scene(d: Array) -> Array:
    """(..., 3) colours in [0, 1] of directions: smooth, without any symmetry."""
    x, y, z = np.moveaxis(d, -1, 0)
    red = 0.5 + 0.2 * x * z + 0.15 * y
    green = 0.5 + 0.2 * np.sin(x + 1.3 * y) + 0.1 * z
    blue = 0.5 + 0.2 * np.cos(1.5 * z - x) * y + 0.1 * x
    return np.stack((red, green, blue), -1)


def waves(d: Array, *, degrees: float, count: int = 48, seed: int = 0) -> Array:
    """(..., 1) texture in about [0, 1] whose features are this wide: plane waves from random directions."""
    rng = np.random.default_rng(seed)
    k = rng.normal(size=(3, count))
    k *= np.pi / np.radians(degrees) / np.linalg.norm(k, axis=0)
    return 0.5 + np.cos(d @ k + rng.uniform(0, 2 * np.pi, count)).sum(-1, keepdims=True) / (4 * np.sqrt(count))
