"""How many tiles close a ring, how many rings see a span, and at which pitches they lie. No torch."""

from __future__ import annotations

import math

FOV_DEG = (20.0, 130.0)
"""Legal width of a tile; the edge of a tile is stretched by 1 / cos^2(fov / 2), 4 at 120 degrees."""
OVERLAP = (0.0, 0.9)
"""Legal wanted overlap, a share of the tile's angle."""
SLACK = 1e-9
"""Keeps 360 / 72 = 5.000...01 from becoming six tiles."""


def tile_count(width_deg: float, overlap_ratio: float) -> int:
    """N, how many tiles of a width close a ring with at least this overlap."""
    return max(1, math.ceil(360.0 / (width_deg * (1.0 - overlap_ratio)) - SLACK))


def azimuth_width(fov_deg: float, pitch_deg: float) -> float:
    """Degrees of azimuth that a tile at a pitch sees in its centre row: 2 atan(tan(fov / 2) / cos pitch)."""
    return 2 * math.degrees(math.atan(math.tan(math.radians(fov_deg) / 2) / math.cos(math.radians(pitch_deg))))


def row_count(span_deg: float, fov_deg: float, overlap_ratio: float) -> int:
    """How many rings see a vertical span with at least this overlap."""
    if span_deg <= fov_deg:
        return 1
    return math.ceil((span_deg - fov_deg) / (fov_deg * (1.0 - overlap_ratio)) - SLACK) + 1


def ring_pitches(fov: float, overlap_ratio: float, rows: int, span_deg: float | None) -> list[float]:
    """Pitches of the rings in degrees: nearest to the horizon first, upper before lower.

    rows: wanted rings.  span_deg: what they see vertically, which may need more of them; absent, rings overlap like
    neighbours in a ring, as far as the poles allow.
    """
    if span_deg is None:
        span_deg = min(180.0, fov + (rows - 1) * fov * (1.0 - overlap_ratio))
    else:
        rows = max(rows, row_count(span_deg, fov, overlap_ratio))
    if rows == 1:
        return [0.0]
    reach = (span_deg - fov) / 2
    # Counted from the horizon in both directions, so that the rings are exactly symmetric.
    pitches = [reach * (2 * k - (rows - 1)) / (rows - 1) for k in range(rows)]
    return sorted(pitches, key=lambda pitch: (abs(pitch), -pitch))
