"""Panorama files: what is refused, at which cost, and what a file shows once it is reduced."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from stageline.errors import DataError
from stageline.families.panorama_vlm.data.panorama import PanoramaError, check_panorama, read_reduced
from stageline.families.panorama_vlm.geometry import directions, plan, project
from stageline.families.panorama_vlm.geometry.tokens import seen_tokens

PLAN = plan(90, 0.5)
Array = NDArray[Any]


def smooth(height: int, width: int) -> Array:
    """(height, width, 3) float64 in [0, 1], closed at the seam and over the poles."""
    lam = ((np.arange(width) + 0.5) / width - 0.5) * 2 * np.pi
    phi = (0.5 - (np.arange(height) + 0.5) / height) * np.pi
    lam, phi = np.meshgrid(lam, phi)
    x, y, z = np.cos(phi) * np.sin(lam), np.sin(phi), np.cos(phi) * np.cos(lam)
    return np.stack((0.5 + 0.3 * x + 0.1 * y * z, 0.5 + 0.3 * y, 0.5 + 0.3 * z - 0.1 * x * y), -1)


def eight(picture: Array) -> NDArray[np.uint8]:
    return np.rint(picture * 255).astype(np.uint8)


def save(path: Path, pixels: Array, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: Array | None, width: int, height: int, *, colour: int, bits: int = 16) -> bytes:
    """A PNG written by hand; without pixels a header that promises them. colour: 0 grey, 2 RGB, 4 and 6 with alpha."""
    rows = b"" if pixels is None else b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def read(path: Path, size: int = 32, **options: Any) -> Any:
    return read_reduced(path, plan=PLAN, size=size, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("whole") / "whole.jpg", eight(smooth(256, 512)), quality=95)


def test_broken_files_have_a_class(tmp_path: Path, whole: Path) -> None:
    """Check 16: each kind of broken file, by class; what is whole has none."""
    good = whole.read_bytes()
    files = {
        "missing": None,
        "empty": b"",
        "not_an_image": b"<html>404</html>",
        "truncated": good[: len(good) // 2],
        "too_small": png(np.zeros((30, 60, 3)), 60, 30, colour=2),
        "too_large": png(None, 40_000, 20_000, colour=2, bits=8),
        "not_equirectangular": png(np.zeros((64, 64, 3)), 64, 64, colour=2),
    }
    for kind, data in files.items():
        path = tmp_path / f"{kind}.jpg"
        if data is not None:
            path.write_bytes(data)
        fault = check_panorama(path)
        assert fault is not None, kind
        assert fault.kind == kind, fault
        with pytest.raises(PanoramaError, match=f"{kind}.jpg.*{kind}: ") as caught:
            read(path)
        assert isinstance(caught.value, DataError)
        assert caught.value.fault == fault
    assert check_panorama(whole) is None
    assert check_panorama(tmp_path).kind == "missing"  # type: ignore[union-attr]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_every_cut_and_every_flipped_header_is_a_fault_or_readable(tmp_path: Path, suffix: str) -> None:
    """No hostile file gets through with another exception than the documented one."""
    good = save(tmp_path / f"good.{suffix}", eight(smooth(32, 64))).read_bytes()
    path = tmp_path / f"bad.{suffix}"
    for length in range(0, len(good) - len(good) // 8, max(1, len(good) // 24)):
        path.write_bytes(good[:length])
        fault = check_panorama(path)
        assert fault is not None
        assert fault.kind in ("empty", "truncated", "not_an_image")
    rng = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(good)
        for place in rng.integers(0, min(len(good), 200), 3):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(bytes(broken))
        check_panorama(path)


def test_a_huge_picture_is_refused_without_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(None, 60_000, 30_000, colour=2, bits=8))
    tracemalloc.start()
    fault = check_panorama(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fault is not None
    assert fault.kind == "too_large"
    assert "60000 x 30000" in fault.message
    assert peak < 5e6
    # Larger than the imaging library's own limit for the process and within ours: judged by its pixels.
    path.write_bytes(png(None, 20_000, 10_000, colour=2, bits=8))
    assert check_panorama(path, verify="header", max_pixels=2 * 10**8) is None
    assert check_panorama(path, verify="header", max_pixels=10**6).kind == "too_large"  # type: ignore[union-attr]


def test_a_sphere_of_a_part_is_not_laid_out_larger_than_allowed(tmp_path: Path) -> None:
    path = save(tmp_path / "part.png", eight(smooth(64, 128)))
    with pytest.raises(PanoramaError, match="too_large"):
        read(path, antialias="off", erp_hfov_deg=0.5, erp_vfov_deg=0.5)
    assert read(path, erp_hfov_deg=0.05, erp_vfov_deg=0.05).seen.sum() >= 1


@pytest.mark.parametrize(
    ("height", "width", "fits"),
    [(100, 200, True), (100, 203, True), (100, 205, False), (100, 195, False), (98, 200, False)],
)
def test_aspect_within_two_percent(tmp_path: Path, height: int, width: int, fits: bool) -> None:
    fault = check_panorama(save(tmp_path / "a.png", eight(smooth(height, width))))
    assert (fault is None) == fits
    declared = check_panorama(tmp_path / "a.png", erp_hfov_deg=360, erp_vfov_deg=170)
    assert declared is None


@pytest.mark.parametrize("declared", [(360, None), (None, 90), (400, 90), (90, 181), (0, 90), (float("nan"), 90)])
def test_a_field_of_view_is_declared_whole_and_legal(whole: Path, declared: Any) -> None:
    fault = check_panorama(whole, erp_hfov_deg=declared[0], erp_vfov_deg=declared[1])
    assert fault is not None
    assert fault.kind == "not_equirectangular"


def test_small_files_come_as_they_are(tmp_path: Path) -> None:
    pixels = eight(smooth(64, 128))
    for suffix in ("png", "webp"):
        path = save(tmp_path / f"a.{suffix}", pixels, **({"lossless": True} if suffix == "webp" else {}))
        found = read(path)
        assert np.array_equal(found.pixels, pixels)
        assert (found.seen, found.source_size, found.is_enlarged) == (None, (64, 128), False)
        assert found.pixels.flags.c_contiguous
    assert read(tmp_path / "a.png", size=64).is_enlarged


@pytest.mark.parametrize("size", [(512, 1024), (500, 1000), (300, 606), (301, 601)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_reduced_file_shows_the_same(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    """At the reduced size, seam and poles included; the JPEG's own error is below three levels."""
    path = save(tmp_path / f"a.{suffix}", eight(smooth(*size)), **({"quality": 100} if suffix == "jpg" else {}))
    found = read(path)
    assert found.pixels.shape == (96, 192, 3)
    assert found.pixels.dtype == np.uint8
    error = np.abs(found.pixels.astype(int) - eight(smooth(96, 192)))
    assert error.max() <= (3 if suffix == "jpg" else 1)


