"""The torch half of the toy family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stageline.contract import Family, Parent, Workspace
from stageline.data.prepared import PreparedData
from stageline.encoders.copies import external_folder
from stageline.encoders.frozen import read_weights
from stageline.errors import CheckpointError
from stageline.objectives.step import seeded
from stageline.stage import Stage

from .config import FAMILY_CONFIG, ToyConfig
from .data import check_sources, prepare
from .evaluate import BASELINES, evaluate, predict
from .inheritance import externals
from .model import ToyModel
from .task import ToyTask

TASKS: list[ToyTask] = []
"""Tasks that were built, for tests to look at and to change before."""
CHANGE: list[Any] = []
"""Functions that get each new task before it trains."""


def build_task(config: ToyConfig, stage: Stage, data: PreparedData) -> ToyTask:
    task = ToyTask(
        num_train=config.data.num_train,
        num_val=config.data.num_val,
        tokens=config.data.tokens,
        poison=config.data.poison,
        dropout=config.model.dropout,
        seed=config.seed,
        unused=config.model.unused,
        table=bool(config.model.table),
        over_ranks=stage.loss_over == "ranks",
        rows={name: data.split(name) for name in ("train", "val")},
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
    model = config.model
    return ToyModel(config.seed, model.dropout, unused=model.unused, table=bool(model.table))


def load_externals(config: ToyConfig, stage: Stage, model: nn.Module) -> None:
    """The row of the table, from the folder that the config names, or made from its text."""
    assert isinstance(model, ToyModel)
    assert model.table is not None
    (table,) = externals(config, stage)
    if table.generated:
        row = torch.randn(4, generator=seeded(table.source))
    else:
        row = read_weights(external_folder(config, table) / "table.safetensors")["row"]
    with torch.no_grad():
        model.table.weight.copy_(row)


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


def write_text(config: ToyConfig, stage: Stage, tensors: Mapping[str, Tensor], folder: Path) -> list[Path]:
    """The names of all tensors."""
    path = folder / f"{stage.name}.txt"
    path.write_text("\n".join(sorted(tensors)))
    return [path]


DERIVED: list[tuple[ToyTask, Mapping[str, Parent], float]] = []
"""What `derive` was called with, and a weight of the stem at that moment."""
BEGUN: list[tuple[ToyTask, Workspace]] = []
"""What `begin` was called with."""
FAMILY = Family(
    config=FAMILY_CONFIG,
    build_model=build_model,
    build_task=build_task,
    exports=exports,
    import_files=import_files,
    load_externals=load_externals,
    prepare=prepare,
    evaluate=evaluate,
    predict=predict,
    section_of=lambda name: name.split(".", 1)[0],
    check_sources=check_sources,
    baselines=BASELINES,
    arrays="pictures",
    formats={"text": write_text},
    derive=lambda task, parents: DERIVED.append((task, parents, float(task.model.stem.weight[0, 0].detach()))),
    begin=lambda task, workspace: BEGUN.append((task, workspace)),
)
