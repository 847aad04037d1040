"""The tile plan against stored values, closed forms and its own promises."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.geometry.rings import tile_count
from stageline.families.panorama_vlm.geometry.tiles import TilePlan, plan
from stageline.families.panorama_vlm.geometry.views import rotation, view, wrap

CASES = json.loads((Path(__file__).parents[3] / "golden/panorama/cases.json").read_text())["plans"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['fov']:g}-{case['overlap']:.2f}")
def test_plan_is_the_stored_one(case: dict[str, Any]) -> None:
    """Check 1: tiles, views, step, effective overlap and yaws of 40 requests, exactly."""
    made = plan(case["fov"], case["overlap"])
    assert (made.N, made.num_tiles, made.num_views) == (case["tiles"], case["tiles"], case["views"])
    assert (made.step_deg, made.o_eff) == (case["step_deg"], case["effective_overlap"])
    assert list(made.yaws) == case["yaws_deg"]


@pytest.mark.parametrize(
    ("overlap", "tiles"), [(0.5, 8), (0, 4), (0.25, 6), (1 / 3, 6), (0.2, 5), (0.1, 5), (0.75, 16)]
)
def test_ring_is_closed_and_has_a_front(overlap: float, tiles: int) -> None:
    """Check 1: 8+1, 4+1, 6+1 views; one tile faces the front; spacing is equal, across the seam too."""
    made = plan(90, overlap)
    assert (made.num_tiles, made.num_views) == (tiles, tiles + 1)
    assert made.yaws.count(0.0) == 1
    gaps = np.diff([*made.yaws, made.yaws[0] + 360])
    assert np.allclose(gaps, 360 / tiles, atol=1e-12)
    assert made.o_eff >= overlap - 1e-12


def test_rounding_makes_no_tile_too_many() -> None:
    assert 360 / 72.0 * (1 + 1e-12) > 5
    assert [tile_count(72, 0), tile_count(90, 0.2), tile_count(72 * (1 - 1e-12), 0)] == [5, 5, 5]
    assert tile_count(71.9, 0) == 6


@pytest.mark.parametrize(
    ("fov", "overlap", "percent"),
    [
        (90, 0, 66.7),
        (90, 0.25, 69.0),
        (90, 0.5, 69.7),
        (60, 0, 48.2),
        (60, 0.5, 49.5),
        (120, 0, 80.9),
        (120, 0.5, 85.5),
    ],
)
def test_coverage_of_one_ring(fov: float, overlap: float, percent: float) -> None:
    """Closed form: N / pi * asin(sin(fov / 2) * sin(pi / N)); the figures are a Monte Carlo's."""
    made = plan(fov, overlap)
    exact = made.N / math.pi * math.asin(math.sin(math.radians(fov / 2)) * math.sin(math.pi / made.N))
    assert made.coverage == pytest.approx(exact, abs=1e-3)
    assert 100 * made.coverage == pytest.approx(percent, abs=0.2)


def test_coverage_with_caps() -> None:
    """Six faces of a cube see everything once; caps that touch nothing add their solid angle, 4 asin(sin^2(f / 2))."""
    cube = plan(90, 0, caps=True)
    assert (cube.num_tiles, cube.coverage, cube.mean_looks) == (6, 1.0, pytest.approx(1, abs=5e-3))
    solid = 4 * math.asin(math.sin(math.radians(30)) ** 2)
    added = plan(60, 0, caps=True).coverage - plan(60, 0).coverage
    assert added == pytest.approx(2 * solid / (4 * math.pi), abs=2e-3)
    assert plan(90, 0.5).mean_looks == pytest.approx(8 / 6 / plan(90, 0.5).coverage, abs=5e-3)


def test_coverage_of_unequal_rings_is_that_of_random_directions() -> None:
    made = plan(60, 0.1, pitch_span_deg=140, yaw_count_by_pitch=True)
    assert len({len(made.ring(number)) for number in range(made.num_rings)}) > 1
    d = np.random.default_rng(0).normal(size=(40_000, 3))
    seen = np.zeros(len(d), dtype=bool)
    for tile in made.tiles:
        x, y, z = (d @ tile.rotation).T
        seen |= (z > 0) & (np.abs(x) < z * tile.tangents[0]) & (np.abs(y) < z * tile.tangents[1])
    assert made.coverage == pytest.approx(seen.mean(), abs=8e-3)


