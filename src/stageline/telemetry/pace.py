"""How long a training step takes: what it costs and what such steps took on one kind of device. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepWork:
    """What one optimizer step costs, for a plan before anything was recorded.

    passes: micro-batches.  amount: of one of them, in the unit of the family's rates (operations, say, or activations).
    """

    passes: int
    amount: float


@dataclass(frozen=True)
class StepRate:
    """What steps took on one kind of device.

    per_pass: seconds of a micro-batch however small.  per_amount: seconds of one unit of `StepWork.amount`.
    up_to: the largest amount of a micro-batch that was measured.  device: where, in words.
    """

    per_pass: float
    per_amount: float
    up_to: float
    device: str

    def seconds(self, work: StepWork) -> float | None:
        """Of one optimizer step; None for micro-batches more than four times as large as any that was measured."""
        if work.amount > 4 * self.up_to:
            return None
        return work.passes * (self.per_pass + self.per_amount * work.amount)
