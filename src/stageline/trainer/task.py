"""What the loop asks of a stage that is built and ready; a family's `StageTask` has this shape.

The loop is a stranger to families, so the shape is repeated here and joined to theirs under the type checker in
`stageline.verbs.train`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from stageline.config import TrainerConfig
from stageline.errors import ConfigError, DataError, Faults
from stageline.objectives.step import StageLoss, StepContext, ValidationContext

SampleKey = tuple[int, int]
"""(epoch, index) of one training sample."""


class Group(Protocol):
    """Parameters with one learning-rate factor and one decay rule."""

    @property
    def name(self) -> str: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def lr_factor(self) -> float: ...
    @property
    def decay(self) -> bool: ...


class Samples(Protocol):
    """A set of samples: training sets are indexed by a `SampleKey`, validation sets by an int."""

    def __len__(self) -> int: ...
    def __getitem__(self, item: Any) -> Any: ...


class Task(Protocol):
    """One stage, built: model, data, loss, validation. See `stageline.contract.StageTask` for the promises."""

    model: nn.Module

    @property
    def train_set(self) -> Any: ...
    @property
    def val_set(self) -> Any: ...
    def collate(self, samples: Sequence[Any]) -> Any: ...
    def batch_items(self, epoch: int) -> Sequence[SampleKey] | None: ...
    def loss(self, model: nn.Module, batch: Any, context: StepContext) -> StageLoss: ...
    def parameter_groups(self) -> Sequence[Group]: ...
    def set_train_mode(self, model: nn.Module) -> None: ...
    def advance(self, step: int, steps: int) -> None: ...
    def validation_key(self, index: int) -> Any: ...
    def validate(
        self, model: nn.Module, batch: Any, context: ValidationContext
    ) -> Mapping[str, tuple[float, float]]: ...
    def shard_units(self) -> Sequence[nn.Module]: ...
    def facts(self) -> dict[str, Any]: ...


def refuse_settings(settings: TrainerConfig, *, has_cuda: bool) -> None:
    """Raise for settings that cannot work on this machine, before anything is started or read."""
    faults = Faults(ConfigError, "trainer", "change the named settings")
    cuda = settings.accelerator == "cuda" or (settings.accelerator == "auto" and has_cuda)
    if settings.accelerator == "cuda" and not has_cuda:
        faults.add("accelerator: 'cuda' is asked for and torch sees no GPU; use cpu or auto")
    if settings.precision == "16-mixed" and not cuda:
        faults.add("precision: '16-mixed' needs a GPU, this is a CPU; use bf16-mixed or 32-true")
    if settings.precision == "16-mixed" and settings.strategy == "fsdp2":
        faults.add("precision: '16-mixed' cannot be scaled over shards; use bf16-mixed with strategy=fsdp2")
    faults.raise_if_any()


def refuse_data(task: Task) -> None:
    """Raise for a task without samples."""
    faults = Faults(DataError, "data of the stage", "prepare data with at least one sample in each split")
    for name, samples in (("training", task.train_set), ("validation", task.val_set)):
        if len(samples) == 0:
            faults.add(f"the {name} set has no sample")
    faults.raise_if_any()
