"""The torch half of the toy family."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from stageline.data.prepared import PreparedData
from stageline.stage import Stage

from .config import FAMILY_CONFIG, ToyConfig
from .toy import ToyTask

TASKS: list[ToyTask] = []
"""Tasks that were built, for tests to look at and to change before."""
CHANGE: list[Any] = []
"""Functions that get each new task before it trains."""


def build_task(config: ToyConfig, stage: Stage, data: PreparedData) -> ToyTask:
    data = config.data
    task = ToyTask(
        num_train=data.num_train,
        num_val=data.num_val,
        tokens=data.tokens,
        poison=data.poison,
        dropout=config.model.dropout,
        seed=config.seed,
        unused=config.model.unused,
        over_ranks=stage.loss_over == "ranks",
    )
    for change in CHANGE:
        change(task)
    TASKS.append(task)
    return task


FAMILY = SimpleNamespace(config=FAMILY_CONFIG, build_task=build_task)
