"""Which samples come when: a function of (seed, epoch), cut into steps, micro-batches and ranks.

The cursor is two integers, (epoch, index): the next position in that epoch's order. It moves by whole optimizer
steps, so continuing from it gives the same batches with any number of loader workers. A step takes
batch_size x micro-batches x ranks positions; what is left at the end of an epoch is a step of its own with its true
size, or dropped where the loss is one over all ranks. In such a step a rank may have no sample in a micro-batch: it
gets the micro-batch's first one as padding, whose loss counts zero, so that every rank takes part in every collective.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from stageline.config import TrainerConfig
from stageline.contract import SampleKey, Samples, StageTask
from stageline.errors import DataError
from stageline.objectives.step import seeded
from stageline.signals import ignore_signals
from stageline.stage import Stage


@dataclass(frozen=True)
class Cursor:
    """The next position: `index` in [0, samples of the epoch)."""

    epoch: int = 0
    index: int = 0


@dataclass(frozen=True)
class MicroBatch:
    """One rank's part of one micro-batch. padding: its only item counts zero."""

    items: tuple[SampleKey, ...]
    padding: bool


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step on one rank. num_samples: over all ranks. after: the cursor when it is done."""

    micro_batches: tuple[MicroBatch, ...]
    num_samples: int
    after: Cursor


def epoch_order(num_samples: int, seed: int, epoch: int) -> list[SampleKey]:
    """A permutation of the samples as a function of (seed, epoch)."""
    order: list[int] = torch.randperm(num_samples, generator=seeded("order", seed, epoch)).tolist()
    return [(epoch, index) for index in order]


@dataclass(frozen=True)
class Order:
    """The order of all epochs of one task for one rank.

    batch_size: samples per rank and micro-batch.
    accumulate: micro-batches per step.
    whole_groups: leave out what is left at the end of an epoch.
    """

    task: StageTask
    seed: int
    batch_size: int
    accumulate: int
    rank: int
    world_size: int
    whole_groups: bool = False

    @property
    def per_step(self) -> int:
        """Samples of a whole step, over all ranks."""
        return self.batch_size * self.accumulate * self.world_size

    def items(self, epoch: int) -> Sequence[SampleKey]:
        """The samples of an epoch in the family's own order, or else in ours."""
        own = self.task.batch_items(epoch)
        items = epoch_order(len(self.task.train_set), self.seed, epoch) if own is None else own
        if not self.whole_groups:
            return items
        whole = len(items) // self.per_step * self.per_step
        if not whole:
            raise DataError(
                f"epoch {epoch} has {len(items)} samples, fewer than the {self.per_step} of one step, and this stage's "
                "loss is one over all samples of a step",
                remedy="set trainer.batch_size smaller, or give more samples",
            )
        return items[:whole]

    def steps(self, cursor: Cursor, count: int) -> Iterator[StepPlan]:
        """The next `count` steps from a cursor on."""
        items = self.items(cursor.epoch) if count else ()
        for _ in range(count):
            group = items[cursor.index : cursor.index + self.per_step]
            assert group, f"epoch {cursor.epoch} has no position {cursor.index}"
            after = Cursor(cursor.epoch, cursor.index + len(group))
            if after.index >= len(items):
                after = Cursor(cursor.epoch + 1, 0)
                items = self.items(after.epoch)
            yield StepPlan(self._micro_batches(group), len(group), after)
            cursor = after

    def _micro_batches(self, group: Sequence[SampleKey]) -> tuple[MicroBatch, ...]:
        width = self.batch_size * self.world_size
        parts = []
        for start in range(0, len(group), width):
            chunk = group[start : start + width]
            own = tuple(chunk[self.rank :: self.world_size])
            parts.append(MicroBatch(own or (chunk[0],), padding=not own))
        return tuple(parts)

    def steps_of_epochs(self, epochs: int) -> int:
        """How many steps that many epochs are."""
        return sum(-(-len(self.items(epoch)) // self.per_step) for epoch in range(epochs))


def make_order(task: StageTask, settings: TrainerConfig, stage: Stage, *, seed: int, rank: int, size: int) -> Order:
    """The order of a stage on one of `size` ranks. settings: the stage's own.  seed: of the run."""
    return Order(
        task,
        seed,
        settings.batch_size,
        settings.accumulate_grad_batches,
        rank,
        size,
        whole_groups=stage.loss_over == "ranks",
    )


class _Batches(Sampler[list[SampleKey]]):
    """The micro-batches of the steps to come, one after the other."""

    def __init__(self, order: Order, cursor: Cursor, count: int) -> None:
        self._order, self._cursor, self._count = order, cursor, count

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in self._order.steps(self._cursor, self._count):
            for part in step.micro_batches:
                yield list(part.items)


def quiet_worker(worker: int) -> None:
    """Loader workers leave signals to the loop: it finishes its step and then ends them."""
    del worker
    ignore_signals((signal.SIGINT, signal.SIGTERM))


def load_batches(
    samples: Samples,
    batches: Sampler[list[Any]] | list[list[Any]],
    collate: Callable[[Sequence[Any]], Any],
    *,
    num_workers: int,
    pin: bool,
) -> DataLoader[Any]:
    """A loader over given lists of items; any number of workers gives the same batches in the same order."""
    return DataLoader(
        samples,  # type: ignore[arg-type]  # torch asks for its own class and uses length and index alone
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin,
        worker_init_fn=quiet_worker,
    )


def training_batches(order: Order, cursor: Cursor, count: int, *, num_workers: int, pin: bool) -> DataLoader[Any]:
    """The loader of a whole (rest of a) stage: one iteration over it, across epochs."""
    batches = _Batches(order, cursor, count)
    return load_batches(order.task.train_set, batches, order.task.collate, num_workers=num_workers, pin=pin)
