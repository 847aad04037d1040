"""What passes between a family and the loop in one micro-batch: the context in, sums and weights out.

A loss is handed over as a sum and its weight (true samples or tokens), so that the loop can divide once, over all
micro-batches and ranks, and micro-batching never changes a result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class StageLoss:
    """Loss of one micro-batch.

    sum: scalar tensor with a graph, summed over samples (or tokens).
    weight: how many samples (or tokens) it sums over.
    parts: named parts for the log as (sum, count); a part the batch lacks has count 0, not value 0.

    Where the stage declares that its loss is one over all ranks (`loss_over="ranks"`), `sum` and `weight` are this
    rank's shares of the whole loss and of its weight.
    """

    sum: Tensor
    weight: float
    parts: Mapping[str, tuple[float | Tensor, float]] = field(default_factory=dict)


def of_one_rank(tensor: Tensor) -> Tensor:
    """What `StepContext.gather` is where there is one rank: the tensor itself."""
    return tensor


@dataclass(frozen=True)
class StepContext:
    """Where the loop stands. Randomness is a function of (seed, step, rank, micro-batch), not a state.

    step: optimizer steps finished before this one.
    progress: step / steps, in [0, 1).
    rng: a generator on the CPU; draw there and move, so that every device sees the same numbers.
    shared: the same, equal on every rank: f(seed, step, micro-batch).
    micro: number of the micro-batch in its step, from 0.
    gather: (n, ...) of this rank -> (sum of all n, ...) of all ranks in their order, with gradient; n may differ among
        ranks. A collective: every rank calls it equally often.
    """

    step: int
    progress: float
    rng: torch.Generator
    shared: torch.Generator = field(default_factory=torch.Generator)
    micro: int = 0
    gather: Callable[[Tensor], Tensor] = of_one_rank


def show_nobody(row: int, name: str, pixels: NDArray[np.uint8]) -> None:
    """What `ValidationContext.show` is where nobody looks on."""


@dataclass(frozen=True)
class ValidationContext:
    """Which samples a validation batch holds. Randomness is a function of (seed, sample): whatever the batch size, the
    order and the number of ranks, a sample meets the same random numbers.

    seed: of the run.  samples: (B,) indices into the validation set, in the order of the batch.
    num_shown: of how many rows, the first ones, pictures are wanted; 0 for most batches.
    show(row, name, pixels): takes a picture of such a row, (H, W) or (H, W, 3) uint8, for people who look on.
    """

    seed: int
    samples: tuple[int, ...]
    num_shown: int = 0
    show: Callable[[int, str, NDArray[np.uint8]], None] = show_nobody

    def rng(self, row: int) -> torch.Generator:
        """A fresh generator on the CPU for one sample of the batch; draw everything random about it from there.

        row: of the batch, in [0, B).
        """
        return seeded("validation", self.seed, self.samples[row])


def seeded(*parts: int | str) -> torch.Generator:
    """A CPU generator that is a function of its arguments: rng = f(seed, step, rank), f(seed, image id, member)."""
    text = "\x1f".join(str(part) for part in parts)
    value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") & (2**63 - 1)
    return torch.Generator().manual_seed(value)
