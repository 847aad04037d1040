"""Half precision: what a network is given, what it answers, and where it is computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stageline.config import TrainerConfig
from stageline.trainer.ranks import Ranks


@dataclass(frozen=True)
class Condition:
    """What families pass to their networks."""

    time: Tensor


class Network(nn.Module):
    """Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.seen: tuple[Tensor, Tensor, torch.dtype] | None = None

    def forward(self, time: Tensor, condition: Condition) -> Tensor:
        out: Tensor = self.linear(time)
        self.seen = (time, condition.time, out.dtype)
        return out


def test_inputs_keep_every_digit_and_operations_are_in_half_precision():
    """997 is 996 in bfloat16; a frozen dataclass can't be rewritten."""
    ranks = Ranks(TrainerConfig(precision="bf16-mixed", accelerator="cpu"))
    network = Network()
    wrapped = ranks.fabric.setup_module(network)
    time = torch.tensor([[997.0]])
    out = wrapped(time, Condition(time))
    assert network.seen is not None
    given, inside, computed = network.seen
    assert (given.dtype, given.item(), inside.item()) == (torch.float32, 997.0, 997.0)
    assert (computed, out.dtype) == (torch.bfloat16, torch.float32)


def test_float32_needs_no_plugin():
    ranks = Ranks(TrainerConfig(accelerator="cpu"))
    assert ranks.scaler is None
    network = Network()
    assert ranks.fabric.setup_module(network)(torch.ones(1, 1), Condition(torch.ones(1, 1))).dtype == torch.float32
    assert network.seen is not None
    assert network.seen[2] == torch.float32
