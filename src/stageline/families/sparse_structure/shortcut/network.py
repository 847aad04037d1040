"""A network with the conditions of one loss: asked for some of the objects, with or without their condition.

Looks through wrappers (DDP, Fabric, torch.compile) for the guidance wrapper and the signature; what is called is the
wrapped network.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from stageline.errors import ConfigError
from stageline.families.sparse_structure.model.flow import PreparedCondition
from stageline.families.sparse_structure.shortcut.guidance import guidance_of, has_tensors, inner_of, zeroed
from stageline.objectives.states import State


class ConditionedNetwork:
    """A network with the conditions of N objects.

    network: `(x, t, *conditions, d=..., **keywords) -> velocities`.
    num: N.  conditions, keywords: its conditions for all objects.
    scale: what times and steps are multiplied by.
    slices: whether asking for some objects takes their rows of the conditions, which then have 1 row or N, or no axis;
        otherwise conditions go as they are.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        num: int,
        conditions: tuple[Any, ...],
        keywords: Mapping[str, Any],
        *,
        scale: float,
        slices: bool,
    ) -> None:
        self.network, self.num, self.scale, self.slices = network, num, scale, slices
        self.conditions, self.keywords = conditions, keywords
        named = {f"condition {n}": value for n, value in enumerate(conditions)}
        named |= {f"condition {name!r}": value for name, value in keywords.items()}
        named = {name: v.tokens if isinstance(v, PreparedCondition) else v for name, v in named.items()}
        wrong = {
            name: value.shape[0]
            for name, value in named.items()
            if slices and isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] not in (1, num)
        }
        if wrong:
            found = "; ".join(f"{name} has {rows} rows" for name, rows in wrong.items())
            raise ConfigError(f"{found} for {num} objects", remedy="give a row to each object, or 1 for all")
        self.guidance = guidance_of(network)
        self.takes_probability = self.guidance is None and takes(network, "p_unconditional")
        self.zeroes = self.guidance is None and not self.takes_probability
        """Whether the unconditional answer is that to conditions at zero, the network having no other way."""
        self.can_drop = not self.zeroes or has_tensors([*conditions, keywords])
        """Whether there is an unconditional answer at all."""

    def __call__(
        self, x: State, t: Tensor, step: Tensor, *, unconditional: bool | None, index: Tensor | None = None
    ) -> Any:
        """Velocities at times t for steps `step`, both (n,) in units of t.

        index: (n,) which objects x holds, None for all.
        unconditional: whether the condition is left out; None leaves that to the network.
        """
        conditions: tuple[Any, ...] = self.conditions
        keywords: dict[str, Any] = dict(self.keywords)
        if index is not None and self.slices:
            conditions = tuple(self._rows(value, index) for value in conditions)
            keywords = {name: self._rows(value, index) for name, value in keywords.items()}
        if self.takes_probability and unconditional is not None:
            keywords["p_unconditional"] = float(unconditional)
        elif self.zeroes and unconditional:
            conditions, keywords = zeroed(conditions, keywords)
        with self._branch(unconditional):
            return self.network(x, t * self.scale, *conditions, d=step * self.scale, **keywords)

    def _branch(self, unconditional: bool | None) -> AbstractContextManager[None]:
        return nullcontext() if self.guidance is None else self.guidance.training_branch(unconditional)

    def _rows(self, value: Any, index: Tensor) -> Any:
        if isinstance(value, PreparedCondition):
            return PreparedCondition(self._rows(value.tokens, index))
        own = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == self.num
        return value[index.to(value.device)] if own else value


def takes(network: Any, name: str) -> bool:
    """Whether a network's signature names an argument; a wrapper that hands everything on is looked through."""
    parameters = inspect.signature(network.forward if isinstance(network, nn.Module) else network).parameters
    inner = inner_of(network)
    hands_on = all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    return name in parameters or (hands_on and inner is not None and takes(inner, name))
