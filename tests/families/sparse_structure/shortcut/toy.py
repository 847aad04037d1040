"""A small network over two modalities, and data for it, in float64: what the tests of the objective share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

SIZES = {"shape": (5, 3), "translation": (1, 2)}
"""(tokens, channels) per modality."""
COND = 4


class Network(nn.Module):
    """Every answer depends on all of its own object: x, t, d and the condition; no object knows of another."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        wide = sum(tokens * channels for tokens, channels in SIZES.values())

        def matrix(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=rng, dtype=torch.float64) / columns**0.5)

        self.read, self.cond, self.time = matrix(8, wide), matrix(8, COND), matrix(8, 4)
        self.write = nn.ParameterDict({name: matrix(a * b, 8) for name, (a, b) in SIZES.items()})
        self.calls: list[dict[str, object]] = []

    def forward(self, x: dict[str, Tensor], t: Tensor, cond: Tensor, d: Tensor | None = None) -> dict[str, Tensor]:
        self.calls.append({"x": x, "t": t, "cond": cond, "d": d})
        flat = torch.cat([x[name].flatten(1) for name in SIZES], dim=1)
        step = torch.zeros_like(t) if d is None else d
        clock = torch.stack([t / 1000, step / 1000, torch.sin(t / 300), torch.cos(step / 200)], dim=-1).to(flat)
        hidden = torch.tanh(linear(flat, self.read) + linear(cond, self.cond) + linear(clock, self.time))
        return {name: linear(hidden, self.write[name]).reshape(len(flat), *SIZES[name]) for name in SIZES}


class WithProbability(Network):
    """The same network, which zeroes its condition itself where it is told to."""

    def forward(  # type: ignore[override]
        self,
        x: dict[str, Tensor],
        t: Tensor,
        cond: Tensor,
        d: Tensor | None = None,
        p_unconditional: float | None = None,
    ) -> dict[str, Tensor]:
        return super().forward(x, t, torch.zeros_like(cond) if p_unconditional == 1.0 else cond, d)


def data(num: int, seed: int = 1) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(num, *size, generator=rng, dtype=torch.float64) for name, size in SIZES.items()}


def condition(num: int, seed: int = 2) -> Tensor:
    return torch.randn(num, COND, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