def test_a_file_is_reduced_like_an_array(tmp_path: Path) -> None:
    """The same filter as `project` uses on noise: its views differ by levels, not by content."""
    noise = np.random.default_rng(0).integers(0, 256, (512, 1024, 3), dtype=np.uint8)
    path = save(tmp_path / "a.png", noise)
    for antialias in ("auto", "fast", "best", "off"):
        stored = read(path, antialias=antialias).pixels
        direct, from_file = (project(erp, PLAN, 32, antialias=antialias) for erp in (noise, stored))  # type: ignore[arg-type]
        assert (direct[1:] - from_file[1:]).abs().max() <= 1.5 / 255


def test_a_rolled_file_is_a_rolled_reduction(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (512, 1024, 3), dtype=np.uint8)
    still = read(save(tmp_path / "a.png", noise)).pixels
    rolled = read(save(tmp_path / "b.png", np.roll(noise, 512, 1))).pixels
    assert np.array_equal(np.roll(still, 96, 1), rolled)
    upside_down = read(save(tmp_path / "c.png", noise[::-1])).pixels
    assert np.abs(upside_down[::-1].astype(int) - still).max() <= 1


def test_a_jpeg_is_decoded_no_larger_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.jpg", eight(smooth(1024, 2048)), quality=90)
    decoded = []
    load = Image.Image.load

    def noting(self: Image.Image) -> Any:
        decoded.append(self.size)
        return load(self)

    monkeypatch.setattr("PIL.Image.Image.load", noting)
    read(path)
    assert decoded[0] == (256, 128)
    decoded.clear()
    read(path, size=256)
    assert decoded[0] == (2048, 1024)
    decoded.clear()
    assert check_panorama(path) is None
    assert decoded[0] == (256, 128)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    """The file is stored so that its EXIF turns it back: what is read is what was meant."""
    meant = eight(smooth(64, 128))
    back = {
        1: meant,
        2: meant[:, ::-1],
        3: meant[::-1, ::-1],
        4: meant[::-1],
        5: meant.swapaxes(0, 1),
        6: np.rot90(meant, 1),
        7: np.rot90(meant, 2).swapaxes(0, 1),
        8: np.rot90(meant, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    path = save(tmp_path / f"a.{suffix}", np.ascontiguousarray(back), exif=exif, **options)
    found = read(path)
    assert found.source_size == (64, 128)
    assert np.abs(found.pixels.astype(int) - meant).max() <= (6 if suffix == "jpg" else 0)


@pytest.mark.parametrize("kind", ["orientation-0", "broken-exif", "cut-exif", "mpo"])
def test_odd_metadata_beside_good_pixels_is_passed_over(tmp_path: Path, kind: str) -> None:
    picture, exif = Image.fromarray(eight(smooth(64, 128))), Image.Exif()
    exif[0x0112] = 0
    options: dict[str, Any] = {
        "orientation-0": {"format": "JPEG", "exif": exif},
        "broken-exif": {"format": "JPEG", "exif": b"Exif\0\0rubbish that is no directory"},
        "cut-exif": {"format": "JPEG", "exif": b"Exif\0\0II*\0" + struct.pack("<I", 10**6)},
        "mpo": {"format": "MPO", "save_all": True, "append_images": [picture.resize((64, 32))]},
    }[kind]
    picture.save(tmp_path / "odd.jpg", quality=95, **options)
    picture.save(tmp_path / "plain.jpg", quality=95)
    np.testing.assert_array_equal(read(tmp_path / "odd.jpg").pixels, read(tmp_path / "plain.jpg").pixels)


def test_an_orientation_behind_the_pixels_is_refused(tmp_path: Path) -> None:
    plain = png(np.zeros((64, 128, 3)), 128, 64, colour=2)
    exif = Image.Exif()
    exif[0x0112] = 3
    late = plain[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + plain[-12:]
    path = tmp_path / "late.png"
    path.write_bytes(late)
    assert "behind its pixels" in check_panorama(path).message  # type: ignore[union-attr]


def test_sixteen_bits_are_read_at_full_depth(tmp_path: Path) -> None:
    deep = np.rint(smooth(64, 128) * 65535).astype(np.uint16)
    path = tmp_path / "deep.png"
    path.write_bytes(png(deep, 128, 64, colour=2))
    found = read(path)
    assert found.pixels.dtype == np.uint16
    assert np.array_equal(found.pixels, deep)
    opaque = np.dstack((deep, np.full((64, 128), 65535, np.uint16)))
    path.write_bytes(png(opaque, 128, 64, colour=6))
    assert np.array_equal(read(path).pixels, deep)
    path.write_bytes(png(deep[..., :1], 128, 64, colour=0))
    assert np.array_equal(read(path).pixels, deep[..., :1].repeat(3, 2))
    # Reduced: still 16 bits, and closer to the scene than 8 bits could be.
    large = np.rint(smooth(300, 600) * 65535).astype(np.uint16)
    path.write_bytes(png(large, 600, 300, colour=2))
    error = np.abs(read(path).pixels.astype(int) - smooth(96, 192) * 65535)
    assert error.mean() < 20
    for pixels, colour in ((deep[..., :2], 4), (np.dstack((deep, deep[..., :1])), 6)):
        path.write_bytes(png(pixels, 128, 64, colour=colour))
        assert check_panorama(path).kind == "not_an_image"  # type: ignore[union-attr]


def test_other_kinds_of_colour(tmp_path: Path) -> None:
    pixels = eight(smooth(64, 128))
    picture = Image.fromarray(pixels)
    grey = picture.convert("L")
    grey.save(tmp_path / "grey.png")
    assert np.array_equal(read(tmp_path / "grey.png").pixels, np.asarray(grey)[..., None].repeat(3, 2))
    picture.convert("P").save(tmp_path / "palette.png")
    assert np.array_equal(read(tmp_path / "palette.png").pixels, np.asarray(picture.convert("P").convert("RGB")))
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(read(tmp_path / "cmyk.jpg").pixels.astype(int) - pixels).mean() < 3
    opaque = picture.convert("RGBA")
    opaque.save(tmp_path / "opaque.png")
    assert np.array_equal(read(tmp_path / "opaque.png").pixels, pixels)
    opaque.putpixel((3, 3), (0, 0, 0, 0))
    opaque.save(tmp_path / "holes.png")
    assert "transparent" in check_panorama(tmp_path / "holes.png").message  # type: ignore[union-attr]
    picture.save(tmp_path / "moving.webp", save_all=True, append_images=[grey.convert("RGB")])
    assert "2 pictures" in check_panorama(tmp_path / "moving.webp").message  # type: ignore[union-attr]
    buffer = io.BytesIO()
    picture.save(buffer, "TIFF")
    (tmp_path / "tiff.png").write_bytes(buffer.getvalue())
    assert check_panorama(tmp_path / "tiff.png").kind == "not_an_image"  # type: ignore[union-attr]


def inside(dirs: torch.Tensor, hfov: float, vfov: float) -> torch.Tensor:
    """Which directions (..., 3) lie within half a width and half a height of the front, by their angles."""
    lam = torch.atan2(dirs[..., 0], dirs[..., 2]).rad2deg()
    phi = torch.asin(dirs[..., 1].clamp(-1, 1)).rad2deg()
    return (lam.abs() <= hfov / 2 + 1e-9) & (phi.abs() <= vfov / 2 + 1e-9) & (dirs.square().sum(-1) > 0.5)


@pytest.mark.parametrize(("hfov", "vfov"), [(180, 90), (360, 100), (200, 180), (123.4, 61.7)])
def test_a_partial_panorama_lies_in_the_middle_of_a_sphere(tmp_path: Path, hfov: float, vfov: float) -> None:
    """Cut out of a whole one: where it is seen it shows the scene, elsewhere its mean; tokens outside are flagged."""
    lam = ((np.arange(800) + 0.5) / 800 - 0.5) * np.radians(hfov)
    phi = (0.5 - (np.arange(400) + 0.5) / 400) * np.radians(vfov)
    lam, phi = np.meshgrid(lam, phi)
    x, y, z = np.cos(phi) * np.sin(lam), np.sin(phi), np.cos(phi) * np.cos(lam)
    part = np.stack((0.5 + 0.3 * x + 0.1 * y * z, 0.5 + 0.3 * y, 0.5 + 0.3 * z - 0.1 * x * y), -1)
    found = read(save(tmp_path / "part.png", eight(part)), erp_hfov_deg=hfov, erp_vfov_deg=vfov)
    assert found.pixels.shape == (96, 192, 3)
    assert found.seen.shape == (96, 192)
    error = np.abs(found.pixels.astype(int) - eight(smooth(96, 192)))[found.seen]
    assert error.max() <= 1
    rest = found.pixels[~found.seen]
    assert (rest == rest[0]).all()
    assert np.abs(rest[0] - eight(part).reshape(-1, 3).mean(0)).max() < 2
    dirs = directions(PLAN, 4).dirs
    flagged = seen_tokens(torch.from_numpy(found.seen), dirs)
    assert torch.equal(flagged & ~inside(dirs, hfov, vfov), torch.zeros_like(flagged))
    lost = inside(dirs, hfov, vfov) & ~flagged
    assert not (lost & inside(dirs, hfov - 4, vfov - 4)).any()
    black = read(tmp_path / "part.png", erp_hfov_deg=hfov, erp_vfov_deg=vfov, fill=(0, 0, 0)).pixels
    assert (black[~found.seen] == 0).all()


def test_a_declared_whole_sphere_may_have_any_aspect(tmp_path: Path) -> None:
    path = save(tmp_path / "square.png", eight(smooth(512, 512)))
    assert check_panorama(path) is not None
    found = read(path, erp_hfov_deg=360, erp_vfov_deg=180)
    assert found.seen is None
    assert np.abs(found.pixels.astype(int) - eight(smooth(96, 192))).max() <= 1


def test_files_are_read_without_torch() -> None:
    code = "import sys; import stageline.families.panorama_vlm.data.panorama; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
