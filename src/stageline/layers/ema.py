"""Exponential moving average of a model's weights, kept beside them; shared by all families.

After the n-th update (n = 1, 2, ...) each averaged parameter is d_n * average + (1 - d_n) * parameter with
d_n = min(decay, (1 + n) / (10 + n)), so that early averages forget the initial weights quickly. Buffers, floating
ones too (running statistics, schedule strengths), are never averaged: the average takes the model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

NOTHING = 1e-9
"""A share below this is none."""
LEFTOVER_FRACTION = 0.05
"""A share of the initial weights in the final average above this is worth a warning."""


def decay_of_update(n: int, decay: float) -> float:
    """d_n of the n-th update, n >= 1; in [2/11, decay] for any decay above that."""
    return min(decay, (1 + n) / (10 + n))


def leftover_fraction(decay: float, updates: int) -> float:
    """Share of the weights before the first update that is left in the average after `updates` updates, d_1 d_2 ….

    The first updates forget quickly: at the decay 0.9999, 1300 of them leave next to nothing (0.9999^1300 is 0.88).
    """
    share = 1.0
    for n in range(1, updates + 1):
        share *= decay_of_update(n, decay)
        if share < NOTHING:
            return 0.0
    return share


def _local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this rank: a sharded tensor's own shard, sharing its storage."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


class Ema:
    """The average of a model's trained parameters.

    model: whose `state_dict` names are used.  trained: names of the parameters that train; the others never change
    and are not averaged.  decay: in [0, 1).
    """

    def __init__(self, model: nn.Module, trained: Iterable[str], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        parameters = dict(model.named_parameters())
        self._average = {name: parameters[name].detach().clone() for name in trained}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's weights into the average, once per optimizer step that changed them."""
        self.updates += 1
        weight = 1.0 - decay_of_update(self.updates, self.decay)
        parameters = dict(model.named_parameters())
        for name, average in self._average.items():
            _local(average).lerp_(_local(parameters[name].detach()).to(average.dtype), weight)

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """The averages by the names of the model's `state_dict`; what is not averaged stands in the model alone.

        A parameter that stands under several names (tied weights) has its one average under all of them.
        """
        first: dict[int, str] = {}
        names: dict[str, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names[name] = first.setdefault(id(parameter), name)
        found = ((name, names.get(name, name)) for name in model.state_dict())
        return {name: self._average[own] for name, own in found if own in self._average}

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        for name, average in self._average.items():
            own, other = _local(parameters[name].detach()), _local(average)
            kept = own.clone()
            own.copy_(other)
            other.copy_(kept)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with averaged weights inside the block; bitwise its own again after it."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)
