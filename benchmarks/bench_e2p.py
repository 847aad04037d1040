"""Views of a panorama: ours beside py360convert, without OpenCV and, where it is importable, with it; what antialiasing
gains; what decoding a file costs.

Run: `python benchmarks/bench_e2p.py --rounds 5`. One thread. py360convert samples directly, so its rows compare with
`off`; the others reduce the panorama first. OpenCV samples in fixed point, 1/32 of a pixel.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import print_table, side_by_side
from numpy.typing import NDArray
from PIL import Image
from py360convert import utils
from torch.nn import functional

from stageline.families.panorama_vlm.data.panorama import read_reduced
from stageline.families.panorama_vlm.geometry import plan, project
from stageline.families.panorama_vlm.geometry.resolution import Antialias
from stageline.families.panorama_vlm.geometry.views import view

Pixels = NDArray[np.uint8]
SETTINGS: tuple[Antialias, ...] = ("auto", "fast", "best", "off")
TILES = plan(90, 0.5).tiles


def py360(erp: Pixels, size: int) -> Callable[[], object]:
    """All tiles by py360convert's samplers, which its `e2p` keeps between calls as we keep places."""
    height, width = erp.shape[:2]
    utils.EquirecSampler.from_perspective.cache_clear()
    fov = float(np.pi / 2)
    samplers = [
        utils.EquirecSampler.from_perspective(
            fov, fov, -float(np.radians(tile.yaw_deg)), 0.0, 0.0, height, width, size, size, 1
        )
        for tile in TILES
    ]
    return lambda: [np.stack([sampler(erp[..., c]) for c in range(3)], -1) for sampler in samplers]


def without_opencv(erp: Pixels, size: int) -> Callable[[], object]:
    found, utils.cv2 = utils.cv2, None
    try:
        return py360(erp, size)
    finally:
        utils.cv2 = found


def time_views(erp: Pixels, size: int, rounds: int) -> None:
    """Seconds per panorama, from uint8 pixels to the tiles."""
    contestants: dict[str, Callable[[], object]] = {"py360convert": without_opencv(erp, size)}
    if utils.cv2 is not None:
        utils.cv2.setNumThreads(1)
        contestants["py360convert with OpenCV"] = py360(erp, size)
    for setting in SETTINGS:
        contestants[f"ours, {setting}"] = lambda s=setting: project(erp, TILES, size, antialias=s)  # type: ignore[misc]
    note = "" if utils.cv2 is not None else "OpenCV is not installed"
    title = f"{erp.shape[1]} x {erp.shape[0]} uint8 -> {len(TILES)} tiles of {size} x {size}"
    print_table(title, side_by_side(contestants, rounds), reference="py360convert", note=note)


def textures(width: int) -> dict[str, Pixels]:
    rng = np.random.default_rng(0)
    white = rng.integers(0, 256, (width // 2, width, 3), dtype=np.uint8)
    fy, fx = np.fft.fftfreq(width // 2)[:, None], np.fft.rfftfreq(width)[None]
    spectrum = np.fft.rfft2(rng.normal(size=(width // 2, width))) / np.maximum(np.hypot(fy, fx), 1 / width)
    pink = np.fft.irfft2(spectrum, (width // 2, width))
    grey = np.clip(127.5 + 50 * pink / pink.std(), 0, 255).astype(np.uint8)
    return {"white noise": white, "1/f texture": grey[..., None].repeat(3, -1)}


def show_quality(width: int, size: int) -> None:
    """Root mean square error to an area-averaged truth (8 x 8 samples per pixel) and contrast kept."""
    tile: Any = view(90, 20, 0)
    for name, erp in textures(width).items():
        truth = functional.avg_pool2d(project(erp, tile, 8 * size, antialias="off"), 8)
        shown = {setting: project(erp, tile, size, antialias=setting) for setting in SETTINGS}
        error = {setting: float((picture - truth).square().mean().sqrt()) for setting, picture in shown.items()}
        print(f"\n{name}, {width} x {width // 2} -> {size} x {size}: error against direct sampling, contrast kept")
        for setting, picture in shown.items():
            kept = float(picture.std() / truth.std())
            print(f"  {setting:<5} {error[setting] / error['off']:6.2f} {kept:6.2f}")


def time_files(width: int, size: int, rounds: int) -> None:
    """Seconds per JPEG file, from the file to the reduced panorama."""
    pixels = textures(width)["1/f texture"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "panorama.jpg")
        Image.fromarray(pixels).save(path, quality=90)

        def decode_all() -> object:
            with Image.open(path) as opened:
                return np.asarray(opened)

        def decode_and_resize() -> object:
            with Image.open(path) as opened:
                return np.asarray(opened.resize((1024, 512), Image.Resampling.LANCZOS))

        contestants: dict[str, Callable[[], object]] = {
            "decoded in full": decode_all,
            "decoded in full, then Lanczos to 1024 x 512": decode_and_resize,
            f"reduced for {size} x {size} tiles": lambda: read_reduced(path, plan=plan(90, 0.5), size=size),
        }
        title = f"{width} x {width // 2} JPEG"
        print_table(title, side_by_side(contestants, rounds), reference="decoded in full")


def main() -> None:
    parser = argparse.ArgumentParser(description="views of a panorama beside py360convert")
    parser.add_argument("--width", type=int, default=2048, help="of the panorama that is timed")
    parser.add_argument("--large", type=int, default=4096, help="of the panorama for quality and files")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    time_views(textures(arguments.width)["white noise"], arguments.size, arguments.rounds)
    show_quality(arguments.large, arguments.size)
    time_files(arguments.large, arguments.size, arguments.rounds)


if __name__ == "__main__":
    main()
