"""Made-up panoramas: what is drawn is what is asked, and held-out rooms are new."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.data.made import (
    CEILING_COLOUR,
    COLOURS,
    COUNTS,
    DIRECTIONS,
    FLOOR_COLOUR,
    SHAPE_COLOUR,
    arrangements,
    draw_room,
    made_texts,
    make_room,
    questions_of,
    write_broken,
    write_made,
)
from stageline.families.panorama_vlm.data.rows import check_quarantine, read_rows


def test_splits_share_no_arrangement_of_colours() -> None:
    pools = [arrangements(split, 3) for split in ("train", "val", "test")]
    assert sum(map(len, pools)) == len(set().union(*pools)) == len(COLOURS) ** 4
    assert [len(pool) for pool in pools] == [1037, 129, 130]
    assert arrangements("test", 4) != pools[2]
    with pytest.raises(ConfigError, match="'dev'"):
        arrangements("dev", 0)


def test_a_room_is_a_function_of_its_place() -> None:
    room = make_room("train", 5, seed=1)
    assert room == make_room("train", 5, seed=1)
    assert len({make_room("train", index, 1).walls for index in range(1037)}) == 1037
    assert make_room("train", 1037 + 5, 1).walls == room.walls
    assert np.array_equal(draw_room(room, seed=1), draw_room(room, seed=1))
    assert not np.array_equal(draw_room(room, seed=1), draw_room(room, seed=2))


@pytest.mark.parametrize("width", [64, 128, 256])
def test_walls_seam_poles_and_shape_lie_where_they_are_said_to(width: int) -> None:
    for index in range(8):
        room = make_room("test", index, seed=0)
        pixels = draw_room(room, width, noise=0).astype(int)
        height = width // 2
        assert pixels.shape == (height, width, 3)
        assert (pixels[0] == CEILING_COLOUR).all()
        assert (pixels[-1] == FLOOR_COLOUR).all()
        row = pixels[height * 3 // 8]  # 22 degrees up: above the shape, below the ceiling
        for direction, question in zip((0, 90, 180, -90), questions_of(room), strict=True):
            column = int((direction / 360 + 0.5) * width) % width
            for place in (column - 1, column):
                assert np.abs(row[place] - COLOURS[question.colour]).max() <= 3
        column = int((room.shape_lon_deg / 360 + 0.5) * width) % width
        shade = pixels[int((0.5 - room.shape_lat_deg / 180) * height), column] / np.array(SHAPE_COLOUR)
        assert np.ptp(shade) < 0.01
        assert shade.min() > 0.8


def test_a_turned_room_is_the_rolled_picture() -> None:
    """Rolled to the right by a quarter: what was in front is at the right."""
    room = make_room("test", 0, seed=0)
    for quarters in (-1, 0, 1, 2, 5):
        rolled = np.roll(draw_room(room, noise=0), quarters * 32, axis=1)
        assert np.array_equal(draw_room(room.turned(quarters), noise=0), rolled)
    assert room.turned(1).walls[DIRECTIONS.index("right")] == room.walls[DIRECTIONS.index("front")]


def test_questions_say_what_is_there() -> None:
    room = make_room("val", 2, seed=0)
    asked = questions_of(room)
    assert [question.query for question in asked] == [f"What colour is at the {d}?" for d in DIRECTIONS]
    assert [q.response for q in asked] == [f"The {d} is {c}." for d, c in zip(DIRECTIONS, room.walls, strict=True)]
    texts = made_texts()
    assert all(question.response in texts and f"\n{question.query}" in texts for question in asked)


def test_naming_a_colour_that_is_there_is_no_sense_of_direction() -> None:
    """The best answer without direction, the commonest wall, is right in less than half of the cases."""
    pool = arrangements("test", 0)
    assert 0.44 < np.mean([max(map(walls.count, walls)) / 4 for walls in pool]) < 0.48


def test_files_are_rows_again(tmp_path: Path) -> None:
    files = write_made(tmp_path / "a", seed=7)
    write_made(tmp_path / "b", seed=7)
    digests = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        every = sorted(path for path in folder.rglob("*") if path.is_file())
        assert sum(path.stat().st_size for path in every) < 1_000_000
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in every])
    assert digests[0] == digests[1]
    sizes: set[tuple[int, int]] = set()
    for split, count in COUNTS.items():
        table = read_rows([files[split]], lambda *_: None)
        assert len(table.rows) == 4 * count
        for number, row in enumerate(table.rows):
            question = questions_of(make_room(split, number // 4, 7))[number % 4]
            assert (row.id, row.query, row.response) == (question.id, question.query, question.response)
            with Image.open(row.path) as picture:
                sizes.add(picture.size)
                pixels = np.asarray(picture).astype(int)
            drawn = draw_room(question.room, pixels.shape[1], seed=7).astype(int)
            assert np.abs(pixels - drawn).mean() < 6
    assert sizes == {(128, 64), (256, 128)}


def test_png_files_are_exact(tmp_path: Path) -> None:
    write_made(tmp_path, counts={"val": 1}, suffix=".png")
    with Image.open(tmp_path / "pictures/val-0000.png") as picture:
        assert np.array_equal(np.asarray(picture), draw_room(make_room("val", 0, 0)))


def test_broken_pictures_are_broken_in_the_way_they_say(tmp_path: Path) -> None:
    """Check 16: rows of a whole, a truncated, a missing, a square and an empty picture, each with its own text."""
    table = read_rows([write_broken(tmp_path)], lambda *_: None)
    check_quarantine(table, "error", 0)
    by_id = {row.id: row for row in table.rows}
    assert list(by_id) == ["whole", "truncated", "missing", "square", "empty"]
    assert len({row.response for row in table.rows}) == 5
    with Image.open(by_id["whole"].path) as picture:
        picture.load()
    with Image.open(by_id["truncated"].path) as picture, pytest.raises(OSError, match="truncated"):
        picture.load()
    assert not by_id["missing"].path.exists()
    with Image.open(by_id["square"].path) as picture:
        assert picture.size == (64, 64)
    assert by_id["empty"].path.stat().st_size == 0
