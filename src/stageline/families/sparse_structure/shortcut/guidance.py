"""The guidance wrapper around a network: conditions that are dropped while it trains, two passes while it samples.

Around a network `forward(x, t, *conditions, d=None, **conditions)`. In training mode one coin per call drops the
condition of the whole call; in eval mode the answer is (1 + s) conditional - s unconditional (arXiv:2207.12598, and the
generator of facebookresearch/sam-3d-objects, whose defects with the step size and with times of several objects are not
reproduced). It has no tensors of its own; the network's names gain the prefix `backbone.`.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stageline.errors import ConfigError
from stageline.families.sparse_structure.model.flow import PreparedCondition
from stageline.objectives.guidance import guided_by_strength
from stageline.objectives.states import map_state

_log = logging.getLogger(__name__)

Handling = Literal["zeros", "discard", "drop_tensors", "add_flag"]
HANDLINGS: tuple[Handling, ...] = ("zeros", "discard", "drop_tensors", "add_flag")
NOT_CONDITIONS = frozenset({"d", "p_unconditional", "cfg", "scene_sizes"})
"""Keyword arguments of the network that say how it is asked, not about what: no handling touches them."""


class ClassifierFreeGuidance(nn.Module):
    """Classifier-free guidance around a network.

    backbone: `(x, t, *conditions, **conditions) -> velocities`, x and velocities of the same structure.
    p_unconditional: probability in [0, 1] that a call in training mode is made without its condition.
    strength: s of eval mode, 0 is the conditional answer alone; a number, or one per modality of the answer.
    unconditional_handling: what a call without condition is: tensor conditions are `zeros`; all conditions are left
        out (`discard`); tensor conditions are left out (`drop_tensors`); the network is told `cfg=True` (`add_flag`).
    interval: (low, high) times, in what the network is told (thousandths), inside of which eval mode guides, both
        included; or one pair per modality, for one strength or one each. None means never, whatever the strength.
    """

    def __init__(
        self,
        backbone: Callable[..., Any],
        p_unconditional: float = 0.1,
        strength: float | Mapping[str, float] = 3.0,
        unconditional_handling: Handling = "zeros",
        interval: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        faults = []
        if unconditional_handling not in HANDLINGS:
            faults.append(f"unconditional_handling {unconditional_handling!r}: one of {', '.join(HANDLINGS)}")
        if not 0 <= p_unconditional <= 1:
            faults.append(f"p_unconditional {p_unconditional!r}: a probability in [0, 1]")
        pairs = (
            {"": interval} if not isinstance(interval, Mapping) else {f" of {m}": pair for m, pair in interval.items()}
        )
        faults += [
            f"interval{of} {pair!r}: (low, high)"
            for of, pair in pairs.items()
            if pair is not None and not _is_pair(pair)
        ]
        if isinstance(interval, Mapping) and isinstance(strength, Mapping) and set(interval) != set(strength):
            faults.append(f"interval for {sorted(interval)}, strength for {sorted(strength)}: the same modalities")
        if faults:
            raise ConfigError(f"{type(self).__name__} cannot be built: {'; '.join(faults)}", remedy="mend them")
        self.backbone = backbone
        self.p_unconditional = p_unconditional
        self.strength = strength
        self.unconditional_handling = unconditional_handling
        self.interval = interval
        self._forced: bool | None = None
        self._as_trained = False

    def around(self, backbone: Callable[..., Any]) -> ClassifierFreeGuidance:
        """The same guidance around another callable: a module wrapped for precision and sharding. No tensor is copied.

        backbone: as at construction. Later changes of strength or mode do not reach the copy.
        """
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other._modules.pop("backbone", None)
        other.__dict__.pop("backbone", None)
        # Not registered: the wrapped module keeps its own mode and place.
        other.__dict__["backbone"] = backbone
        return other

    @contextmanager
    def training_branch(self, unconditional: bool | None = None) -> Iterator[None]:
        """Calls inside are single passes as in training, whatever the mode.

        unconditional: whether they go without condition; None tosses the coin of training mode, and drops nothing in
            eval mode.
        """
        before = self._as_trained, self._forced
        self._as_trained, self._forced = True, unconditional
        try:
            yield
        finally:
            self._as_trained, self._forced = before

    def forward(self, x: Any, t: Tensor, *conditions: Any, **keywords: Any) -> Any:
        """Velocities, like x.

        x: mapping of modality -> (N, L, C), or one tensor.  t: 0-dim, (1,) or (N,), thousandths.
        conditions, keywords: of the network; RuntimeError where there is none and the handling is not `discard`.
        """
        return self._answer(x, t, conditions, keywords, None)

    def _answer(
        self, x: Any, t: Tensor, conditions: tuple[Any, ...], keywords: dict[str, Any], p_unconditional: float | None
    ) -> Any:
        if not conditions and not set(keywords) - NOT_CONDITIONS:
            if self.unconditional_handling != "discard":
                raise RuntimeError(
                    f"{type(self).__name__} was called without a condition, which only the handling 'discard' allows, "
                    f"not {self.unconditional_handling!r}; give the condition, or call the network itself"
                )
            return self.backbone(x, t, **keywords)
        if self.training or self._as_trained:
            if self._drops(p_unconditional):
                conditions, keywords = self.unconditional(conditions, keywords)
            return self.backbone(x, t, *conditions, **keywords)
        strength = self._strength_at(t)
        on = self.backbone(x, t, *conditions, **keywords)
        if strength is None:
            return on
        conditions, keywords = self.unconditional(conditions, keywords)
        off = self.backbone(x, t, *conditions, **keywords)
        if not isinstance(strength, Mapping):
            return map_state(lambda a, b: guided_by_strength(a, b, _broadcast(strength, a)), on, off)
        if isinstance(on, Tensor) or set(on) != set(strength):
            found = "one tensor" if isinstance(on, Tensor) else sorted(on)
            raise KeyError(
                f"strength or interval is given for {sorted(strength)}, the network answers {found}: name the same"
            )
        return {name: guided_by_strength(on[name], off[name], _broadcast(strength[name], on[name])) for name in on}

    def _drops(self, p_unconditional: float | None) -> bool:
        if p_unconditional is None and self._forced is not None:
            return self._forced
        if p_unconditional is None:
            p_unconditional = self.p_unconditional if self.training else 0.0
        # Upstream tosses even where the outcome is certain; its order of draws is kept.
        return random.random() < p_unconditional  # noqa: S311

    def unconditional(
        self, conditions: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(conditions, keywords) of the call without condition; keywords that are no conditions stay."""
        kept = {name: value for name, value in keywords.items() if name in NOT_CONDITIONS}
        given = {name: value for name, value in keywords.items() if name not in NOT_CONDITIONS}
        if self.unconditional_handling == "zeros":
            return tuple(_zeros(value) for value in conditions), {**_zeros(given), **kept}
        if self.unconditional_handling == "discard":
            return (), kept
        if self.unconditional_handling == "drop_tensors":
            return tuple(_without_tensors(list(conditions))), {**_without_tensors(given), **kept}
        return conditions, {**given, **kept, "cfg": True}

    def _strength_at(self, t: Tensor | float) -> Any:
        """The strength at these times: a number, or (N,) where it differs; per modality or for all; None where 0."""
        if self.interval is None:
            return None
        times = torch.as_tensor(t).flatten().tolist()
        if isinstance(self.interval, Mapping):
            intervals = self.interval
        elif isinstance(self.strength, Mapping):
            intervals = dict.fromkeys(self.strength, self.interval)
        else:
            strength = _inside(self.strength, self.interval, times)
            return strength if _active(strength) else None
        strengths = self.strength if isinstance(self.strength, Mapping) else dict.fromkeys(intervals, self.strength)
        each = {name: _inside(value, intervals[name], times) for name, value in strengths.items()}
        return each if any(_active(value) for value in each.values()) else None


