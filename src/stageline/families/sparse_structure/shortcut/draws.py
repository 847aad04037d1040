"""The random numbers of one shortcut loss: which objects take which branch, times, steps, noise and coins.

h is half of the step that the network is asked for: it answers for 2h, its target are two steps of h. Sources: the
generator of facebookresearch/sam-3d-objects (the order of draws, t independent of h), arXiv:2410.12557 and
kvfrans/shortcut-models (t on the grid of the step). What is done with the numbers stands in `shortcut`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stageline.errors import ConfigError
from stageline.objectives.states import State

Sampling = Literal["independent", "grid"]

STEPS = tuple(2.0**-i for i in range(8))
"""Half steps h of upstream: 1, 1/2, ..., 1/128, each as likely as the others."""
GRID_STEPS = STEPS[1:]
"""Half steps on the grid: twice the largest is the whole way."""
SMALLEST = STEPS[-1]
"""The step that no answer is ever asked for (the student is asked for 1/64 and more) but the targets are made of."""

Uniform = Callable[[], float]
"""The next uniform number in [0, 1)."""


@dataclass(frozen=True)
class ShortCutDraws:
    """Everything random about one loss of N objects.

    t: (N,) times in [0, 1].  h: (N,) half steps; 0 is an object of flow matching, > 0 one of self-consistency.
    x0: noise, like the data.
    eps: what h becomes for objects of flow matching: (N,), or one per such object, or one for all; in [0, fm_eps_max].
        Recorded uniform draws of upstream do as well: values above fm_eps_max are in [0, 1) and are multiplied by it.
    n_cfg: the first n of the self-consistency objects whose target is guided.
    use_fm_target: whether the targets are made of steps that the network is told to be 0.
    unconditional: whether the student's call goes without condition; None leaves it to the guidance wrapper's own coin.
    """

    t: Tensor
    h: Tensor
    x0: State
    eps: Tensor
    n_cfg: int = 0
    use_fm_target: bool = False
    unconditional: bool | None = None

    def half_steps(self, fm_eps_max: float) -> Tensor:
        """(N,) h with eps in the place of 0; ConfigError where eps fits neither its range nor its number."""
        h, eps = self.h.detach().cpu().float(), torch.as_tensor(self.eps).detach().cpu().float()
        flow = h == 0
        count = int(flow.sum())
        if eps.numel() and float(eps.max()) > fm_eps_max * (1 + 1e-6):
            eps = eps * fm_eps_max
        if eps.dim() == 0 or eps.shape == h.shape:
            return torch.where(flow, eps, h)
        if eps.shape != (count,):
            raise ConfigError(
                f"eps of the draws has the shape {tuple(eps.shape)}; h has {len(h)} objects, {count} of them with 0",
                remedy=f"give one value, {len(h)} of them, or {count}",
            )
        h = h.clone()
        h[flow] = eps
        return h


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How draws are made; the fields are `ShortCut`'s arguments."""

    self_consistency_prob: float
    ratio_cfg: float
    fm_target_prob: float
    fm_eps_max: float
    batch_mode: bool
    t_d_sampling: Sampling
    cfg_only_smallest_step: bool


def times_steps_and_coins(
    rules: Rules,
    num: int,
    *,
    shared: bool,
    sample_times: Callable[[int], Tensor],
    numbers: torch.Generator,
    steps: Uniform,
    coin: Uniform,
    self_consistent: bool | None,
    guided: bool | None,
    p_unconditional: float | None,
    may_skip: bool,
    noise: Callable[[], State],
) -> ShortCutDraws:
    """The draws of one loss, in upstream's order.

    num: N.  shared: one time, step and eps for all objects, and no permutation.
    sample_times: n -> (n,) training times.  numbers: tensors of random numbers.
    steps: where the choice of h comes from.  coin: where decisions come from.
    self_consistent, guided: decisions that are not tossed: whether (all of) the objects take the branch.
    p_unconditional: of the student's coin, None where nobody tosses it here.
    may_skip: whether guidance that touches no object may be left out; False where ranks must ask equally often.
    noise: draws x0.
    """
    t = sample_times(1 if shared else num)
    if rules.batch_mode:
        tossed = coin() < rules.self_consistency_prob if self_consistent is None else self_consistent
        num_sc = num if tossed else 0
    else:
        num_sc = int(num * rules.self_consistency_prob) if self_consistent is None else num * self_consistent
    base = GRID_STEPS if rules.t_d_sampling == "grid" else STEPS
    chosen = [base[int(steps() * len(base))] for _ in range(min(num_sc, 1) if shared else num_sc)]
    h = torch.zeros(num)
    if chosen:
        h[:num_sc] = torch.tensor(chosen)
    unconditional = None if p_unconditional is None else coin() < p_unconditional
    guided_objects = _num_guided(rules, num_sc, coin, guided)
    use_fm_target = num_sc > 0 and coin() < rules.fm_target_prob

    def uniform(size: int) -> Tensor:
        return torch.rand(size, generator=numbers, device=numbers.device).cpu()

    t = t.cpu().expand(num).clone() if shared else t.cpu()
    if not shared or 0 < num_sc < num:
        h = h[torch.randperm(num, generator=numbers, device=numbers.device).cpu()]
    consistent = h > 0
    if rules.t_d_sampling == "grid" and num_sc:
        width = 2 * h[consistent]
        t[consistent] = width * torch.floor(uniform(1 if shared else num_sc) / width)
    if rules.cfg_only_smallest_step and may_skip and not bool((h[consistent][:guided_objects] == SMALLEST).any()):
        guided_objects = 0
    x0 = noise()
    eps = torch.zeros(num)
    eps[~consistent] = uniform(1 if shared else num - num_sc) * rules.fm_eps_max
    return ShortCutDraws(
        t=t, h=h, x0=x0, eps=eps, n_cfg=guided_objects, use_fm_target=use_fm_target, unconditional=unconditional
    )


def _num_guided(rules: Rules, num_sc: int, coin: Uniform, guided: bool | None) -> int:
    """How many self-consistency objects have a guided target; in scene mode all or none, by one coin."""
    if num_sc == 0:
        return 0
    if guided is not None:
        return num_sc * guided
    if rules.batch_mode:
        return num_sc * (coin() < rules.ratio_cfg)
    return int(num_sc * rules.ratio_cfg)


def coin_of(generator: torch.Generator) -> Uniform:
    """Uniform numbers of a torch generator."""
    return lambda: float(torch.rand((), generator=generator, device=generator.device, dtype=torch.float64))