def test_the_plan_decides_identity_and_not_the_request() -> None:
    assert plan(90, 0.1) == plan(90, 0.2)
    assert plan(90, 0.25).plan_id == plan(90, 1 / 3).plan_id
    assert plan(90, 0, pitch_rows=2) == plan(90, 0, pitch_span_deg=180)
    options: list[dict[str, Any]] = [
        {},
        {"overlap_ratio": 0.5},
        {"fov_deg": 89.999},
        {"caps": True},
        {"pitch_rows": 2},
        {"pitch_rows": 3},
        {"pitch_span_deg": 120},
        {"global_mode": "none"},
        {"global_mode": "letterbox"},
        {"pixel_centres": "corner"},
    ]
    ids = {plan(**{"fov_deg": 90, "overlap_ratio": 0, **option}).plan_id for option in options}
    assert len(ids) == len(options)
    assert plan(90, 0.5).plan_id == "ececf2b40701eea8"


def test_views_stand_in_order() -> None:
    made = plan(60, 0, pitch_span_deg=150, caps=True)
    assert [v.index for v in made.views] == list(range(made.num_views))
    assert [v.kind for v in made.views] == ["global"] + ["tile"] * 18 + ["cap"] * 2
    assert made.pitches == (0.0, 45.0, -45.0)
    assert [v.pitch_deg for v in made.views[-2:]] == [90, -90]
    for number in range(3):
        ring = made.ring(number)
        assert [v.yaw_deg for v in ring] == sorted(v.yaw_deg for v in ring)
        assert [v.ring_index for v in ring] == list(range(6))
        for k, tile in enumerate(ring):
            assert (tile.left_neighbour, tile.right_neighbour) == (ring[k - 1].index, ring[(k + 1) % 6].index)
    assert [v.yaw_deg for v in plan(90, 0.5).views] == [0, -180, -135, -90, -45, 0, 45, 90, 135]


@pytest.mark.parametrize(
    ("span", "pitches"), [(90, [0]), (91, [0.5, -0.5]), (180, [45, -45]), (135, [22.5, -22.5]), (179, [44.5, -44.5])]
)
def test_rings_of_a_span(span: float, pitches: list[float]) -> None:
    assert list(plan(90, 0, pitch_span_deg=span).pitches) == pytest.approx(pitches)
    half = plan(90, 0.5, pitch_span_deg=180)
    assert half.pitches == (0.0, 45.0, -45.0)


def test_a_ring_off_the_horizon_needs_fewer_tiles() -> None:
    """At 45 degrees a 90 degree tile sees 109.5 degrees of azimuth; at 52.5 degrees 75 degree tiles close with 4."""
    assert plan(90, 0, pitch_span_deg=180, yaw_count_by_pitch=True).N == 4
    by_pitch = plan(75, 0, pitch_span_deg=180, yaw_count_by_pitch=True)
    assert [len(by_pitch.ring(number)) for number in range(3)] == [5, 4, 4]
    assert {len(plan(75, 0, pitch_span_deg=180).ring(number)) for number in range(3)} == {5}
    full = plan(90, 0, pitch_rows=2)
    assert full.coverage > 0.95


def test_neighbours_are_both_ways_and_cross_the_seam() -> None:
    made = plan(90, 0.5)
    assert len(made.neighbours) == 16
    assert {(1, 8), (8, 1)} < set(made.neighbours)
    for some in (made, plan(90, 0, pitch_rows=3), plan(60, 0, pitch_span_deg=150, caps=True, yaw_count_by_pitch=True)):
        assert {(b, a) for a, b in some.neighbours} == set(some.neighbours)
        assert all(a != b for a, b in some.neighbours)
        assert {a for a, _ in some.neighbours} == {v.index for v in some.tiles}
    stacked = plan(90, 0.5, pitch_span_deg=135)
    ups = [(a, b) for a, b in stacked.neighbours if stacked.views[a].ring != stacked.views[b].ring]
    assert len(ups) == 16
    assert all(stacked.views[a].yaw_deg == stacked.views[b].yaw_deg for a, b in ups)


