"""A small stage for the trainer's own tests: per-sample randomness, losses that are split as its fields say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from stageline.contract import ParameterGroup
from stageline.data.reading import SplitReader
from stageline.objectives.step import StageLoss, StepContext, ValidationContext
from stageline.stage import Stage

from .data import ToySet
from .model import ToyModel

STAGE = Stage("toy", trains=("body.*", "head.*"), objective="mse", steps=10, metric="error", direction="min")


@dataclass
class ToyTask:
    """num_train, num_val: samples.  tokens: weigh sample i as 1 + i % 3, as token counts would.  rows: prepared
    ones by split, made anew where there are none.  seen: what came."""

    num_train: int = 22
    num_val: int = 7
    tokens: bool = False
    poison: tuple[int, ...] = ()
    dropout: float = 0.0
    seed: int = 0
    unused: bool = False
    table: bool = False
    over_ranks: bool = False
    rows: Mapping[str, SplitReader] = field(default_factory=dict)
    seen: list[tuple[int, int]] = field(default_factory=list)
    on_loss: Any = None

    def __post_init__(self) -> None:
        self.model: nn.Module = ToyModel(self.seed, self.dropout, unused=self.unused, table=self.table)
        self.train_set = ToySet(self.num_train, True, self.poison, self.rows.get("train"))
        self.val_set = ToySet(self.num_val, False, rows=self.rows.get("val"))

    def collate(self, samples: Sequence[Any]) -> Any:
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def batch_items(self, epoch: int) -> Sequence[tuple[int, int]] | None:
        return None

    def loss(self, model: nn.Module, batch: Any, context: StepContext) -> StageLoss:
        self.seen += list(zip(batch["epoch"].tolist(), batch["index"].tolist(), strict=True))
        answer = model(batch["x"])
        error = (answer - batch["target"]).square().squeeze(1)
        if self.over_ranks:
            spread = (1 - context.gather(answer).var().add(1e-4).sqrt()).relu()  # of all ranks' samples
            count = float(len(error))
            return StageLoss(error.sum() + spread * count, count, {"spread": (spread.detach() * count, count)})
        weight = 1.0 + batch["index"] % 3 if self.tokens else torch.ones_like(error)
        summed = (error * weight).sum()
        if self.on_loss is not None:
            summed = self.on_loss(summed, context)
        count = float(weight.sum())
        parts = {"mse": (summed.detach(), count)}
        if bool((batch["index"] == 0).any()):
            parts["rare"] = (error[batch["index"] == 0].detach().sum(), 1.0)
        return StageLoss(summed, count, parts)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        trained = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        plain = tuple(name for name in trained if name.endswith("bias"))
        return (
            ParameterGroup("weights", tuple(name for name in trained if name not in plain)),
            ParameterGroup("biases", plain, lr_factor=2.0, decay=False),
        )

    def set_train_mode(self, model: nn.Module) -> None:
        model.train()

    def advance(self, step: int, steps: int) -> None:
        self.model.strength.fill_(step / steps)

    def validation_key(self, index: int) -> Any:
        return 0

    def validate(self, model: nn.Module, batch: Any, context: ValidationContext) -> Mapping[str, tuple[float, float]]:
        # A unit by itself, before the whole: families do so (a head that is asked once per sample).
        assert bool(torch.isfinite(self.model.stem(batch["x"].to(self.model.stem.weight.dtype))).all())
        noise = torch.stack([torch.randn(4, generator=context.rng(row)) for row in range(len(context.samples))])
        error = (model(batch["x"] + 0.1 * noise) - batch["target"]).square()
        for row in range(context.num_shown):
            context.show(row, "error", np.full((3, 5), min(255, int(255 * error[row])), np.uint8))
        return {"error": (float(error.sum()), float(error.numel()))}

    def shard_units(self) -> Sequence[nn.Module]:
        assert isinstance(self.model, ToyModel)
        return (self.model.stem, self.model.body)

    def facts(self) -> dict[str, Any]:
        return {"width": 8}
