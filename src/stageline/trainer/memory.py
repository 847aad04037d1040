"""Running out of memory, told in one line with the setting to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stageline.config import TrainerConfig
from stageline.errors import OutOfMemoryError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is the device's or the host's allocator giving up."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator: can't allocate memory" in text or "CUDA out of memory" in text
    )


@contextmanager
def memory_advice(settings: TrainerConfig, where: str) -> Iterator[None]:
    """Turn an allocator's error inside the block into OutOfMemoryError. where: `step 12`, `validation`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        batch, accumulate = settings.batch_size, settings.accumulate_grad_batches
        if batch > 1:
            remedy = (
                f"set trainer.batch_size={batch // 2} and trainer.accumulate_grad_batches={accumulate * 2}: "
                "the same step in smaller parts"
            )
        elif settings.precision == "32-true":
            remedy = "set trainer.precision=bf16-mixed, or trainer.strategy=fsdp2 on more trainer.processes"
        else:
            remedy = "set trainer.strategy=fsdp2 on more trainer.processes, or make model or samples smaller"
        raise OutOfMemoryError(
            f"out of memory in {where} with trainer.batch_size={batch}, "
            f"trainer.accumulate_grad_batches={accumulate}, trainer.precision={settings.precision}",
            remedy=remedy,
        ) from error
