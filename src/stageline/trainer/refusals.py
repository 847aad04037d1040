"""What is refused before a stage starts: settings that this machine can't run, tasks without samples."""

from __future__ import annotations

from collections.abc import Sized

from stageline.config import TrainerConfig
from stageline.errors import ConfigError, DataError, Faults


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


def refuse_data(train_set: Sized, val_set: Sized) -> None:
    """Raise for sets without samples."""
    faults = Faults(DataError, "data of the stage", "prepare data with at least one sample in each split")
    for name, samples in (("training", train_set), ("validation", val_set)):
        if len(samples) == 0:
            faults.add(f"the {name} set has no sample")
    faults.raise_if_any()
