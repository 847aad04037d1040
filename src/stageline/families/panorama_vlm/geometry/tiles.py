"""The tile plan: which perspective views a panorama is cut into. No torch.

`plan(fov_deg, overlap_ratio)` closes a ring of equal tiles around the horizon: as many as the wanted overlap needs,
then evenly spaced, so that what the images really overlap (`o_eff`) is at least what was asked for. Several requests
give one plan; the plan, not the request, decides identity and everything else. Conventions stand in the package.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stageline.config import fingerprint
from stageline.errors import ConfigError, Faults
from stageline.families.panorama_vlm.geometry.rings import (
    FOV_DEG,
    OVERLAP,
    SLACK,
    azimuth_width,
    ring_pitches,
    row_count,
    tile_count,
)
from stageline.families.panorama_vlm.geometry.views import PixelCentres, View, is_number, wrap

GlobalMode = Literal["stretch", "letterbox", "naflex", "none"]

DECIMALS = 9
"""Digits of an angle in degrees that make a plan another one."""
QUADRATURE = (720, 360)
"""Cells in longitude and in the sine of latitude, of the whole sphere, at which coverage is counted."""


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """Every view of a panorama, in order: global, rings from the horizon outwards (upper before lower), caps.

    fov_deg: width and height of a tile.  views: all of them.  step_deg, o_eff: between neighbours of the first ring.
    global_mode: how the global view is made.  pixel_centres: where pixel centres lie, see `projection`.
    """

    fov_deg: float
    views: tuple[View, ...]
    step_deg: float
    o_eff: float
    global_mode: GlobalMode = "stretch"
    pixel_centres: PixelCentres = "half"
    num_rings: int = field(default=1)

    @property
    def tiles(self) -> tuple[View, ...]:
        """The perspective views: tiles of all rings, then caps."""
        return tuple(v for v in self.views if v.kind != "global")

    @property
    def has_global(self) -> bool:
        """Whether the first view is the whole panorama."""
        return self.views[0].kind == "global"

    @property
    def has_caps(self) -> bool:
        """Whether zenith and nadir have a tile each."""
        return self.views[-1].kind == "cap"

    @property
    def num_views(self) -> int:
        """V, global view included."""
        return len(self.views)

    @property
    def num_tiles(self) -> int:
        """All perspective views; equals N for one ring without caps."""
        return len(self.tiles)

    @property
    def N(self) -> int:  # noqa: N802  the formula's letter, and the key in the metadata
        """Tiles of the first ring."""
        return len(self.ring(0))

    def ring(self, number: int) -> tuple[View, ...]:
        """The tiles of one ring by yaw, ascending."""
        return tuple(v for v in self.views if v.ring == number)

    @property
    def yaws(self) -> tuple[float, ...]:
        """Of the first ring, degrees, ascending."""
        return tuple(v.yaw_deg for v in self.ring(0))

    @property
    def pitches(self) -> tuple[float, ...]:
        """Of the rings, in plan order, degrees."""
        return tuple(self.ring(number)[0].pitch_deg for number in range(self.num_rings))

    @property
    def name(self) -> str:
        """ "8x90", with rings and caps where there are more: "4x90+4x90+caps"."""
        rings = "+".join(f"{len(self.ring(number))}x{self.fov_deg:g}" for number in range(self.num_rings))
        return f"{rings}+caps" if self.has_caps else rings

    @cached_property
    def plan_id(self) -> str:
        """First 16 hex digits of the SHA-256 of everything geometric; what was requested has no part in it."""
        views = [
            [
                v.kind,
                *(
                    round(angle, DECIMALS) + 0.0
                    for angle in (v.yaw_deg, v.pitch_deg, v.roll_deg, v.fov_h_deg, v.fov_v_deg)
                ),
            ]
            for v in self.views
        ]
        return fingerprint({"views": views, "global_mode": self.global_mode, "pixel_centres": self.pixel_centres})[:16]

    @cached_property
    def coverage(self) -> float:
        """Share of the sphere that at least one tile sees, in (0, 1]."""
        return float((self._multiplicity > 0).mean())

    @cached_property
    def mean_looks(self) -> float:
        """How many tiles see a direction that any tile sees, on average."""
        return float(self._multiplicity.sum() / (self._multiplicity > 0).sum())

    @cached_property
    def _multiplicity(self) -> NDArray[np.int64]:
        """How many tiles see each cell of equal area; over one period of the plan in longitude."""
        period = math.gcd(*(len(self.ring(number)) for number in range(self.num_rings)))
        period = math.gcd(period, 4) if self.has_caps else period
        columns, rows = -(-QUADRATURE[0] // period), QUADRATURE[1]
        lam = (np.arange(columns) + 0.5) / columns * (2 * math.pi / period)
        sine = 1 - (np.arange(rows) + 0.5) / rows * 2
        cosine = np.sqrt(1 - sine**2)[:, None]
        world = np.stack((cosine * np.sin(lam), np.repeat(sine[:, None], columns, 1), cosine * np.cos(lam)), -1)
        seen = np.zeros((rows, columns), dtype=np.int64)
        for tile in self.tiles:
            x, y, z = np.moveaxis(world @ tile.rotation, -1, 0)
            t_h, t_v = tile.tangents
            seen += (z > 0) & (np.abs(x) <= t_h * z) & (np.abs(y) <= t_v * z)
        return seen

    @cached_property
    def neighbours(self) -> tuple[tuple[int, int], ...]:
        """Directed pairs (a, b) of view indices that lie side by side or one above the other; with (a, b) comes (b, a).

        First the rings: each tile with its right, then with its left neighbour, the seam included. Then each tile with
        those of the next ring above or below whose yaw is nearest, then caps with every tile of the outermost ring.
        """
        found: dict[tuple[int, int], None] = {}
        for number in range(self.num_rings):
            for tile in self.ring(number):
                for other in (tile.right_neighbour, tile.left_neighbour):
                    if other is not None and other != tile.index:
                        found[tile.index, other] = None
        for a, b in self._above():
            found[a, b] = None
            found[b, a] = None
        return tuple(found)

    def _above(self) -> Iterator[tuple[int, int]]:
        """(lower, upper) indices of views of which one lies above the other."""
        by_pitch = sorted(range(self.num_rings), key=lambda number: self.pitches[number])
        for low, high in itertools.pairwise(by_pitch):
            for one, many in ((low, high), (high, low)):
                for tile in self.ring(one):
                    distance = [abs(wrap(other.yaw_deg - tile.yaw_deg)) for other in self.ring(many)]
                    for other, far in zip(self.ring(many), distance, strict=True):
                        if far <= min(distance) + SLACK:
                            yield (tile.index, other.index) if one == low else (other.index, tile.index)
        if self.has_caps:
            zenith, nadir = self.views[-2:]
            for tile in self.ring(by_pitch[-1]):
                yield tile.index, zenith.index
            for tile in self.ring(by_pitch[0]):
                yield nadir.index, tile.index

    def as_json(self, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """The plan as JSON values, with every view's record.

        size: (height, width) of a rendered view in pixels; with it each view has size_hw and K.
        """
        return {
            **self.summary(),
            "views": [v.as_json(size, self.pixel_centres) for v in self.views],
        }

    def summary(self) -> dict[str, Any]:
        """The plan as JSON values without its views, for facts and metadata."""
        return {
            "plan_id": self.plan_id,
            "name": self.name,
            "fov_deg": self.fov_deg,
            "o_eff": self.o_eff,
            "N": self.N,
            "num_tiles": self.num_tiles,
            "num_views": self.num_views,
            "step_deg": self.step_deg,
            "yaws_deg": list(self.yaws),
            "pitches_deg": list(self.pitches),
            "caps": self.has_caps,
            "global_mode": self.global_mode,
            "pixel_centres": self.pixel_centres,
            "coverage": self.coverage,
        }

    def describe(self) -> str:
        """One line for people: "8x90: 8 tiles + 1 global view, every 45 degrees, overlap 0.5, 69.7 % of the sphere"."""
        whole = " + 1 global view" if self.has_global else ""
        return (
            f"{self.name}: {self.num_tiles} tiles{whole}, every {self.step_deg:.4g} degrees, overlap {self.o_eff:.3g}, "
            f"tiles see {100 * self.coverage:.1f} % of the sphere, {self.mean_looks:.2f} times on average"
        )


def plan(
    fov_deg: float,
    overlap_ratio: float,
    *,
    pitch_rows: int = 1,
    pitch_span_deg: float | None = None,
    caps: bool = False,
    yaw_count_by_pitch: bool = False,
    global_mode: GlobalMode = "stretch",
    pixel_centres: PixelCentres = "half",
) -> TilePlan:
    """The plan of a request.

    fov_deg: width and height of a tile, 20 to 130 degrees.  overlap_ratio: wanted overlap of neighbours, a share of the
    tile's angle, 0 to 0.9.  pitch_rows: rings, 1 or more.  pitch_span_deg: vertical span that the rings see, fov_deg to
    180 degrees; alone it decides the number of rings; absent, further rings overlap like neighbours in a ring do, as
    far as the poles allow.  caps: one tile at the zenith and one at the nadir.  yaw_count_by_pitch: rings off the
    horizon have only as many tiles as their wider azimuth needs.  global_mode: `stretch` or `letterbox` to the tile's
    size, `naflex` for a tower that takes patches of any grid, or `none`.  pixel_centres: `half` is a pinhole camera,
    `corner` is what py360convert does.
    Raises ConfigError with every fault of the request.
    """
    _check_request(
        fov_deg,
        overlap_ratio,
        pitch_rows,
        pitch_span_deg,
        flags={"caps": caps, "yaw_count_by_pitch": yaw_count_by_pitch},
        choices={"global_mode": (global_mode, GlobalMode), "pixel_centres": (pixel_centres, PixelCentres)},
    )
    fov = float(fov_deg)
    pitches = ring_pitches(fov, overlap_ratio, pitch_rows, pitch_span_deg)
    views: list[View] = []
    if global_mode != "none":
        views.append(View(index=0, kind="global", yaw_deg=0.0, pitch_deg=0.0, fov_h_deg=360.0, fov_v_deg=180.0))
    steps: list[float] = []
    for ring, pitch in enumerate(pitches):
        width = azimuth_width(fov, pitch) if yaw_count_by_pitch else fov
        n = tile_count(width, overlap_ratio)
        step = 360.0 / n
        steps.append(step)
        first = len(views)
        for k, yaw in enumerate(sorted(wrap(k * step) for k in range(n))):
            views.append(
                View(
                    index=first + k,
                    kind="tile",
                    ring=ring,
                    ring_index=k,
                    yaw_deg=yaw,
                    pitch_deg=pitch,
                    fov_h_deg=fov,
                    fov_v_deg=fov,
                    left_neighbour=first + (k - 1) % n,
                    right_neighbour=first + (k + 1) % n,
                    o_eff=1.0 - step / fov,
                )
            )
    for k, pitch in enumerate((90.0, -90.0) if caps else ()):
        views.append(
            View(index=len(views), kind="cap", ring_index=k, yaw_deg=0.0, pitch_deg=pitch, fov_h_deg=fov, fov_v_deg=fov)
        )
    return TilePlan(
        fov_deg=fov,
        views=tuple(views),
        step_deg=steps[0],
        o_eff=1.0 - steps[0] / fov,
        global_mode=global_mode,
        pixel_centres=pixel_centres,
        num_rings=len(pitches),
    )


def _check_request(
    fov_deg: Any,
    overlap_ratio: Any,
    pitch_rows: Any,
    pitch_span_deg: Any,
    flags: Mapping[str, Any],
    choices: Mapping[str, tuple[Any, Any]],
) -> None:
    faults = Faults(ConfigError, "tile plan", "mend image_processing in the config")
    for name, number, (low, high) in (("fov_deg", fov_deg, FOV_DEG), ("overlap_ratio", overlap_ratio, OVERLAP)):
        if not is_number(number) or not low <= number <= high:
            faults.add(f"{name} is {number!r}, expected a number from {low:g} to {high:g}")
    if isinstance(pitch_rows, bool) or not isinstance(pitch_rows, int) or pitch_rows < 1:
        faults.add(f"pitch_rows is {pitch_rows!r}, expected a positive integer")
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            faults.add(f"{name} is {flag!r}, expected true or false")
    for name, (value, kind) in choices.items():
        if value not in get_args(kind):
            faults.add(f"{name} is {value!r}, expected one of {', '.join(get_args(kind))}")
    if not faults.found:
        faults.extend(_row_faults(float(fov_deg), float(overlap_ratio), pitch_rows, pitch_span_deg))
    elif pitch_span_deg is not None and not is_number(pitch_span_deg):
        faults.add(f"pitch_span_deg is {pitch_span_deg!r}, expected a number of degrees")
    faults.raise_if_any()


def _row_faults(fov: float, overlap_ratio: float, rows: int, span: Any) -> Iterator[str]:
    if span is None:
        return
    if not is_number(span) or not 0 < span <= 180:
        yield f"pitch_span_deg is {span!r}, expected a number of degrees, at most 180"
    elif rows > 1:
        needed = row_count(float(span), fov, overlap_ratio)
        if needed > rows:
            yield f"pitch_rows is {rows}, but a pitch_span_deg of {span:g} needs {needed} rings"
        elif span <= fov:
            yield f"pitch_rows is {rows}, but one ring of {fov:g} degrees sees the pitch_span_deg of {span:g}"
