"""One view of a panorama: where it looks, how wide it is, its camera. No torch. Conventions stand in the package."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stageline.errors import ConfigError, Faults

ViewKind = Literal["global", "tile", "cap"]
PixelCentres = Literal["half", "corner"]

Matrix = NDArray[np.float64]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, numpy's too; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def wrap(angle_deg: float) -> float:
    """An angle in degrees, brought to [-180, 180)."""
    return (angle_deg + 180.0) % 360.0 - 180.0


def rotation(yaw_deg: float, pitch_deg: float, roll_deg: float = 0.0) -> Matrix:
    """(3, 3) matrix from camera axes (x right, y up, z forward) to world axes: roll, then pitch about x, then yaw."""
    psi, theta, rho = (math.radians(angle) for angle in (yaw_deg, pitch_deg, roll_deg))
    yaw = np.array([[math.cos(psi), 0, math.sin(psi)], [0, 1, 0], [-math.sin(psi), 0, math.cos(psi)]])
    pitch = np.array([[1, 0, 0], [0, math.cos(theta), math.sin(theta)], [0, -math.sin(theta), math.cos(theta)]])
    roll = np.array([[math.cos(rho), math.sin(rho), 0], [-math.sin(rho), math.cos(rho), 0], [0, 0, 1]])
    product: Matrix = yaw @ pitch @ roll
    return product


@dataclass(frozen=True, kw_only=True)
class View:
    """One view of a panorama: a pinhole camera in its centre, or the whole panorama (`global`).

    index: place in the plan.  ring, ring_index: which ring and which tile of it, -1 outside of rings; caps count from
    the zenith.  yaw_deg, pitch_deg, roll_deg: of the viewing axis, in [-180, 180).  fov_h_deg, fov_v_deg: width and
    height (360 and 180 for the global view).  left_neighbour, right_neighbour: indices in the closed ring, None outside
    of rings.  o_eff: share of its angle that a tile has in
    common with its neighbour, 1 - step / fov; below 0 only in a ring that was counted by its wider azimuth.
    """

    index: int
    kind: ViewKind
    yaw_deg: float
    pitch_deg: float
    fov_h_deg: float
    fov_v_deg: float
    roll_deg: float = 0.0
    ring: int = -1
    ring_index: int = -1
    left_neighbour: int | None = None
    right_neighbour: int | None = None
    o_eff: float = 0.0

    @property
    def tangents(self) -> tuple[float, float]:
        """tan of half the width and of half the height; for perspective views only."""
        return math.tan(math.radians(self.fov_h_deg) / 2), math.tan(math.radians(self.fov_v_deg) / 2)

    @property
    def rotation(self) -> Matrix:
        """(3, 3), from camera axes (x right, y up, z forward) to world axes."""
        return rotation(self.yaw_deg, self.pitch_deg, self.roll_deg)

    def intrinsics(self, height: int, width: int, pixel_centres: PixelCentres = "half") -> Matrix:
        """(3, 3) camera matrix for directions (x, -y, z), in pixel indices: column j, row i has its centre at (j, i).

        height, width: of the rendered view, in pixels; at least 2 where pixel centres lie on the border (`corner`).
        """
        if self.kind == "global":
            raise ConfigError("the global view is no pinhole camera, so it has no camera matrix")
        t_h, t_v = self.tangents
        less = 1 if pixel_centres == "corner" else 0
        focal = ((width - less) / (2 * t_h), (height - less) / (2 * t_v))
        return np.array([[focal[0], 0, (width - 1) / 2], [0, focal[1], (height - 1) / 2], [0, 0, 1]])

    def as_json(self, size: tuple[int, int] | None = None, pixel_centres: PixelCentres = "half") -> dict[str, Any]:
        """All fields as JSON values, with R_world_from_cam, and with size_hw and K where the size is given.

        size: (height, width) of the rendered view in pixels.
        """
        plain: dict[str, Any] = {
            "index": self.index,
            "kind": self.kind,
            "ring": self.ring,
            "ring_index": self.ring_index,
            "yaw_deg": self.yaw_deg,
            "pitch_deg": self.pitch_deg,
            "roll_deg": self.roll_deg,
            "fov_h_deg": self.fov_h_deg,
            "fov_v_deg": self.fov_v_deg,
            "R_world_from_cam": self.rotation.tolist(),
            "left_neighbour": self.left_neighbour,
            "right_neighbour": self.right_neighbour,
            "o_eff": self.o_eff,
        }
        if size is not None:
            is_global = self.kind == "global"
            plain["size_hw"] = list(size)
            plain["K"] = None if is_global else self.intrinsics(*size, pixel_centres).tolist()
        return plain


def view(fov_deg: float, yaw: float, pitch: float, roll: float = 0.0, fov_v: float | None = None) -> View:
    """A single tile outside of any plan: width, yaw, pitch, roll and height (the width where absent), in degrees.

    Raises ConfigError for numbers outside of (0, 180) or not finite.
    """
    height = fov_deg if fov_v is None else fov_v
    faults = Faults(ConfigError, "view")
    numbers = {"fov_deg": fov_deg, "fov_v": height, "yaw": yaw, "pitch": pitch, "roll": roll}
    for name, number in numbers.items():
        if not is_number(number):
            faults.add(f"{name} is {number!r}, expected a finite number of degrees")
        elif name.startswith("fov") and not 0 < number < 180:
            faults.add(f"{name} is {number!r}, expected more than 0 and less than 180 degrees")
    faults.raise_if_any()
    return View(
        index=0,
        kind="tile",
        yaw_deg=wrap(yaw),
        pitch_deg=wrap(pitch),
        roll_deg=wrap(roll),
        fov_h_deg=float(fov_deg),
        fov_v_deg=float(height),
    )


def edge_tangents(
    view: View, pixel_centres: PixelCentres, size: int | tuple[int, int] | None = None
) -> tuple[float, float]:
    """tan of half the width and half the height, measured to the outer EDGES of the outermost pixels.

    size: rendered (height, width) in pixels, or one number. `corner` puts pixel centres there where `half` has their
    edges, so it equals `half` with a tangent larger by T / (T - 1) and needs the size: ConfigError without it.
    """
    t_h, t_v = view.tangents
    if pixel_centres == "half":
        return t_h, t_v
    height, width = (size, size) if size is None or isinstance(size, int) else size
    if height is None or width is None or min(height, width) < 2:
        raise ConfigError(
            f"pixel_centres is 'corner' and the size of a view is {size!r}, expected at least 2 pixels",
            remedy="give the size in pixels, or use pixel_centres: half",
        )
    return t_h * width / (width - 1), t_v * height / (height - 1)
