"""ShortCut: one network that answers for steps of any size, trained by flow matching and by agreement with itself.

The network `reverse_fn(x_t, t, *conditions, d=..., **conditions)` answers the mean velocity over a step d. Of flow
matching it learns small steps, of self-consistency that one step 2h is two steps of h (arXiv:2410.12557, algorithm 1).
Arguments and the order of random draws are those of the generator of facebookresearch/sam-3d-objects; what is added
(shared draws, the grid, the anchor, guidance of the smallest step alone) is off where upstream has nothing of it.

A batch is N objects. In scene mode (`batch_mode`) they are one scene, which takes one branch as a whole, and no
condition is ever sliced. The trainer is given sums and counts (`ShortCutLoss`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch import distributed as dist

from stageline.errors import ConfigError
from stageline.families.sparse_structure.shortcut.draws import (
    SMALLEST,
    Rules,
    Sampling,
    ShortCutDraws,
    coin_of,
    times_steps_and_coins,
)
from stageline.families.sparse_structure.shortcut.flow_matching import UNTRAINED_STEPS, FlowMatching, num_objects
from stageline.families.sparse_structure.shortcut.guidance import guidance_of
from stageline.families.sparse_structure.shortcut.network import ConditionedNetwork
from stageline.families.sparse_structure.shortcut.target import mean_of_two_steps
from stageline.families.sparse_structure.shortcut.terms import ShortCutLoss, assembled
from stageline.objectives.states import State, map_state, tensors_of
from stageline.objectives.step import seeded

Network = Callable[..., Any]
_SHARING = ("shared_draws_from", "shared_draws_prob")


class ShortCut(FlowMatching):
    """Shortcut models over modalities. Arguments beside those of `FlowMatching`, by keyword:

    no_shortcut: sampling tells the network the step 0: plain flow matching.
    self_consistency_prob: share of the objects, or probability of a scene, that learn from self-consistency.
    shortcut_loss_weight: of that part in the total. Either part is a mean over its own objects, so both weigh the same
        at 1 where objects are mixed; where scenes are, 3 at probability 0.25 is the same balance.
    self_consistency_cfg_strength: s of (1 + s) conditional - s unconditional inside of targets.
    ratio_cfg_samples_in_self_consistency_target: share of the targets that are guided, or probability of a scene's.
    fm_in_shortcut_target_prob: probability that a target's steps are told to be 0.
    fm_eps_max: half steps of flow matching are uniform in [0, fm_eps_max], in units of t.
    batch_mode: scene mode: the batch is one scene and takes one branch as a whole.
    cfg_modalities: those that are guided where all targets of a batch are; where a part is, its objects are guided in
        every modality, as upstream.
    t_d_sampling: `independent` draws t without looking at h, as upstream: t + 2h may exceed 1. `grid` draws h of at
        most 1/2 and t from its multiples of 2h, as the paper.
    anchor_smallest_step: targets made of steps of 1/128, which no answer is trained for, are told the step 0 instead.
    shared_draws: one time, one step and one eps for all objects of a batch; None is `batch_mode`.
    shared_draws_from: share of the training, in [0, 1], before which draws are not shared after all.
    shared_draws_prob: probability that draws are shared after it.
    cfg_only_smallest_step: targets of larger steps are not guided: what they are made of learned guided targets.
    sync_decisions: which branch, whether guided and whether told 0 are equal on all ranks, so that all ask the network
        equally often; t, h and noise are each rank's own. None is on where there are several ranks.
    """

    def __init__(
        self,
        reverse_fn: Network,
        *,
        no_shortcut: bool = False,
        self_consistency_prob: float = 0.25,
        shortcut_loss_weight: float = 1.0,
        self_consistency_cfg_strength: float = 3.0,
        ratio_cfg_samples_in_self_consistency_target: float = 0.5,
        fm_in_shortcut_target_prob: float = 0.0,
        fm_eps_max: float = 0.0,
        batch_mode: bool = False,
        cfg_modalities: Sequence[str] = ("shape",),
        t_d_sampling: Sampling = "independent",
        anchor_smallest_step: bool = False,
        shared_draws: bool | None = None,
        shared_draws_from: float = 0.0,
        shared_draws_prob: float = 1.0,
        cfg_only_smallest_step: bool = False,
        sync_decisions: bool | None = None,
        **flow_matching: Any,
    ) -> None:
        # Set before the parent's constructor, which tells the faults of all arguments together.
        self.no_shortcut = no_shortcut
        self.self_consistency_prob = self_consistency_prob
        self.shortcut_loss_weight = shortcut_loss_weight
        self.self_consistency_cfg_strength = self_consistency_cfg_strength
        self.ratio_cfg_samples_in_self_consistency_target = ratio_cfg_samples_in_self_consistency_target
        self.fm_in_shortcut_target_prob = fm_in_shortcut_target_prob
        self.fm_eps_max = fm_eps_max
        self.batch_mode = batch_mode
        self.cfg_modalities = cfg_modalities
        self.t_d_sampling = t_d_sampling
        self.anchor_smallest_step = anchor_smallest_step
        self.shared_draws = batch_mode if shared_draws is None else shared_draws
        self.shared_draws_from = shared_draws_from
        self.shared_draws_prob = shared_draws_prob
        self.cfg_only_smallest_step = cfg_only_smallest_step
        self.sync_decisions = sync_decisions
        self._decided = 0
        self._decision_seed: int | None = None
        super().__init__(reverse_fn, **flow_matching)

    def _faults(self) -> list[str]:
        ratio = "ratio_cfg_samples_in_self_consistency_target"
        shares = ("self_consistency_prob", ratio, "fm_in_shortcut_target_prob", *_SHARING)
        faults = [f"{name} {getattr(self, name)!r}: in [0, 1]" for name in shares if not 0 <= getattr(self, name) <= 1]
        if not 0 <= self.fm_eps_max <= 0.5:
            faults.append(f"fm_eps_max {self.fm_eps_max!r}: in [0, 0.5], half of a step of at most the whole way")
        if self.t_d_sampling not in get_args(Sampling):
            faults.append(f"t_d_sampling {self.t_d_sampling!r}: one of {', '.join(get_args(Sampling))}")
        if isinstance(self.cfg_modalities, str):
            faults.append(f"cfg_modalities {self.cfg_modalities!r}: a list of modalities")
        if not self.shared_draws and (self.shared_draws_from > 0 or self.shared_draws_prob < 1):
            told = " and ".join(f"{name} {getattr(self, name)!r}" for name in _SHARING)
            faults.append(f"{told} say when draws are shared, and shared_draws is off")
        return faults

    # Draws

    def sample_draws(
        self,
        x1: State,
        *,
        rng: torch.Generator | None = None,
        shared: torch.Generator | None = None,
        progress: float = 1.0,
        reverse_fn: Network | None = None,
        self_consistent: bool | None = None,
        guided: bool | None = None,
    ) -> ShortCutDraws:
        """Everything random about one loss of these data.

        x1: the data, (N, ...) per modality.
        rng: takes the place of the model's own source, all of it.
        shared: equal on all ranks; decisions come from it, unless `sync_decisions` is off.
        progress: share of the training that is done, in [0, 1).
        reverse_fn: the network of this call; a guidance wrapper in training mode has the student's coin tossed here.
        self_consistent, guided: decisions that are not tossed: of all objects, of all targets.
        """
        num = num_objects(x1)
        numbers = self.random_generator if rng is None else rng
        own = self._coin if rng is None else coin_of(rng)
        decisions = self._decisions(rng, shared)
        coin = own if decisions is None else decisions
        share = self.shared_draws and progress >= self.shared_draws_from
        if share and self.shared_draws_prob < 1:
            share = coin() < self.shared_draws_prob
        guidance = guidance_of(self.reverse_fn if reverse_fn is None else reverse_fn)
        return times_steps_and_coins(
            self._rules(),
            num,
            shared=share,
            sample_times=lambda size: self.training_time_sampler_fn(size=(size,), generator=numbers),
            numbers=numbers,
            steps=own,
            coin=coin,
            self_consistent=self_consistent,
            guided=guided,
            p_unconditional=guidance.p_unconditional if guidance is not None and guidance.training else None,
            may_skip=decisions is None,
            noise=lambda: self.draw_noise(x1, numbers),
        )

    def _rules(self) -> Rules:
        return Rules(
            self_consistency_prob=self.self_consistency_prob,
            ratio_cfg=self.ratio_cfg_samples_in_self_consistency_target,
            fm_target_prob=self.fm_in_shortcut_target_prob,
            fm_eps_max=self.fm_eps_max,
            batch_mode=self.batch_mode,
            t_d_sampling=self.t_d_sampling,
            cfg_only_smallest_step=self.cfg_only_smallest_step,
        )

    def _decisions(self, rng: torch.Generator | None, shared: torch.Generator | None) -> Callable[[], float] | None:
        """Where decisions that are equal on all ranks come from; None where they are each rank's own."""
        if shared is not None:
            return None if self.sync_decisions is False else coin_of(shared)
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if rng is not None or not (several if self.sync_decisions is None else self.sync_decisions):
            return None
        if self._decision_seed is None:
            self._decision_seed = self.random_generator.initial_seed()
            if several:
                self._decision_seed = _of_first_rank(self._decision_seed)
        self._decided += 1
        return coin_of(seeded("decisions", self._decision_seed, self._decided))

    # Loss

    def loss(
        self, x1: State, *conditions: Any, reverse_fn: Network | None = None, **keywords: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(total, details) of fresh draws; as `loss_from_draws`."""
        draws = self.sample_draws(x1, reverse_fn=reverse_fn)
        return self.loss_from_draws(x1, draws, *conditions, reverse_fn=reverse_fn, **keywords)

    def loss_from_draws(
        self,
        x1: State,
        draws: ShortCutDraws,
        *conditions: Any,
        reverse_fn: Network | None = None,
        **keywords: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(total, details): the loss with a graph, and its parts.

        x1: the data, (N, ...) per modality.  draws: everything random.
        conditions, keywords: for the network. In scene mode they reach it as they are; otherwise a tensor whose first
            axis is N is sliced with the objects, one of 0 axes or of 1 row is shared; ConfigError for other tensors.
        reverse_fn: the network of this call.
        details, detached scalars: `flow_matching_loss` and `self_consistency_loss`, sums over modalities with their
            weights, 0 where the batch has no such object; `flow_matching/<modality>` and `self_consistency/<modality>`
            without weights; `num_fm` and `num_sc`, how many objects they are over: means over batches divide by these.
        """
        terms = self.loss_terms(x1, draws, *conditions, reverse_fn=reverse_fn, **keywords)
        return terms.total, dict(terms.details)

    def loss_terms(
        self,
        x1: State,
        draws: ShortCutDraws,
        *conditions: Any,
        reverse_fn: Network | None = None,
        **keywords: Any,
    ) -> ShortCutLoss:
        """The same as sums and counts."""
        num = num_objects(x1)
        ask = self._conditioned(reverse_fn, num, conditions, keywords)
        device = tensors_of(x1)[0].device
        told = draws.half_steps(self.fm_eps_max)
        consistent = draws.h.detach().cpu() > 0
        if len(consistent) != num:
            raise ConfigError(
                f"draws are for {len(consistent)} objects, the data have {num}", remedy="draw for these data"
            )
        num_sc = int(consistent.sum())
        if self.batch_mode and (0 < num_sc < num or draws.n_cfg not in (0, num_sc)):
            raise ConfigError(
                f"draws of a scene of {num} objects have {num_sc} of self-consistency, {draws.n_cfg} of these guided",
                remedy="in scene mode it is all or none of them",
            )
        t, x0 = draws.t.to(device), map_state(lambda x: x.to(device), draws.x0)
        x_t, h = self.path(x0, x1, t), told.to(device)
        # A copy of the weights in half precision that some torch cached under no_grad has no gradient for the student.
        torch.clear_autocast_cache()
        student = ask(x_t, t, 2 * h, unconditional=draws.unconditional)
        fm = None if num_sc == 0 else (~consistent).nonzero().flatten().to(device)
        sc = None if num_sc == num else consistent.nonzero().flatten().to(device)
        zero = torch.zeros((), device=device)
        names = [] if isinstance(x1, Tensor) else sorted(x1)
        losses, each = {"flow_matching": zero, "self_consistency": zero}, {}
        if num_sc < num:
            target = self.target(_take(x0, fm), _take(x1, fm))
            losses["flow_matching"], each["flow_matching"] = self.weighted_loss(_take(student, fm), target)
        if num_sc > 0:
            target = self._target(ask, _take(x_t, sc), _take(t, sc), _take(h, sc), draws, sc)
            losses["self_consistency"], each["self_consistency"] = self.weighted_loss(_take(student, sc), target)
        total = losses["flow_matching"] + self.shortcut_loss_weight * losses["self_consistency"]
        counts = {"flow_matching": num - num_sc, "self_consistency": num_sc}
        return assembled(total, losses, each, counts, names=names, scene=self.batch_mode)

    def _conditioned(
        self, reverse_fn: Network | None, num: int, conditions: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> ConditionedNetwork:
        network = self.reverse_fn if reverse_fn is None else reverse_fn
        ask = ConditionedNetwork(network, num, conditions, keywords, scale=self.time_scale, slices=not self.batch_mode)
        if not ask.can_drop:
            sentence = "the network has no condition to drop: self-consistency targets are not guided"
            self._say_once(logging.INFO, sentence)
        elif ask.zeroes:
            sentence = "the network takes no p_unconditional: without condition means conditions at zero"
            self._say_once(logging.INFO, sentence)
        return ask

    def _target(
        self, ask: ConditionedNetwork, x_t: State, t: Tensor, h: Tensor, draws: ShortCutDraws, index: Tensor | None
    ) -> Any:
        """The self-consistency target of the objects in `index`, by the network itself in its present mode."""
        num, num_guided = len(t), int(draws.n_cfg)
        if num_guided > num:
            raise ConfigError(f"n_cfg of the draws is {num_guided} of {num} objects", remedy="draw for these data")
        told = h
        if draws.use_fm_target:
            told = torch.zeros_like(h)
        elif self.anchor_smallest_step:
            told = torch.where(h == SMALLEST, torch.zeros_like(h), h)
        all_guided = num_guided == num and not isinstance(x_t, Tensor)
        return mean_of_two_steps(
            ask,
            x_t,
            t,
            h,
            told=told,
            index=index,
            num_guided=num_guided,
            strength=self.self_consistency_cfg_strength,
            modalities=self._guided_modalities(x_t) if all_guided else None,
            only=h == SMALLEST if self.cfg_only_smallest_step else None,
        )

    def _guided_modalities(self, x: State) -> set[str]:
        assert not isinstance(x, Tensor)
        unknown = sorted(set(self.cfg_modalities) - set(x))
        if unknown:
            raise KeyError(f"cfg_modalities names {unknown}, the data have {sorted(x)}: name some of these")
        return set(self.cfg_modalities)

    # Sampling

    def _told_step(self, steps: int) -> Callable[[torch.device], dict[str, Tensor]]:
        d = 0.0 if self.no_shortcut or steps >= UNTRAINED_STEPS else 1 / steps
        if d and self.rescale_t not in (0, 1):
            self._say_once(
                logging.WARNING,
                f"rescale_t {self.rescale_t} makes steps of unequal size, and the network is told the equal one: for "
                "few steps set rescale_t to 1",
            )
        return lambda device: {"d": self._scaled(d, device)}


def _of_first_rank(seed: int) -> int:
    """A seed of 64 bits, signed or not, as rank 0 has it: its bytes as a tensor, which nothing unpickles."""
    data = torch.tensor(list((seed % 2**64).to_bytes(8, "little")), dtype=torch.uint8)
    if dist.get_backend() == "nccl":
        data = data.cuda()
    dist.broadcast(data, src=0)
    return int.from_bytes(bytes(data.tolist()), "little")


def _take(state: Any, index: Tensor | None) -> Any:
    """The objects of an index; the state itself for all."""
    return state if index is None else map_state(lambda x: x[index], state)
