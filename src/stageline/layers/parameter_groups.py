"""Parameter groups of an optimizer: by decay rule, with factors on the learning rate where a family gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from stageline.errors import ConfigError, Faults

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning-rate factor and a decay rule.

    name: for metadata and messages.
    names: full parameter names.
    lr_factor: times `trainer.learning_rate`.
    decay: whether weight decay applies.
    """

    name: str
    names: tuple[str, ...]
    lr_factor: float = 1.0
    decay: bool = True


def group_parameters(
    model: nn.Module, *, undecayed: Sequence[str] = (), factors: Mapping[str, float] | None = None
) -> tuple[ParameterGroup, ...]:
    """Groups over the parameters that train: decay on all weights but those of norms, biases and what is named.

    model: what does not train in it stands in no group.
    undecayed: `fnmatch` patterns of further parameters without weight decay.
    factors: `fnmatch` pattern -> factor on the learning rate, > 0; the first pattern that matches a name counts, 1.0
        where none does.

    ConfigError names every pattern that matches no parameter of the model.
    """
    factors = factors or {}
    found: dict[tuple[float, bool], list[str]] = {(1.0, True): [], (1.0, False): []}
    used: set[str] = set()
    for prefix, module in model.named_modules():
        is_norm = "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(prefix, recurse=False):
            bare = [pattern for pattern in undecayed if fnmatchcase(name, pattern)]
            scaled = [pattern for pattern in factors if fnmatchcase(name, pattern)]
            used.update(bare, scaled)
            if parameter.requires_grad:
                decay = not (is_norm or bare or parameter.ndim < 2)
                found.setdefault((factors[scaled[0]] if scaled else 1.0, decay), []).append(name)
    faults = Faults(ConfigError, "parameter groups", "mend the patterns of the family's `parameter_groups`")
    faults.extend(f"{pattern!r} matches no parameter" for pattern in (*undecayed, *factors) if pattern not in used)
    faults.raise_if_any()
    return tuple(
        ParameterGroup(_name(factor, decay=decay), tuple(names), lr_factor=factor, decay=decay)
        for (factor, decay), names in found.items()
        if names
    )


def _name(factor: float, *, decay: bool) -> str:
    return ("decayed" if decay else "plain") + ("" if factor == 1.0 else f" x{factor:g}")
