"""What self-consistency learns: the mean velocity of two steps h by the network itself, some of them guided.

arXiv:2410.12557, algorithm 1; which modalities are guided when is that of facebookresearch/sam-3d-objects.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from stageline.families.sparse_structure.shortcut.network import ConditionedNetwork
from stageline.objectives.flow import expand
from stageline.objectives.guidance import guided_by_strength
from stageline.objectives.states import State, map_state


@torch.no_grad()
def mean_of_two_steps(
    ask: ConditionedNetwork,
    x_t: State,
    t: Tensor,
    h: Tensor,
    *,
    told: Tensor,
    index: Tensor | None,
    num_guided: int,
    strength: float,
    modalities: Collection[str] | None,
    only: Tensor | None,
) -> Any:
    """The mean velocity of two Euler steps of h from x_t, for n objects; like x_t.

    ask: the network with its conditions.
    x_t: (n, ...) states at times t (n,).  h: (n,) steps, in units of t.  told: (n,) steps as the network is told them.
    index: (n,) which of the network's objects these are, None for all.
    num_guided: the first so many of the n are (1 + strength) conditional - strength unconditional.
    modalities: which of them are, None for all.  only: (n,) whether an object may be guided, None where all may.
    """
    first = None if num_guided == len(t) else slice(0, num_guided)
    rows = index
    if first is not None:
        rows = (torch.arange(len(t), device=t.device) if index is None else index)[first]

    def guided(on: Tensor, off: Tensor) -> Tensor:
        some = _part(on, first)
        mixed = guided_by_strength(some, off, strength)
        if only is not None:
            mixed = torch.where(expand(_part(only, first), some).bool(), mixed, some)
        return mixed if first is None else torch.cat([mixed, on[num_guided:]])

    def velocity(x: State, at: Tensor) -> Any:
        on = ask(x, at, told, index=index, unconditional=False)
        if num_guided == 0 or not ask.can_drop:
            return on
        off = ask(_part(x, first), _part(at, first), _part(told, first), index=rows, unconditional=True)
        if modalities is None:
            return map_state(guided, on, off)
        return {name: guided(on[name], off[name]) if name in modalities else on[name] for name in on}

    v1 = velocity(x_t, t)
    v2 = velocity(map_state(lambda x, v: x + expand(h, x) * v, x_t, v1), t + h)
    return map_state(lambda a, b: (a + b) / 2, v1, v2)


def _part(state: Any, rows: slice | None) -> Any:
    return state if rows is None else map_state(lambda x: x[rows], state)
