"""The torch half of the toy family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from stageline.contract import Workspace
from stageline.data.prepared import PreparedData
from stageline.errors import CheckpointError
from stageline.stage import Stage

from .config import FAMILY_CONFIG, ToyConfig
from .toy import ToyModel, ToyTask

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


def exports(config: ToyConfig, stage: Stage, tensors: Mapping[str, Tensor]) -> dict[str, bytes | dict[str, Tensor]]:
    """The head under another program's name, where the config asks for it."""
    if not config.model.exported:
        return {}
    head = {f"layers.{name}": tensor for name, tensor in tensors.items() if name.startswith("head.")}
    return {"head_for_others/weights.safetensors": head, "head_for_others/layers.txt": "\n".join(head).encode()}


def build_model(config: ToyConfig, stage: Stage) -> ToyModel:
    return ToyModel(config.seed, config.model.dropout)


def import_files(
    paths: Sequence[Path], raw: Mapping[str, Any], stage: str
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Each file holds a part of the model; a name in two of them is refused."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        found = load_file(path)
        twice = sorted(set(found) & set(tensors))
        if twice:
            raise CheckpointError(f"{path.name}: {twice[0]} stands in another file too")
        tensors |= found
    return dict(raw), tensors, {"parts": len(paths), "asked": stage}


BEGUN: list[tuple[ToyTask, Workspace]] = []
"""What `begin` was called with."""
FAMILY = SimpleNamespace(
    config=FAMILY_CONFIG,
    build_model=build_model,
    build_task=build_task,
    exports=exports,
    import_files=import_files,
    begin=lambda task, workspace: BEGUN.append((task, workspace)),
)
