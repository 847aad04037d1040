"""A small stage for the trainer's own tests: an MLP with dropout, a float buffer and per-sample randomness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stageline.contract import ParameterGroup
from stageline.objectives.step import StageLoss, StepContext, ValidationContext, seeded
from stageline.stage import Stage

STAGE = Stage("toy", trains=("body.*", "head.*"), objective="mse", steps=10, metric="error", direction="min")


class ToyTable(nn.Module):
    """A row that is added to every input: its weight comes from a file of others, its scale is trained here."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.weight


class ToyModel(nn.Module):
    """stem (often frozen) -> body with dropout -> head; `strength` is a schedule buffer."""

    def __init__(self, seed: int = 0, dropout: float = 0.0, *, unused: bool = False, table: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(8, 1)
        if unused:
            self.unused = nn.Linear(2, 2, bias=False)
        self.register_buffer("strength", torch.zeros(()))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed, name)) * 0.3)
        self.table = ToyTable() if table else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.table is None else self.table(x)
        seen = self.stem(x.to(self.stem.weight.dtype)).to(x.dtype)  # a frozen stem may be held in bf16
        out: torch.Tensor = self.head(self.body(seen))
        return out


class ToySet(torch.utils.data.Dataset[Any]):
    """Generated samples; each training sample has noise of its own, a function of (seed, epoch, index)."""

    def __init__(self, size: int, training: bool, poison: Sequence[int] = ()) -> None:
        self.size, self.training, self.poison = size, training, frozenset(poison)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, item: Any) -> dict[str, torch.Tensor]:
        epoch, index = item if self.training else (0, item)
        x = torch.randn(4, generator=seeded("sample", int(self.training), index))
        target = x.sum().tanh().reshape(1)
        noise = torch.randn(4, generator=seeded("noise", epoch, index)) if self.training else torch.zeros(4)
        if index in self.poison:
            target = target * float("nan")
        return {"x": x + 0.1 * noise, "target": target, "index": torch.tensor(index), "epoch": torch.tensor(epoch)}


@dataclass
class ToyTask:
    """num_train, num_val: samples.  tokens: weigh sample i as 1 + i % 3, as token counts would.  seen: what came."""

    num_train: int = 22
    num_val: int = 7
    tokens: bool = False
    poison: tuple[int, ...] = ()
    dropout: float = 0.0
    seed: int = 0
    unused: bool = False
    table: bool = False
    over_ranks: bool = False
    seen: list[tuple[int, int]] = field(default_factory=list)
    on_loss: Any = None

    def __post_init__(self) -> None:
        self.model: nn.Module = ToyModel(self.seed, self.dropout, unused=self.unused, table=self.table)
        self.train_set = ToySet(self.num_train, True, self.poison)
        self.val_set = ToySet(self.num_val, False)

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
        return {"error": (float(error.sum()), float(error.numel()))}

    def shard_units(self) -> Sequence[nn.Module]:
        assert isinstance(self.model, ToyModel)
        return (self.model.stem, self.model.body)

    def facts(self) -> dict[str, Any]:
        return {"width": 8}
