"""Pictures in TensorBoard: whatever becomes of them, no step waits for them or ends with them."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import pytest

from stageline.trainer import pictures
from stageline.trainer.pictures import MAX_SIDE, PictureWriter


class Board:
    """In the place of TensorBoard: keeps what is added. free: adding waits for it.  fails: raises instead."""

    def __init__(self, *, fails: bool = False) -> None:
        self.added: list[tuple[str, tuple[int, ...], int, str]] = []
        self.free, self.fails = threading.Event(), fails
        self.free.set()

    def add_image(self, tag: str, pixels: Any, step: int, dataformats: str) -> None:
        self.free.wait()
        if self.fails:
            raise OSError("no space left")
        self.added.append((tag, pixels.shape, step, dataformats))


def written(board: Any, *shown: tuple[dict[str, Any], int]) -> list[str]:
    """The warnings of a writer that was given these pictures and closed."""
    warnings: list[str] = []
    writer = PictureWriter(board, warnings.append)
    for pixels, step in shown:
        writer.put(pixels, step)
    writer.close()
    return warnings


def test_grey_and_colour_are_written_and_large_ones_reduced() -> None:
    board, wide = Board(), np.zeros((10, 2 * MAX_SIDE + 1, 3), np.uint8)
    assert written(board, ({"a/0": np.zeros((4, 6), np.uint8), "b/1": wide}, 7)) == []
    assert board.added == [
        ("validation/a/0", (4, 6), 7, "HW"),
        ("validation/b/1", (4, -(-(2 * MAX_SIDE + 1) // 3), 3), 7, "HWC"),
    ]


def test_a_fault_is_told_once_and_nothing_more_is_tried() -> None:
    board = Board(fails=True)
    (warning,) = written(board, *(({"a/0": np.zeros((2, 2), np.uint8)}, step) for step in range(5)))
    assert "no space left" in warning
    (warning,) = written(Board(), ({"a/0": np.zeros((2, 2))}, 1))
    assert "float64, expected uint8" in warning


def test_a_slow_board_delays_nobody_and_what_is_missing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "CLOSE_SECONDS", 0.05)
    board, warnings = Board(), []
    board.free.clear()
    writer = PictureWriter(board, warnings.append)
    for step in range(30):
        writer.put({"a/0": np.zeros((2, 2), np.uint8)}, step)
    writer.close()  # it got here, though the board takes nothing
    board.free.set()
    (warning,) = warnings
    # One is with the board, as many as fit wait, and the others were turned away.
    assert re.search(r"TensorBoard was too slow: pictures of (29|30) validations", warning)
