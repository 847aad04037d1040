"""The first hour with one's own pictures, by the commands that a person would type, each looked at when it is done.

Run: `python scripts/first_hour.py FOLDER`, a minute and a half on two cores; with `--whole` the network has the size
and the steps that `init` proposes. It makes thirty pictures of branching vessels, of odd sizes and in five formats,
as if they were yours: uneven light, noise, blobs that are no vessel. A config is made for them, two runs are trained
that differ in one setting, compared, and one of them predicts. What it prints last are its figures. It ends with code
1 and a line for everything that is not as it should be.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

PATIENTS, SIDES = 15, ("left", "right")
FORMATS = ("png", "png16", "tif", "jpg", "bmp")
SMALLER = ("trainer.max_steps=120", "model.model_channels=8", "trainer.batch_size=4", "trainer.accelerator=cpu")
"""What makes the proposed config one of a minute."""
SHORTER = "trainer.max_steps=20"
"""In what the second run differs."""


def draw_vessels(rng: np.random.Generator, height: int, width: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """(picture in [0, 1], where its vessels are), both (height, width): dark branches on uneven ground."""
    vessels = np.zeros((height, width), dtype=bool)
    rows, columns = np.mgrid[:height, :width]
    heads = [(rng.uniform(0.2, 0.8) * height, 0.0, rng.uniform(-0.4, 0.4), 3.2) for _ in range(2)]
    while heads:
        y, x, angle, radius = heads.pop()
        for _ in range(400):
            vessels |= (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
            angle += rng.normal(0, 0.09)
            y, x = y + np.sin(angle), x + np.cos(angle)
            if not (0 <= y < height and 0 <= x < width):
                break
            if radius > 1.2 and rng.random() < 0.02:
                radius *= 0.78
                heads.append((y, x, angle + rng.choice((-0.7, 0.7)), radius))
    light = ndimage.gaussian_filter(rng.normal(0, 1, (height, width)), 22, mode="reflect")
    ground = 0.6 + 0.16 * light / np.abs(light).max()
    blobs = ndimage.gaussian_filter((rng.random((height, width)) < 0.0012).astype(float), 3.0)
    depth = rng.uniform(0.12, 0.2)
    soft = ndimage.gaussian_filter(vessels.astype(float), 0.8)
    noise = rng.normal(0, 0.035, (height, width))
    return (ground - depth * soft - 4 * depth * blobs + noise).clip(0, 1), vessels


def write_pictures(folder: Path) -> list[Path]:
    """`image/` and `label/` with a picture for both sides of every patient; returns the pictures."""
    written = []
    for number in range(PATIENTS * len(SIDES)):
        rng = np.random.default_rng(number)
        height, width = (int(side) for side in rng.integers(83, 131, 2))
        kind, name = FORMATS[number % len(FORMATS)], f"p{number // 2:02d}_{SIDES[number % 2]}"
        grey, vessels = draw_vessels(rng, height, width)
        if kind == "png16":
            picture = Image.fromarray((grey * 65535).astype(np.uint16))
        else:
            picture = Image.fromarray((grey * 255).astype(np.uint8))
        path = folder / "image" / f"{name}.{kind.removesuffix('16')}"
        label = folder / "label" / f"{name}.{'gif' if number % 4 == 0 else 'png'}"
        for place in (path, label):
            place.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        Image.fromarray(vessels.astype(np.uint8) * 255).save(label)
        written.append(path)
    return written


class Hour:
    """The commands of one folder and what was found wrong with them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.missed = folder, list[str]()

    def stageline(self, *words: str) -> str:
        """Run one command as it is shown; returns all it printed."""
        print(f"\n$ stageline {shlex.join(words)}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "stageline", *words],
            cwd=self.folder,
            env={**os.environ, "COLUMNS": "140"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(done.stdout, flush=True)
        self.expect(done.returncode == 0, f"`stageline {words[0]}` ended with code {done.returncode}")
        return done.stdout

    def expect(self, is_so: object, what: str) -> None:
        """Note what is not as it should be."""
        if not is_so:
            self.missed.append(what)
            print(f"NOT SO: {what}", flush=True)

    def says(self, text: str, *patterns: str) -> None:
        """Expect every regular expression somewhere in a text."""
        for pattern in patterns:
            self.expect(re.search(pattern, text), f"nothing printed matches {pattern!r}")


def first_hour(hour: Hour, own: tuple[str, ...]) -> None:
    """All of it, in a folder that holds nothing yet. own: settings of both runs."""
    pictures = write_pictures(hour.folder / "pictures")
    formats = len({path.suffix for path in pictures})
    before = sorted(str(path) for path in (hour.folder / "pictures").rglob("*"))
    said = hour.stageline("init", "--data", "pictures", "--output", "mine.yaml")
    hour.says(said, r"30 pictures", r"16 bit", r"mine\.yaml")
    hour.expect(formats == 4, "PNG of 8 and 16 bit, TIFF, JPEG and BMP are four suffixes")
    after = sorted(str(path) for path in (hour.folder / "pictures").rglob("*"))
    hour.expect(before == after, "init writes nothing into the folder")
    said = hour.stageline("plan", "-c", "mine.yaml", *own)
    hour.says(said, r"backbone +run +\d+")
    if own:
        hour.says(said, r"backbone +run +120 +~\d", r"expected with ~: from rates measured")
    hour.expect(not (hour.folder / "runs").exists(), "a plan writes nothing")

    begin = time.monotonic()
    said = hour.stageline("run", "-c", "mine.yaml", *own)
    seconds = time.monotonic() - begin
    hour.says(said, r"metric +value +95 % interval +Otsu threshold +ridge filter", r"report: .*report\.html")
    found = re.search(r"\ndice +(0\.\d{3}) +0\.\d{3} to 0\.\d{3} +(0\.\d{3})", said)
    hour.expect(found and float(found[1]) > max(0.7, float(found[2])), "Dice is above 0.7 and above Otsu's")
    page = hour.folder / "runs/mine/report.html"
    hour.expect(page.is_file() and "Gain over trivial methods" in page.read_text("utf-8"), "the report has a baseline")
    table = said[said.rfind("\nmetric") : said.rfind("\nmeasured against")]

    said = hour.stageline("run", "-c", "mine.yaml", "run=shorter", *own, SHORTER)
    hour.says(said, r"prepare_data: reused", r"report: .*shorter/report\.html")
    hour.says(hour.stageline("runs", "list"), r"mine +finished", r"shorter +finished", r"max_steps")
    said = hour.stageline("compare", "runs/mine", "runs/shorter")
    hour.says(said, r"dice.* 6 +A is better", r"95% interval")
    chosen = [path.relative_to(hour.folder) for path in pictures[:5]]
    hour.stageline("predict", *map(str, chosen), "--checkpoint", "runs/mine/backbone", "--output", "predictions")
    for path in chosen:
        mask = hour.folder / "predictions" / f"{path.stem}-mask.png"
        hour.expect(mask.is_file(), f"{mask.name} is written")
        if mask.is_file():
            same = Image.open(mask).size == Image.open(hour.folder / path).size
            hour.expect(same, f"{mask.name} has the size of its picture")
    print(f"{table}\nthirty pictures in five formats; the first run took {seconds:.0f} s")


def main() -> int:
    """Returns 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new one; everything is written there")
    parser.add_argument("--whole", action="store_true", help="train what `init` proposes, on whatever there is")
    arguments = parser.parse_args()
    if arguments.folder.exists() and any(arguments.folder.iterdir()):
        print(f"{str(arguments.folder)!r} is not empty\n  -> name a new folder", file=sys.stderr)
        return 2
    arguments.folder.mkdir(parents=True, exist_ok=True)
    hour = Hour(arguments.folder.resolve())
    first_hour(hour, () if arguments.whole else (*SMALLER, "trainer.validate_every_steps=0"))
    for what in hour.missed:
        print(f"not as it should be: {what}", file=sys.stderr)
    return 1 if hour.missed else 0


if __name__ == "__main__":
    sys.exit(main())
