"""The ShortCut objective of a config, its guidance, and its draws and means where a batch holds several scenes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stageline.families.sparse_structure.shortcut.draws import ShortCutDraws
from stageline.families.sparse_structure.shortcut.flow_matching import lognorm_sampler, window_sampler
from stageline.families.sparse_structure.shortcut.guidance import ClassifierFreeGuidance
from stageline.families.sparse_structure.shortcut.shortcut import ShortCut
from stageline.objectives.step import StepContext

if TYPE_CHECKING:
    from stageline.families.sparse_structure.config import SparseStructureConfig

COPIED = (
    *("sigma_min", "time_scale", "self_consistency_prob", "shortcut_loss_weight", "self_consistency_cfg_strength"),
    *("ratio_cfg_samples_in_self_consistency_target", "fm_in_shortcut_target_prob", "fm_eps_max", "batch_mode"),
    *("cfg_modalities", "t_d_sampling", "anchor_smallest_step", "shared_draws", "shared_draws_from"),
    *("shared_draws_prob", "cfg_only_smallest_step"),
)
"""Keys of `objective` that are arguments of `ShortCut` by the same name."""


def _no_network(*_args: Any, **_keywords: Any) -> Any:
    raise AssertionError("the network is given at call time")


def make_shortcut(config: SparseStructureConfig) -> ShortCut:
    """The objective; its network is given with each call."""
    objective = config.objective
    normal = {"mean": objective.time_mean, "std": objective.time_std}
    times: Any = partial(lognorm_sampler, **normal)
    if objective.time_window is not None:
        times = partial(window_sampler, *objective.time_window, objective.time_window_share, **normal)
    return ShortCut(
        _no_network,
        training_time_sampler_fn=times,
        loss_weights=1.0 if objective.loss_weights is None else objective.loss_weights,
        seed_or_generator=config.seed,
        **{name: getattr(objective, name) for name in COPIED},
    )


def make_guidance(config: SparseStructureConfig) -> ClassifierFreeGuidance:
    """The wrapper that leaves conditions out; its network is given by `around`."""
    guidance = config.objective.guidance
    return ClassifierFreeGuidance(
        _no_network,
        p_unconditional=guidance.p_unconditional,
        strength=guidance.strength,
        unconditional_handling=guidance.unconditional_handling,
        interval=guidance.interval,
    )


def scene_draws(
    shortcut: ShortCut,
    x1: Mapping[str, Tensor],
    sizes: Sequence[int],
    source: StepContext | Sequence[torch.Generator],
    network: Callable[..., Any],
    *,
    self_consistent: bool | None = None,
) -> ShortCutDraws:
    """Draws for several scenes that take one branch together: times, steps and noise are each scene's own.

    x1: modality -> (N, ...) of all objects.  sizes: objects of each scene.
    source: of a training step, whose decisions all scenes share; or one generator for each scene.
    network: as for `sample_draws`.  self_consistent: which branch, where no coin says it.
    """
    draws, start = [], 0
    for number, size in enumerate(sizes):
        part = {name: x[start : start + size] for name, x in x1.items()}
        start += size
        if isinstance(source, StepContext):
            # The same numbers for each scene: whoever reads first leaves nothing to the others.
            shared = torch.Generator()
            shared.set_state(source.shared.get_state())
            found = shortcut.sample_draws(
                part, rng=source.rng, shared=shared, progress=source.progress, reverse_fn=network
            )
        else:
            found = shortcut.sample_draws(
                part, rng=source[number], reverse_fn=network, self_consistent=self_consistent, guided=False
            )
        draws.append(found)
    first = draws[0]
    noises: list[Any] = [one.x0 for one in draws]
    return ShortCutDraws(
        t=torch.cat([one.t for one in draws]),
        h=torch.cat([one.h for one in draws]),
        x0={name: torch.cat([noise[name] for noise in noises]) for name in sorted(x1)},
        eps=torch.cat([one.eps for one in draws]),
        n_cfg=sum(one.n_cfg for one in draws),
        use_fm_target=first.use_fm_target,
        unconditional=first.unconditional,
    )


def scene_mean(sizes: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean squared error as a mean over scenes of means over their objects. sizes: objects of each scene."""

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        error = (prediction - target).square().flatten(1).mean(1)
        return torch.stack([scene.mean() for scene in torch.split(error, list(sizes))]).mean()

    return loss
