"""Made-up panoramas: rooms with four coloured walls, questions about directions, and files of them.

The viewer stands in the middle of a square room. Each wall fills 90 degrees of the horizon: front (the middle of the
picture), right, back (across the seam) and left; ceiling and floor reach to the poles. A disc or a square near the
horizon distracts. Train, val and test never share an arrangement of colours, so an answer about a held-out room can
only be read off the picture. Two walls may have one colour, so an answer without direction, the commonest colour, is
right in 0.46 of the cases. Everything is a function of (seed, split, index). No torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stageline.data.rng import numpy_rng
from stageline.data.tables import csv_text
from stageline.errors import ConfigError

DIRECTIONS = ("front", "right", "back", "left")
"""Walls by longitude 0, 90, 180 and -90 degrees."""
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (205, 45, 45),
    "green": (45, 160, 65),
    "blue": (50, 80, 210),
    "yellow": (225, 200, 50),
    "purple": (145, 60, 175),
    "cyan": (60, 195, 205),
}
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
"""Shares of the 6 ** 4 arrangements of colours."""
SHAPES = ("disc", "square")
SHAPE_COLOUR, CEILING_COLOUR, FLOOR_COLOUR = (245, 245, 245), (215, 215, 210), (95, 85, 75)
WALL_HEIGHT = 0.8
"""Of a wall's upper edge above the eye, in units of the distance to the wall."""
NOISE = 0.03
"""Standard deviation of the pixel noise, in shares of the 8-bit range."""
LARGER_EVERY = 8
"""Every so many pictures one is written at twice the size."""
QUESTION, ANSWER = "What colour is at the {direction}?", "The {direction} is {colour}."
COUNTS = {"train": 16, "val": 4, "test": 4}
JPEG_QUALITY = 92

Walls = tuple[str, str, str, str]


@dataclass(frozen=True)
class Room:
    """One room.

    walls: colours in the order of `DIRECTIONS`.  shape: disc or square.  shape_lon_deg, shape_lat_deg: its middle.
    shape_radius_deg: half of its size.
    """

    split: str
    index: int
    walls: Walls
    shape: str
    shape_lon_deg: float
    shape_lat_deg: float
    shape_radius_deg: float

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:04d}"

    def turned(self, quarters: int) -> Room:
        """The room whose picture is this one's rolled to the right by `quarters` quarters of its width."""
        walls = self.walls[-quarters % 4 :] + self.walls[: -quarters % 4]
        a, b, c, d = walls
        return replace(self, walls=(a, b, c, d), shape_lon_deg=self.shape_lon_deg + 90 * quarters)


@dataclass(frozen=True)
class Question:
    """One row: what is asked about a room, the true answer, and the direction and colour in it."""

    id: str
    room: Room
    direction: str
    colour: str
    query: str
    response: str


def arrangements(split: str, seed: int) -> list[Walls]:
    """The colours that rooms of a split may have, in the order in which they are used."""
    if split not in SHARES:
        raise ConfigError(f"there is no split {split!r}", remedy=f"use one of {', '.join(SHARES)}")
    every = list(itertools.product(COLOURS, repeat=4))
    order = numpy_rng(seed, "arrangements").permutation(len(every))
    start = 0.0
    for name, share in SHARES.items():
        if name == split:
            break
        start += share
    low, high = round(start * len(every)), round((start + share) * len(every))
    return [every[place] for place in order[low:high]]


def make_room(split: str, index: int, seed: int) -> Room:
    """The room of a place in a split; colours repeat only after the whole pool of the split was used."""
    pool, rng = arrangements(split, seed), numpy_rng(seed, split, index, "room")
    wall = int(rng.integers(4))
    return Room(
        split=split,
        index=index,
        walls=pool[index % len(pool)],
        shape=SHAPES[int(rng.integers(2))],
        shape_lon_deg=90.0 * wall + float(rng.uniform(-30, 30)),
        shape_lat_deg=float(rng.uniform(-8, 8)),
        shape_radius_deg=float(rng.uniform(9, 13)),
    )


@lru_cache(maxsize=4)
def _directions(width: int) -> tuple[NDArray[np.float64], ...]:
    """Longitude and latitude in degrees (H, W) of the middles of the pixels, and their X, Y, Z (right, up, forward)."""
    height = width // 2
    lon, lat = np.meshgrid(
        ((np.arange(width) + 0.5) / width - 0.5) * 360, (0.5 - (np.arange(height) + 0.5) / height) * 180
    )
    lon_rad, lat_rad = np.deg2rad(lon), np.deg2rad(lat)
    x, z = np.cos(lat_rad) * np.sin(lon_rad), np.cos(lat_rad) * np.cos(lon_rad)
    return lon, lat, x, np.sin(lat_rad), z


