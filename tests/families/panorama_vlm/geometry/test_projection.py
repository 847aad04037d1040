"""Pixels of views: against py360convert, against a smooth scene on the sphere, and against what a roll must do."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import py360convert
import pytest
import torch

from stageline.errors import ConfigError, DataError
from stageline.families.panorama_vlm.geometry import plan, project
from stageline.families.panorama_vlm.geometry.projection import (
    global_picture,
    pad_sphere,
    resize_sphere,
    sampling_grid,
)
from stageline.families.panorama_vlm.geometry.resolution import critical_width, reduced_size, reduced_width
from stageline.families.panorama_vlm.geometry.views import view

from .sphere import Array, ray, scene, sphere

CASES = json.loads((Path(__file__).parents[3] / "golden/panorama/cases.json").read_text())["e2p"]
SCENE = scene(sphere(128, 256)).astype(np.float32)


def name_of(case: dict[str, Any]) -> str:
    return f"{case['fov_h']}x{case['fov_v']} at {case['yaw']},{case['pitch']} on {case['out_h']}"


def picture(case: dict[str, Any], erp: Array = SCENE, **options: Any) -> Array:
    """(h, w, 3) of one stored case."""
    shown = project(erp, case, (case["out_h"], case["out_w"]), **options)
    assert shown.shape == (1, 3, case["out_h"], case["out_w"])
    return shown[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_corner_mode_is_py360convert(case: dict[str, Any]) -> None:
    """Check 2: 13 views, among them the seam at 48 and 49 pixels, narrow views at seam and zenith, unequal sides."""
    assert py360convert.utils.cv2 is None, "with OpenCV it samples at 1/32 pixel and is no reference"
    hw = (case["out_h"], case["out_w"])
    expected = py360convert.e2p(SCENE, (case["fov_h"], case["fov_v"]), case["yaw"], case["pitch"], hw)
    assert np.abs(picture(case, pixel_centres="corner") - expected).max() <= 1e-5


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_half_mode_is_a_pinhole_camera(case: dict[str, Any]) -> None:
    """Check 2: the scene itself, to the error of bilinear interpolation."""
    d = ray(case["fov_h"], case["fov_v"], case["yaw"], case["pitch"], case["out_h"], case["out_w"])
    assert np.abs(picture(case) - scene(d)).max() <= 1e-4
    corner = ray(case["fov_h"], case["fov_v"], case["yaw"], case["pitch"], case["out_h"], case["out_w"], "corner")
    assert np.abs(scene(corner) - scene(d)).max() > 2e-4


def test_marker_lands_in_the_middle() -> None:
    """Check 2: a blob 50 degrees to the right and 20 up; the mirrored views do not show it."""
    d = sphere(128, 256)
    towards = ray(1, 1, 50, 20, 1, 1)[0, 0]
    blob = np.repeat(np.exp(-((np.degrees(np.arccos(np.clip(d @ towards, -1, 1))) / 3) ** 2))[..., None], 3, -1)
    for centres in ("half", "corner"):
        shown = project(blob, view(90, 50, 20), 49, pixel_centres=centres)[0, 0]
        row, column = divmod(int(shown.argmax()), 49)
        assert abs(row - 24) <= 1
        assert abs(column - 24) <= 1
    for yaw, pitch in ((-50, 20), (50, -20)):
        assert project(blob, view(30, yaw, pitch), 49).max() < 0.1
    left = project(blob, view(90, 30, 0), 49)[0, 0]
    row, column = divmod(int(left.argmax()), 49)
    assert row < 24 < column


@pytest.mark.parametrize("roll", [20.0, -35.0, 90.0])
def test_roll_is_py360converts(roll: float) -> None:
    expected = py360convert.e2p(SCENE, (70, 50), 30, 20, (32, 48), in_rot_deg=roll)
    shown = project(SCENE, view(70, 30, 20, roll, 50), (32, 48), pixel_centres="corner")
    assert np.abs(shown[0].permute(1, 2, 0).numpy() - expected).max() <= 1e-5


@pytest.mark.parametrize(("yaw", "pitch"), [(180, 0), (-180, 12), (179.9, -30), (0, 90), (33, -90), (-120, 89)])
@pytest.mark.parametrize("size", [47, 48])
def test_narrow_views_at_seam_and_poles(yaw: float, pitch: float, size: int) -> None:
    shown = project(SCENE, view(20, yaw, pitch), size)[0].permute(1, 2, 0).numpy()
    assert np.abs(shown - scene(ray(20, 20, yaw, pitch, size, size))).max() <= 1e-4


def noise(height: int, width: int, dtype: Any = np.uint8, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, 3), dtype, endpoint=True)


@pytest.mark.parametrize("width", [128, 1024, 1040])
@pytest.mark.parametrize(
    ("erp_of", "atol"), [(lambda h, w: scene(sphere(h, w)), 1e-6), (noise, 5e-5)], ids=["scene", "noise"]
)
def test_a_rolled_panorama_is_a_turned_view(width: int, erp_of: Any, atol: float) -> None:
    """Check 3: an eighth of the width is 45 degrees of yaw, with and without the reduction. On noise, places count that
    are rounded to float32: 6e-8 of the width, times the difference between neighbouring pixels."""
    erp = erp_of(width // 2, width)
    made = plan(90, 0.5)
    assert (reduced_width(width, made.tiles, (64, 64)) < width) == (width > 128)
    still, rolled = (project(np.roll(erp, shift, 1), made, 64) for shift in (0, -width // 8))
    assert (rolled[1:] - still[1:].roll(-1, 0)).abs().max() <= atol
    assert (rolled[0] - still[0].roll(-8, -1)).abs().max() <= atol


def one_over_f(height: int, width: int) -> Array:
    """Periodic texture in [0, 255] whose amplitude falls like 1 / frequency."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.maximum(np.hypot(fy, fx), 1 / width)
    raw = np.random.default_rng(1).normal(size=(height, width))
    shaped = np.fft.irfft2(np.fft.rfft2(raw) / frequency, (height, width))
    return np.clip(127.5 + 50 * shaped[..., None].repeat(3, -1) / shaped.std(), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("texture", [noise, one_over_f], ids=["white", "1/f"])
def test_default_reduction_against_area_averages(texture: Any) -> None:
    """Check 3, at a quarter of its size: at most 0.3 of direct sampling's error, at least 0.85 of the contrast kept."""
    erp = texture(512, 1024)
    tile = view(90, 20, 0)
    truth = torch.nn.functional.avg_pool2d(project(erp, tile, 8 * 64, antialias="off"), 8)
    error = {}
    for setting in ("auto", "off", "fast", "best"):
        shown = project(erp, tile, 64, antialias=setting)  # type: ignore[arg-type]
        error[setting] = float((shown - truth).square().mean().sqrt())
        if setting == "auto":
            assert shown.std() >= 0.85 * truth.std()
            assert shown.std() <= 1.15 * truth.std()
    assert error["auto"] <= 0.3 * error["off"]
    assert error["best"] < error["auto"] < error["fast"] < error["off"]


def test_when_and_to_what_a_panorama_is_reduced() -> None:
    tile = [view(90, 0, 0)]
    assert [
        round(critical_width([view(f, 0, 0)], (t, t))) for t, f in ((256, 90), (384, 90), (224, 90), (256, 60))
    ] == [
        804,
        1206,
        704,
        1393,
    ]
    assert reduced_size(2048, 4096, tile, (256, 256)) == (768, 1536)
    assert reduced_size(512, 1024, tile, (256, 256)) == (512, 1024)
    assert reduced_width(4096, tile, (256, 256), "fast") == 1024
    assert reduced_width(4096, tile, (256, 256), "off") == 4096
    assert reduced_width(1904, tile, (256, 256)) == 1904
    assert reduced_width(1920, tile, (256, 256)) == 1536
    with pytest.raises(ConfigError, match="antialias"):
        project(SCENE, tile[0], 8, antialias="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("centres", ["half", "corner"])
def test_supersampling_keeps_pixels_where_they_are(centres: Any) -> None:
    one, four = (project(SCENE, plan(90, 0.5), 40, pixel_centres=centres, antialias=a) for a in ("off", "best"))
    assert (one - four)[1:].abs().max() < 1e-3


def test_deep_pictures_keep_their_depth() -> None:
    """A ramp of 16 bits over 2 degrees: 8 bits would show it as one level."""
    base = np.linspace(30000, 30200, 256)
    ramp = np.repeat(np.round(np.tile(base, (128, 1)))[..., None], 3, -1).astype(np.uint16)
    shown = project(ramp, view(60, 0, 0), 32)
    direct = project(ramp.astype(np.float64), view(60, 0, 0), 32)
    assert torch.allclose(shown * 65535, direct, atol=0.02)
    assert len(shown[0, 0].unique()) > 30
    large = np.repeat(ramp.repeat(8, 0).repeat(8, 1), 1, 2)
    reduced = project(large, view(60, 0, 0), 32)
    assert (reduced * 65535 - shown * 65535).abs().max() < 2


def test_eight_bits_are_the_floats_to_a_level() -> None:
    erp = np.round(SCENE * 255).astype(np.uint8)
    large = erp.repeat(8, 0).repeat(8, 1)
    made = plan(90, 0.5)
    assert torch.allclose(project(erp, made.tiles, 48), project(erp / 255.0, made.tiles, 48), atol=1e-6)
    assert (project(large, made, 48) - project(large / 255.0, made, 48)).abs().max() <= 2 / 255


def test_shapes_and_types_that_are_taken() -> None:
    made = plan(90, 0)
    expected = project(SCENE, made, 16)
    assert expected.shape == (5, 3, 16, 16)
    frozen = SCENE.copy()
    frozen.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for same in (
            frozen,
            SCENE.transpose(2, 0, 1),
            torch.from_numpy(SCENE),
            torch.from_numpy(SCENE).permute(2, 0, 1).contiguous(),
            SCENE[::-1][::-1],
        ):
            assert torch.equal(project(same, made, 16), expected)
    pair = torch.from_numpy(np.stack((SCENE, np.roll(SCENE, 32, 1))))
    both = project(pair, made, 16)
    assert both.shape == (2, 5, 3, 16, 16)
    assert torch.equal(both[0], expected)
    assert torch.equal(both[1], project(pair[1], made, 16))
    half = project(torch.from_numpy(SCENE).bfloat16(), made, 16)
    assert half.dtype == torch.float32
    assert (half - expected).abs().max() < 5e-3
    assert project(SCENE, made, (8, 24)).shape == (5, 3, 8, 24)
    assert torch.equal(project(SCENE, [made.views[2], made.views[0]], 16), expected[[2, 0]])
    for wrong in (SCENE[..., :2], SCENE[..., 0], SCENE[:, :-1], SCENE.astype(np.int32), SCENE[:, :-6], SCENE[:120]):
        with pytest.raises(DataError, match="panorama"):
            project(wrong, made, 16)
    assert project(SCENE[:-2], made, 16).shape == (5, 3, 16, 16)  # 2 % off are a sphere still
    assert torch.equal(project(SCENE, plan(np.float32(90), np.int64(0)), np.int64(16)), expected)  # type: ignore[arg-type]
    told = (100, 70, -60, 10)
    for same in (told, [told], {"fov_h": 100, "fov_v": 70, "yaw": -60, "pitch": 10}, [view(100, -60, 10, 0, 70)]):
        assert torch.equal(project(SCENE, same, (8, 10)), project(SCENE, (*told, 0), (8, 10)))
    for faulty in ({"fov": 90}, {"fov_h": 90, "yaw": 0}, (90, 90), (90, 90, 0, 0, 0, 1)):
        with pytest.raises(ConfigError, match="expected fov_h"):
            project(SCENE, faulty, 16)
    with pytest.raises(ConfigError, match="no view"):
        project(SCENE, [], 16)
    with pytest.raises(ConfigError, match="at least"):
        project(SCENE, made, 0)
    with pytest.raises(ConfigError, match="at least 2"):
        project(SCENE, made, 1, pixel_centres="corner")


def test_global_views() -> None:
    stretched = project(SCENE, plan(90, 0), 32, antialias="off")[0]
    assert torch.equal(stretched, global_picture(SCENE, (32, 32)))
    boxed = project(SCENE, plan(90, 0, global_mode="letterbox"), 32, antialias="off")[0]
    assert torch.equal(boxed[:, 8:24], global_picture(SCENE, (16, 32)))
    assert (boxed[:, :8] == 0).all()
    assert (boxed[:, 24:] == 0).all()
    with pytest.raises(ConfigError, match="middle"):
        project(SCENE, plan(90, 0, global_mode="letterbox"), 30)
    naflex = plan(90, 0, global_mode="naflex")
    with pytest.raises(ConfigError, match="NaFlex"):
        project(SCENE, naflex, 32)
    assert project(SCENE, naflex.tiles, 32).shape == (4, 3, 32, 32)
    assert global_picture(SCENE, (22, 44)).shape == (3, 22, 44)


@pytest.mark.parametrize("width", [250, 256, 1018])
@pytest.mark.parametrize("target", [(32, 64), (49, 49), (24, 48)])
def test_a_reduction_is_closed(width: int, target: tuple[int, int]) -> None:
    """A constant stays it; a turn of the sphere by half a circle, or upside down, commutes with the reduction."""
    erp = torch.from_numpy(noise(width // 2, width)).permute(2, 0, 1)[None].float()
    small = resize_sphere(erp, target)
    assert small.shape == (1, 3, *target)
    assert torch.equal(resize_sphere(torch.full_like(erp, 7), target), torch.full_like(small, 7))
    if target[1] % 2 == 0:
        turned = resize_sphere(erp.roll(width // 2, 3), target)
        assert (turned - small.roll(target[1] // 2, 3)).abs().max() < 1e-3
    assert (resize_sphere(erp.flip(2), target) - small.flip(2)).abs().max() < 1e-3


def test_padding_crosses_seam_and_poles() -> None:
    x = torch.arange(4 * 8.0).reshape(1, 1, 4, 8)
    padded = pad_sphere(x, 2, 1)[0, 0]
    assert padded[1].tolist() == [6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    assert padded[0].tolist() == [2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5]
    assert padded[-1, 2:-2].tolist() == [28, 29, 30, 31, 24, 25, 26, 27]


def test_places_are_computed_once() -> None:
    made = plan(90, 0.5)
    first = sampling_grid(made.tiles, (16, 16), (64, 128), "half")
    assert sampling_grid(plan(90, 0.5).tiles, (16, 16), (64, 128), "half") is first
    assert first.dtype == torch.float32
    assert first.shape == (1, 16, 128, 2)
