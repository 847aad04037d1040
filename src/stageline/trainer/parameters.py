"""What trains: parameters chosen by the stage's patterns, the optimizer over them, and its state by parameter name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from stageline.config import TrainerConfig, nearest
from stageline.errors import CheckpointError, ConfigError, Faults
from stageline.layers.parameter_groups import ParameterGroup
from stageline.stage import Trains


def freeze_untrained(model: nn.Module, trains: Trains, where: str) -> tuple[str, ...]:
    """Freeze every parameter that does not train; the names of those that do, in the model's order.

    trains: the stage's patterns.
    where: what an error calls them, for example `stage film`.

    ConfigError names every pattern that matches no parameter, and says where nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    faults = Faults(ConfigError, f"{where}: trains", "mend the stage's patterns or the model they name")
    for word, patterns in (("", trains.include), ("exclude ", trains.exclude)):
        faults.extend(f"{word}{fault}" for fault in unmatched(patterns, names))
    trained = tuple(name for name in names if trains.matches(name))
    if not faults.found and not trained:
        faults.add(f"include {list(trains.include)} without {list(trains.exclude)} leaves no parameter")
    faults.raise_if_any()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in set(trained))
        if not parameter.requires_grad:
            parameter.grad = None
    return trained


def unmatched(patterns: Iterable[str], names: Collection[str]) -> list[str]:
    """A sentence for each `fnmatch` pattern that matches none of the names of parameters."""
    lines = []
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = nearest(pattern.rstrip(".*"), {name.split(".")[0] for name in names} | set(names))
            lines.append(f"{pattern!r} matches none of {len(names)} parameters" + (f"; near: {near!r}" if near else ""))
    return lines


def frozen_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The largest modules that have parameters of which none trains."""
    for child in model.children():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            yield child
        else:
            yield from frozen_modules(child)


def check_groups(groups: Sequence[ParameterGroup], trained: Sequence[str]) -> None:
    """Every trained parameter stands in exactly one group, and nothing else does."""
    faults = Faults(ConfigError, "parameter groups", "mend `parameter_groups` of the family's task")
    seen: dict[str, str] = {}
    known = set(trained)
    for group in groups:
        for name in group.names:
            if name in seen:
                faults.add(f"{name!r} stands in {seen[name]!r} and {group.name!r}")
            if name not in known:
                faults.add(f"{name!r} in {group.name!r} does not train in this stage")
            seen[name] = group.name
    faults.extend(f"{name!r} trains and stands in no group" for name in trained if name not in seen)
    faults.raise_if_any()


def make_optimizer(
    model: nn.Module,
    groups: Sequence[ParameterGroup],
    trained: Sequence[str],
    settings: TrainerConfig,
    matrices: Sequence[str] = (),
) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) over the groups; each remembers its factor as `lr_factor`.

    matrices: patterns of weights between hidden layers; with `trainer.optimizer: muon` those among them that have two
        axes are Muon's. ConfigError for a pattern that matches nothing of the model, and where none of them trains.
    """
    check_groups(groups, trained)
    parameters = dict(model.named_parameters())
    chosen: set[str] = set()
    if settings.optimizer == "muon":
        faults = Faults(ConfigError, "matrices", "mend the stage's patterns or the model they name")
        faults.extend(unmatched(matrices, parameters))
        chosen = {n for n in trained if parameters[n].ndim == 2 and any(fnmatchcase(n, p) for p in matrices)}
        if not faults.found and not chosen:
            faults.add(f"trainer.optimizer=muon: no matrix that trains is among {list(matrices)}")
        faults.raise_if_any()

    def made(names: Iterable[str], group: ParameterGroup) -> list[dict[str, Any]]:
        own = [parameters[name] for name in names]
        decay = settings.weight_decay if group.decay else 0.0
        rate = settings.learning_rate * group.lr_factor
        return [{"params": own, "weight_decay": decay, "lr": rate, "lr_factor": group.lr_factor}] if own else []

    plain = [one for group in groups for one in made((n for n in group.names if n not in chosen), group)]
    options: dict[str, Any] = {"betas": settings.betas, "eps": settings.adam_eps}
    if not chosen:
        return torch.optim.AdamW(plain, **options)
    of_muon = [one for group in groups for one in made((n for n in group.names if n in chosen), group)]
    return MuonAndAdamW(of_muon, plain, **options)


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimizers as one: Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) and AdamW.

    Muon's step has the root mean square of AdamW's (arXiv:2502.16982, section 2.2), so that one rate serves both.
    Groups and state are those of both; a parameter's state has the slots of the one it belongs to.

    matrices, others: groups of each.  options: of AdamW.
    """

    def __init__(self, matrices: list[dict[str, Any]], others: list[dict[str, Any]], **options: Any) -> None:
        self._members: list[torch.optim.Optimizer] = [torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw")]
        if others:
            self._members.append(torch.optim.AdamW(others, **options))
        super().__init__([group for member in self._members for group in member.param_groups], {})
        for member in self._members:
            member.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # there is no closure
        """One step of both. closure: None."""
        assert closure is None
        for member in self._members:
            member.step()


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
