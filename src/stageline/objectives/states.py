"""What is integrated or compared when it is more than one tensor: a state is a tensor or a mapping of them by name.

Legend: every tensor of a state is (N, ...) over the same N. Names are gone through in alphabetical order, so that
random numbers and sums do not depend on how a mapping was filled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

State = Tensor | Mapping[str, Tensor]


def map_state(function: Callable[..., Tensor], first: State, *others: Any) -> Any:
    """`function` of the tensors of equal name in all states: a tensor, or a dict in alphabetical order.

    first: whose names are used.  others: states of the same structure; KeyError where one lacks a name.
    """
    if isinstance(first, Tensor):
        return function(first, *others)
    return {name: function(first[name], *(other[name] for other in others)) for name in sorted(first)}


def tensors_of(state: State) -> list[Tensor]:
    """The tensors of a state, in alphabetical order of their names."""
    if isinstance(state, Tensor):
        return [state]
    return [state[name] for name in sorted(state)]
