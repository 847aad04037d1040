"""The toy family's data: rows of four numbers, made and written as splits, and the sets of samples over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from stageline.contract import Progress, Split
from stageline.data.quarantine import QuarantineError, SetAside
from stageline.data.reading import SplitReader
from stageline.data.shards import SplitWriter
from stageline.objectives.step import seeded

if TYPE_CHECKING:
    from .config import ToyConfig


ROW_MAKERS: dict[str, Callable[[int], torch.Tensor]] = {}
"""Split -> another maker of its rows, (4,) float32 by index: put here by files of the user's own."""


def made_row(split: str, index: int) -> torch.Tensor:
    """(4,) float32: the numbers of one row."""
    return torch.randn(4, generator=seeded("sample", {"val": 0, "train": 1, "test": 2}[split], index))


def prepare(config: ToyConfig, split: Split, writer: SplitWriter, progress: Progress) -> dict[str, Any]:
    """Write the rows of one split; its facts are their number."""
    for index in range(split.key["rows"]):
        if index in split.key.get("broken", ()):
            writer.set_aside(broken_row(index))
            continue
        own = ROW_MAKERS.get(split.name) if split.own_code else None
        row = made_row(split.name, index) if own is None else own(index)
        writer.add({"x": row.numpy()}, {"id": f"{split.name}-{index:02}"})
        progress(index + 1, split.key["rows"], f"writing {split.name}")
    return {"rows": split.key["rows"]}


def broken_row(index: int) -> SetAside:
    """What is noted of a row that cannot be used."""
    return SetAside(index + 1, f"{index}.txt", "odd" if index % 2 else "even", f"row {index} is broken")


def check_sources(config: ToyConfig, splits: Sequence[Split], progress: Progress) -> None:
    """Too many broken rows are refused."""
    rows = [broken_row(index) for split in splits for index in split.key.get("broken", ())]
    if len(rows) > config.data.max_broken:
        raise QuarantineError(f"{len(rows)} rows are broken", remedy="mend them", set_aside={"train": rows})


class ToySet(torch.utils.data.Dataset[Any]):
    """Samples of four numbers; each training sample has noise of its own, a function of (epoch, index).

    rows: the prepared ones; None makes the same numbers anew.
    """

    def __init__(self, size: int, training: bool, poison: Sequence[int] = (), rows: SplitReader | None = None) -> None:
        self.size, self.training, self.poison, self.rows = size, training, frozenset(poison), rows

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, item: Any) -> dict[str, torch.Tensor]:
        epoch, index = item if self.training else (0, item)
        if self.rows is None:
            x = made_row("train" if self.training else "val", index)
        else:
            x = torch.from_numpy(self.rows.array(index, "x").copy())
        target = x.sum().tanh().reshape(1)
        noise = torch.randn(4, generator=seeded("noise", epoch, index)) if self.training else torch.zeros(4)
        if index in self.poison:
            target = target * float("nan")
        return {"x": x + 0.1 * noise, "target": target, "index": torch.tensor(index), "epoch": torch.tensor(epoch)}