def test_yaw_turns_right_and_pitch_looks_up() -> None:
    forward = np.array([0, 0, 1.0])
    assert np.allclose(rotation(90, 0) @ forward, [1, 0, 0])
    assert np.allclose(rotation(-90, 0) @ forward, [-1, 0, 0])
    assert np.allclose(rotation(0, 90) @ forward, [0, 1, 0])
    assert np.allclose(rotation(90, 30) @ forward, [math.cos(math.radians(30)), 0.5, 0])
    turned = rotation(123, -37, 11)
    assert np.allclose(turned @ turned.T, np.eye(3), atol=1e-15)
    assert np.linalg.det(turned) == pytest.approx(1)


@pytest.mark.parametrize("centres", ["half", "corner"])
def test_camera_matrix_gives_the_index_of_a_ray(centres: Any) -> None:
    tile = view(80, 0, 0, fov_v=50)
    t_h, t_v = tile.tangents
    width, height = 31, 20
    j, i = np.arange(width), np.arange(height)
    if centres == "half":
        x, y = ((j + 0.5) / width * 2 - 1) * t_h, (1 - (i + 0.5) / height * 2) * t_v
    else:
        x, y = np.linspace(-t_h, t_h, width), np.linspace(t_v, -t_v, height)
    k = tile.intrinsics(height, width, centres)
    assert np.allclose(k[0, 0] * x + k[0, 2], j, atol=1e-12)
    assert np.allclose(k[1, 1] * -y + k[1, 2], i, atol=1e-12)


def test_a_plan_travels_as_json() -> None:
    made = plan(90, 0.5, caps=True)
    plain = json.loads(json.dumps(made.as_json((32, 32)), allow_nan=False))
    assert (plain["N"], plain["num_tiles"], plain["num_views"], plain["plan_id"]) == (8, 10, 11, made.plan_id)
    assert (plain["views"][0]["K"], plain["views"][3]["size_hw"]) == (None, [32, 32])
    assert np.allclose(plain["views"][3]["R_world_from_cam"], made.views[3].rotation)
    assert plain["views"][1]["left_neighbour"] == 8
    assert "K" not in made.as_json()["views"][1]
    assert "69.8 % of the sphere" in plan(90, 0.5).describe()


def test_every_fault_of_a_request_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(10, 0.95, pitch_rows=0, pitch_span_deg=math.nan, global_mode="cube", pixel_centres="centre")  # type: ignore[arg-type]
    for name in ("fov_deg", "overlap_ratio", "pitch_rows", "pitch_span_deg", "global_mode", "pixel_centres"):
        assert name in caught.value.message


@pytest.mark.parametrize(
    "request_",
    [
        {"fov_deg": math.nan},
        {"fov_deg": True},
        {"fov_deg": "90"},
        {"fov_deg": 130.5},
        {"overlap_ratio": -0.01},
        {"overlap_ratio": math.inf},
        {"pitch_rows": 1.0},
        {"pitch_span_deg": 181},
        {"pitch_span_deg": -90},
        {"pitch_rows": 2, "pitch_span_deg": 90},
        {"pitch_rows": 2, "pitch_span_deg": 180, "overlap_ratio": 0.5},
        {"caps": 1},
    ],
    ids=str,
)
def test_a_request_out_of_range_is_refused(request_: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="tile plan: 1 fault"):
        plan(**{"fov_deg": 90, "overlap_ratio": 0, **request_})


def test_a_view_of_its_own() -> None:
    assert wrap(180) == wrap(-540) == -180
    assert (view(30, 190, 0).yaw_deg, view(100, 0, 10, fov_v=70).fov_v_deg) == (-170, 70)
    with pytest.raises(ConfigError, match="2 faults"):
        view(180, math.nan, 0, fov_v=20)
    whole: TilePlan = plan(90, 0)
    with pytest.raises(ConfigError, match="no pinhole camera"):
        whole.views[0].intrinsics(32, 32)


def test_a_plan_needs_no_torch() -> None:
    code = (
        "import sys; from stageline.families.panorama_vlm.geometry import plan; plan(90, 0.5).coverage; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