def draw_room(room: Room, width: int = 128, *, seed: int = 0, noise: float = NOISE) -> NDArray[np.uint8]:
    """The panorama (width / 2, width, 3) of a room, uint8 RGB, equirectangular, front in the middle.

    width: a multiple of 4, at least 64.  noise: share of the 8-bit range; a function of (seed, room's place).
    """
    if width < 64 or width % 4:
        raise ConfigError(f"a panorama {width} pixels wide", remedy="use a multiple of 4, at least 64")
    lon, lat, x, y, z = _directions(width)
    across = np.maximum(np.abs(x), np.abs(z))
    wall = np.floor(lon / 90 + 0.5).astype(int) % 4
    pixels = np.array([COLOURS[colour] for colour in room.walls], dtype=np.float64)[wall]
    away = np.abs((lon - room.shape_lon_deg + 180) % 360 - 180)
    up = np.abs(lat - room.shape_lat_deg)
    distance = np.hypot(away, up) if room.shape == "disc" else np.maximum(away, up)
    pixels[distance <= room.shape_radius_deg] = SHAPE_COLOUR
    pixels *= (0.4 + 0.6 * across / np.hypot(x, z))[..., None]  # corners of the room lie in the shade
    pixels[y > WALL_HEIGHT * across] = CEILING_COLOUR
    pixels[y < -WALL_HEIGHT * across] = FLOOR_COLOUR
    if noise:
        pixels += numpy_rng(seed, room.split, room.index, "noise").normal(0, noise * 255, pixels.shape)
    return np.asarray(np.clip(np.rint(pixels), 0, 255), dtype=np.uint8)


def questions_of(room: Room) -> list[Question]:
    """The four questions about a room, in the order of `DIRECTIONS`."""
    return [
        Question(
            id=f"{room.name}-{direction}",
            room=room,
            direction=direction,
            colour=colour,
            query=QUESTION.format(direction=direction),
            response=ANSWER.format(direction=direction, colour=colour),
        )
        for direction, colour in zip(DIRECTIONS, room.walls, strict=True)
    ]


def made_texts() -> list[str]:
    """Every query and response there can be, and the roles of a chat: what a small tokenizer is trained on."""
    answers = [ANSWER.format(direction=d, colour=c) for d in DIRECTIONS for c in COLOURS]
    roles = [f"{role}\n" for role in ("system", "user", "assistant")]
    return [*(f"\n{QUESTION.format(direction=d)}" for d in DIRECTIONS), *answers, *roles]


def write_made(
    folder: Path,
    *,
    counts: Mapping[str, int] = COUNTS,
    seed: int = 0,
    width: int = 128,
    suffix: str = ".jpg",
) -> dict[str, Path]:
    """Write pictures and one CSV per split; returns the CSV files by split.

    folder: gets `<split>.csv` and `pictures/`.
    counts: split -> number of rooms, each with four questions.
    width: of most pictures; every eighth is twice as wide.
    suffix: `.jpg` or `.png`.
    """
    files = {}
    for split, count in counts.items():
        rooms = [make_room(split, index, seed) for index in range(count)]
        for room in rooms:
            larger = room.index % LARGER_EVERY == LARGER_EVERY - 1
            pixels = draw_room(room, 2 * width if larger else width, seed=seed)
            _save(folder / "pictures" / f"{room.name}{suffix}", pixels)
        rows = [question for room in rooms for question in questions_of(room)]
        files[split] = folder / f"{split}.csv"
        _write_csv(files[split], [(row, f"pictures/{row.room.name}{suffix}") for row in rows])
    return files


def write_broken(folder: Path, *, seed: int = 0) -> Path:
    """Write `broken.csv`: rows whose picture is whole, truncated, missing, square and of zero bytes, in this order.

    Row ids and picture files carry these words: `whole`, `truncated`, `missing`, `square`, `empty`.
    """
    pictures, rows = folder / "pictures", []
    for index, word in enumerate(("whole", "truncated", "missing", "square", "empty")):
        question = questions_of(make_room("test", index, seed))[index % 4]
        pixels = draw_room(question.room, seed=seed)
        name = f"broken-{word}.jpg"
        rows.append((replace(question, id=word), f"pictures/{name}"))
        if word == "missing":
            continue
        _save(pictures / name, pixels[:, : pixels.shape[0]] if word == "square" else pixels)
        data = (pictures / name).read_bytes()
        if word in ("truncated", "empty"):
            (pictures / name).write_bytes(data[: len(data) // 2] if word == "truncated" else b"")
    _write_csv(folder / "broken.csv", rows)
    return folder / "broken.csv"


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg":
        Image.fromarray(pixels).save(path, quality=JPEG_QUALITY, subsampling=0)
    else:
        Image.fromarray(pixels).save(path)


def _write_csv(path: Path, rows: Sequence[tuple[Question, str]]) -> None:
    lines = (
        {"id": row.id, "image": image, "question": row.query, "response": row.response, "direction": row.direction}
        for row, image in rows
    )
    path.write_text(csv_text(("id", "image", "question", "response", "direction"), lines), encoding="utf-8", newline="")
