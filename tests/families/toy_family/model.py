"""The toy family's model: an MLP with dropout, a float buffer and a partly external table."""

from __future__ import annotations

import torch
from torch import nn

from stageline.objectives.step import seeded


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
