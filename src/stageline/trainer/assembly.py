"""The parts of one stage put together on this rank: wrapped model, optimizer, average, in the order FSDP2 needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from stageline.config import TrainerConfig
from stageline.contract import Cast, StageTask
from stageline.errors import ConfigError, Faults
from stageline.layers.ema import Ema
from stageline.stage import Stage, Trains
from stageline.trainer.parameters import freeze_untrained, frozen_modules, make_optimizer, unmatched
from stageline.trainer.ranks import Ranks


@dataclass(frozen=True)
class Parts:
    """What a step works with.

    model: the wrapped module that is called.
    own: the task's module, whose names count.
    step_optimizer: the wrapped optimizer, whose `step` knows about precision.
    trained: names of the parameters that train.
    may_lack_gradient: patterns of those that the first steps may leave without a gradient.
    uncast: frozen tensors as they were loaded, on the CPU, where the model holds them in a smaller number format.
    """

    task: StageTask
    settings: TrainerConfig
    ranks: Ranks
    stage: Stage
    model: Any
    own: nn.Module
    optimizer: torch.optim.Optimizer
    step_optimizer: Any
    ema: Ema | None
    trained: tuple[str, ...]
    may_lack_gradient: tuple[str, ...] = ()
    uncast: dict[str, Tensor] = field(default_factory=dict)

    def as_loaded(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by name with those that were cast for training as they were loaded: what is saved."""
        return {name: self.uncast.get(name, tensor) for name, tensor in state.items()}

    def set_train_mode(self) -> None:
        """The task's train mode, with every module in eval mode in which nothing trains."""
        self.task.set_train_mode(self.model)
        for module in frozen_modules(self.own):
            module.eval()

    def hold_sync(self, hold: bool) -> AbstractContextManager[Any]:
        """Leave out the exchange of gradients: all micro-batches of a step but the last."""
        if not hold or self.ranks.size == 1:
            return nullcontext()
        context: AbstractContextManager[Any] = self.ranks.fabric.no_backward_sync(self.model)
        return context


def shard_function(task: StageTask) -> Callable[[nn.Module, Any], nn.Module]:
    """What FSDP2 does to the model: each of the task's units, then the root, over all ranks."""

    def shard(model: nn.Module, mesh: Any) -> nn.Module:
        data_mesh = mesh["data_parallel"]
        for unit in task.shard_units():
            fully_shard(unit, mesh=data_mesh, reshard_after_forward=True)
        # The root too: a validation ends with a forward, and what stays gathered would hide the shards from the
        # exchange of averaged weights and keep serving the old values.
        fully_shard(model, mesh=data_mesh, reshard_after_forward=True)
        return model

    return shard


def name_root(model: Any) -> None:
    """Tell FSDP2 which module is the root.

    Else it takes the first that runs, and a validation put off until the stage goes on may first call a unit by itself.
    torch has no public call for it.
    """
    model._get_fsdp_state()._lazy_init()


def assemble(
    task: StageTask,
    settings: TrainerConfig,
    ranks: Ranks,
    stage: Stage,
    trains: Trains | None = None,
    *,
    may_lack_gradient: tuple[str, ...] = (),
) -> Parts:
    """Freeze, wrap and build. The model must hold its starting weights already unless they are restored after.

    task: of the stage, on the CPU.
    settings: the stage's own.
    trains: what the family says trains; None takes the stage's own patterns.
    may_lack_gradient: patterns of trained parameters that the first steps may leave without a gradient.
    """
    trained = freeze_untrained(task.model, trains or Trains(stage.trains), f"stage {stage.name}")
    faults = Faults(ConfigError, f"stage {stage.name}: may_lack_gradient", "mend the family's patterns")
    faults.extend(unmatched(may_lack_gradient, trained))
    faults.raise_if_any()
    ranks.shard = shard_function(task)
    model = ranks.fabric.setup_module(task.model)
    if ranks.sharded:
        name_root(task.model)
    optimizer = make_optimizer(task.model, task.parameter_groups(), trained, settings, stage.matrices)
    step_optimizer = ranks.fabric.setup_optimizers(optimizer)
    ema = Ema(task.model, trained, settings.ema_decay) if settings.use_ema else None
    return Parts(
        task=task,
        settings=settings,
        ranks=ranks,
        stage=stage,
        model=model,
        own=task.model,
        optimizer=optimizer,
        step_optimizer=step_optimizer,
        ema=ema,
        trained=trained,
        may_lack_gradient=may_lack_gradient,
    )


@torch.no_grad()
def cast_frozen(parts: Parts, casts: Mapping[str, Cast]) -> None:
    """Hold frozen tensors in a smaller number format while the stage trains; after weights are loaded or restored.

    casts: `fnmatch` pattern of parameters and buffers -> format; the first pattern that matches a name counts.

    ConfigError for a pattern that matches nothing or something that trains, and where the model is sharded.
    """
    if not casts:
        return
    faults = Faults(ConfigError, f"stage {parts.stage.name}: casts", "mend the family's patterns")
    tensors = {**dict(parts.own.named_parameters()), **dict(parts.own.named_buffers())}
    faults.extend(unmatched(casts, tensors))
    chosen = {name: pattern for name in tensors for pattern in reversed(list(casts)) if fnmatchcase(name, pattern)}
    faults.extend(f"{name!r} trains and matches {chosen[name]!r}" for name in parts.trained if name in chosen)
    if parts.ranks.sharded:
        faults.add("a model that is sharded (trainer.strategy=fsdp2) holds one format only; use ddp")
    faults.raise_if_any()
    for name, pattern in chosen.items():
        tensor = tensors[name]
        if tensor.is_floating_point():
            parts.uncast[name] = tensor.detach().to("cpu", copy=True)
            tensor.data = tensor.data.to(getattr(torch, casts[pattern]))
