"""In what order stitched tokens are scanned, pooled and read by the language model; numpy, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.stitching import Block, Integers, ScanOrder, Stitched


def pool_block(block: Block, factor: int) -> tuple[Integers, tuple[int, int]]:
    """The members of each r x r cell of a block, row-major, and the rows and columns of cells.

    block: its last row or column is repeated where one is missing (27 x 27 becomes 28 x 28).  factor: r.
    Raises ConfigError where more than one would be missing.
    """
    rows, cols = block.numbers.shape
    missing = (-rows % factor, -cols % factor)
    if max(missing) > 1:
        raise ConfigError(
            f"pooling {factor} does not fit a grid of {rows} x {cols} tokens ({block.kind} view)",
            remedy="choose pooling 1 or 2, another stitching_mode, or another tile size",
        )
    grid = np.pad(block.numbers, ((0, missing[0]), (0, missing[1])), mode="edge")
    down, across = grid.shape[0] // factor, grid.shape[1] // factor
    cells = grid.reshape(down, factor, across, factor).transpose(0, 2, 1, 3).reshape(down * across, factor**2)
    return cells, (down, across)


def _rings(blocks: Sequence[Block]) -> list[list[int]]:
    """Numbers of the blocks that are read together: each ring by yaw, every other block alone; in plan order."""
    groups: dict[tuple[str, int], list[int]] = {}
    for number, block in enumerate(blocks):
        key = ("ring", block.ring) if block.kind == "tile" else (block.kind, number)
        groups.setdefault(key, []).append(number)
    return [sorted(group, key=lambda number: blocks[number].yaw_deg) for group in groups.values()]


def pool(stitched: Stitched, factor: int) -> Integers:
    """(cells, r * r) members of all cells, in the order in which the language model reads them.

    `concat`: view after view, row-major. Otherwise the global view row-major, then each ring as one canvas, column
    after column from the left border of its first tile.
    """
    found = [pool_block(block, factor) for block in stitched.blocks]
    if stitched.mode == "concat":
        return np.concatenate([cells for cells, _ in found])
    out: list[Integers] = []
    for group in _rings(stitched.blocks):
        for number in group:
            cells, (rows, cols) = found[number]
            if stitched.blocks[number].kind == "tile":
                cells = cells.reshape(rows, cols, -1).swapaxes(0, 1).reshape(rows * cols, -1)
            out.append(cells)
    return np.concatenate(out)


@dataclass(frozen=True)
class Sequence1d:
    """One sequence to scan.

    numbers: (L,) stitched tokens in scan order.  emitted: (L,), false for the warm-up at both ends of a ring.
    """

    numbers: Integers
    emitted: NDArray[np.bool_]


def scan_sequences(
    stitched: Stitched, order: ScanOrder, *, per_view: bool, warmup_cols: int = 0
) -> tuple[Sequence1d, ...]:
    """The sequences a scan runs over: one for the panorama, or one per block.

    order: `sweep` ring by ring, column after column, top to bottom; `serpentine` the same with odd columns bottom-up;
    `raster` rows of a ring's canvas; `view` view after view, row-major. The global view is row-major and first.
    per_view: whether each block is a sequence of its own.
    warmup_cols: columns that each ring repeats from its other end, before and after, without emitting them.

    Raises ConfigError where a warm-up has no columns to take, or more than the ring has.
    """
    if warmup_cols and (per_view or order not in ("sweep", "serpentine")):
        raise ConfigError(
            f"circular_warmup_cols is {warmup_cols}, but scan_order {order} in scope "
            f"{'per_view' if per_view else 'panorama'} scans no ring column by column",
            remedy="use scope: panorama with scan_order: sweep or serpentine, or circular_warmup_cols: 0",
        )
    groups = [[number] for number in range(len(stitched.blocks))] if per_view else _rings(stitched.blocks)
    parts = [_scan_group([stitched.blocks[number] for number in group], order, warmup_cols) for group in groups]
    if per_view:
        return tuple(Sequence1d(*part) for part in parts)
    return (Sequence1d(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])),)


def _scan_group(blocks: Sequence[Block], order: ScanOrder, warmup: int) -> tuple[Integers, NDArray[np.bool_]]:
    if blocks[0].kind == "global" or order == "view":
        numbers = np.concatenate([block.numbers.ravel() for block in blocks])
        return numbers, np.ones(len(numbers), bool)
    canvas = np.concatenate([block.numbers for block in blocks], axis=1)
    if order == "raster":
        return canvas.ravel(), np.ones(canvas.size, bool)
    rows, cols = canvas.shape
    warmup = warmup if blocks[0].kind == "tile" else 0
    if warmup > cols:
        raise ConfigError(
            f"circular_warmup_cols is {warmup}, but the ring has {cols} columns", remedy=f"choose at most {cols}"
        )
    index = np.arange(-warmup, cols + warmup)
    columns = canvas[:, index % cols].T.copy()
    if order == "serpentine":
        columns[index % 2 == 1] = columns[index % 2 == 1][:, ::-1]
    emitted = np.repeat((index >= 0) & (index < cols), rows)
    return columns.ravel(), emitted