class ClassifierFreeGuidanceWithExternalUnconditionalProbability(ClassifierFreeGuidance):
    """The same; in training mode the caller may say with which probability its call goes without condition.

    use_unconditional_from_flow_matching: stored for configs that name it; it changes nothing, as upstream.
    """

    def __init__(self, *args: Any, use_unconditional_from_flow_matching: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.use_unconditional_from_flow_matching = use_unconditional_from_flow_matching
        if use_unconditional_from_flow_matching:
            _log.debug("use_unconditional_from_flow_matching has no effect")

    def forward(
        self, x: Any, t: Tensor, *conditions: Any, p_unconditional: float | None = None, **keywords: Any
    ) -> Any:
        """Velocities, like x.

        p_unconditional: in [0, 1], takes the place of the wrapper's own in training mode; eval mode ignores it.
        """
        return self._answer(x, t, conditions, keywords, p_unconditional)


def guidance_of(network: Any) -> ClassifierFreeGuidance | None:
    """The guidance wrapper that a network is, below what wraps it for precision, sharding or compiling."""
    while network is not None and not isinstance(network, ClassifierFreeGuidance):
        network = inner_of(network)
    return network


def inner_of(network: Any) -> Any:
    """What a wrapper (`module` of DDP and Fabric, `_orig_mod` of torch.compile) holds; None for what is none."""
    if not isinstance(network, nn.Module):
        return None
    return getattr(network, "_orig_mod", None) or getattr(network, "module", None)


def zeroed(conditions: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Conditions with their tensors at zero, for a network without guidance; what is no condition stays."""
    given = {name: value if name in NOT_CONDITIONS else _zeros(value) for name, value in keywords.items()}
    return tuple(_zeros(value) for value in conditions), given


def has_tensors(value: Any) -> bool:
    """Whether there is a tensor in nested mappings, lists and tuples."""
    if isinstance(value, Mapping):
        return any(has_tensors(part) for part in value.values())
    if isinstance(value, list | tuple):
        return any(has_tensors(part) for part in value)
    return _is_tensor(value)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | PreparedCondition)


def _zeros(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _zeros(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_zeros(part) for part in value)
    if isinstance(value, PreparedCondition):
        return value.zeroed()
    return torch.zeros_like(value) if isinstance(value, Tensor) else value


def _without_tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_tensors(part) for name, part in value.items() if not _is_tensor(part)}
    if isinstance(value, list | tuple):
        return type(value)(_without_tensors(part) for part in value if not _is_tensor(part))
    return value


def _is_pair(interval: Any) -> bool:
    return isinstance(interval, Sequence) and len(interval) == 2 and interval[0] <= interval[1]


def _inside(strength: float, interval: tuple[float, float] | None, times: list[float]) -> float | Tensor:
    if interval is None:
        return 0.0
    low, high = interval
    at = [strength if low <= time <= high else 0.0 for time in times]
    return at[0] if len(set(at)) == 1 else torch.tensor(at)


def _active(strength: float | Tensor) -> bool:
    return bool((strength > 0).any()) if isinstance(strength, Tensor) else strength > 0


def _broadcast(strength: float | Tensor, answer: Tensor) -> float | Tensor:
    if not isinstance(strength, Tensor):
        return strength
    return strength.to(answer).reshape(-1, *[1] * (answer.dim() - 1))
