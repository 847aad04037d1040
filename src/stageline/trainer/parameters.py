"""What trains: parameters chosen by the stage's patterns, the optimizer over them, and its state by parameter name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from stageline.config import TrainerConfig, nearest
from stageline.errors import CheckpointError, ConfigError, Faults
from stageline.stage import Stage
from stageline.trainer.task import Group


def freeze_untrained(model: nn.Module, stage: Stage) -> tuple[str, ...]:
    """Freeze every parameter that no `trains` pattern matches; the names of those that train, in the model's order."""
    names = [name for name, _ in model.named_parameters()]
    faults = Faults(ConfigError, f"stage {stage.name}: trains", "mend the stage's patterns or the model they name")
    for pattern in stage.trains:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = nearest(pattern.rstrip(".*"), {name.split(".")[0] for name in names} | set(names))
            faults.add(f"{pattern!r} matches none of {len(names)} parameters" + (f"; near: {near!r}" if near else ""))
    faults.raise_if_any()
    trained = []
    for name, parameter in model.named_parameters():
        trains = any(fnmatchcase(name, pattern) for pattern in stage.trains)
        parameter.requires_grad_(trains)
        if not trains:
            parameter.grad = None
        else:
            trained.append(name)
    return tuple(trained)


def check_groups(groups: Sequence[Group], trained: Sequence[str]) -> None:
    """Every trained parameter stands in exactly one group, and nothing else does."""
    faults = Faults(ConfigError, "parameter groups", "mend `parameter_groups` of the family's task")
    seen: dict[str, str] = {}
    for group in groups:
        for name in group.names:
            if name in seen:
                faults.add(f"{name!r} stands in {seen[name]!r} and {group.name!r}")
            if name not in set(trained):
                faults.add(f"{name!r} in {group.name!r} does not train in this stage")
            seen[name] = group.name
    faults.extend(f"{name!r} trains and stands in no group" for name in trained if name not in seen)
    faults.raise_if_any()


def make_optimizer(
    model: nn.Module, groups: Sequence[Group], trained: Sequence[str], settings: TrainerConfig
) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) over the groups; each remembers its factor as `lr_factor`."""
    check_groups(groups, trained)
    parameters = dict(model.named_parameters())
    return torch.optim.AdamW(
        [
            {
                "params": [parameters[name] for name in group.names],
                "weight_decay": settings.weight_decay if group.decay else 0.0,
                "lr": settings.learning_rate * group.lr_factor,
                "lr_factor": group.lr_factor,
            }
            for group in groups
            if group.names
        ],
        betas=settings.betas,
        eps=settings.adam_eps,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its factor times `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as `<slot>/<parameter name>`; a parameter that had no gradient yet has none."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for slot, value in sorted(optimizer.state.get(parameter, {}).items()):
            assert isinstance(value, Tensor), f"{slot} of {name} is a {type(value).__name__}"
            tensors[f"{slot}/{name}"] = value
    return tensors


def fill_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Make empty state for `<slot>/<parameter name>` names, like the parameters in shape and sharding; returns it.

    Loading sharded state needs tensors to load into.
    """
    tensors: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    for key in names:
        slot, _, name = key.partition("/")
        parameter = parameters.get(name)
        if parameter is None:
            raise CheckpointError(f"optimizer state {key!r} belongs to no parameter of this model")
        scalar = slot == "step"
        value = torch.zeros(()) if scalar else torch.zeros_like(parameter, memory_format=torch.preserve_format)
        optimizer.state[parameter][slot] = value.detach()
        tensors[key] = optimizer.state[parameter][slot]
    return tensors


def count_parameters(model: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """How many tensors and single numbers the named parameters are."""
    parameters: dict[str, Any] = dict(model.named_parameters())
    return {"tensors": len(names), "parameters": sum(parameters[name].numel() for name in names)}
