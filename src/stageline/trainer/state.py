"""Counters of a stage in training: what, beside tensors, an exact resume needs (`training/state.json`)."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from stageline.checkpoint.metadata import BestRecord
from stageline.config import Settings
from stageline.errors import CheckpointError


class TrainingState(Settings):
    """Where a stage stands between two optimizer steps. Frozen: a step makes a new one."""

    step: int = Field(default=0, ge=0)
    """Optimizer steps done, skipped ones included."""
    epoch: int = Field(default=0, ge=0)
    index: int = Field(default=0, ge=0)
    """(epoch, index) is the data cursor: the next position in that epoch's order."""
    num_samples: int = Field(default=0, ge=0)
    """Samples consumed by all ranks."""
    bad_steps: int = Field(default=0, ge=0)
    bad_in_a_row: int = Field(default=0, ge=0)
    ema_updates: int = Field(default=0, ge=0)
    best: BestRecord | None = None
    validation_due: bool = False
    """The step's validation was put off by a request to stop and is made first thing on resume."""
    seconds: float = Field(default=0.0, ge=0)
    """Time spent in training, earlier attempts included."""
    scaler: dict[str, Any] | None = None
    """State of fp16's loss scaler."""


def state_from_json(data: bytes, where: str) -> TrainingState:
    """Read what `model_dump(mode="json")` gave as JSON. where: the file's URI, for the error."""
    try:
        return TrainingState.model_validate_json(data)
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise CheckpointError(
            f"{where}: no training state of this version: {lines}", remedy="resume from another checkpoint"
        ) from error
