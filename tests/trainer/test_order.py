"""Which samples come when: every one once per epoch, on one rank, the same from any cursor on."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_family.task import ToyTask

from stageline.config import RunConfig, TrainerConfig
from stageline.errors import DataError
from stageline.stage import Stage, num_steps
from stageline.trainer.order import Cursor, Order, StepPlan, epoch_order, make_order, training_batches


class Sized(ToyTask):
    """A task of a given size, perhaps with an order of its own."""

    own: list[list[int]] | None = None

    def batch_items(self, epoch: int):
        return None if self.own is None else [(epoch, index) for index in self.own[epoch % len(self.own)]]


def orders(size: int, batch: int, accumulate: int, world: int) -> list[Order]:
    task = Sized(num_train=size)
    return [Order(task, 7, batch, accumulate, rank, world) for rank in range(world)]


shapes = st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))


@given(shapes)
def test_each_sample_counts_once_per_epoch(shape):
    size, batch, accumulate, world = shape
    ranks = orders(*shape)
    steps = ranks[0].steps_of_epochs(2)
    assert steps == 2 * -(-size // (batch * accumulate * world))
    plans: list[list[StepPlan]] = [list(order.steps(Cursor(), steps)) for order in ranks]
    seen = Counter(
        item
        for plan in plans
        for step in plan
        for part in step.micro_batches
        if not part.padding
        for item in part.items
    )
    assert seen == Counter((epoch, index) for epoch in range(2) for index in range(size))
    for together in zip(*plans, strict=True):
        assert len({len(step.micro_batches) for step in together}) == 1, "every rank joins every micro-batch"
        assert len({(step.num_samples, step.after) for step in together}) == 1
        true = sum(len(part.items) for step in together for part in step.micro_batches if not part.padding)
        assert true == together[0].num_samples <= batch * accumulate * world
        assert all(len(part.items) == 1 for step in together for part in step.micro_batches if part.padding)
        for number in range(len(together[0].micro_batches)):
            parts = [step.micro_batches[number] for step in together]
            assert not parts[0].padding
            assert all(len(part.items) <= batch for part in parts)
    assert plans[0][-1].after == Cursor(2, 0)


@given(shapes, st.integers(0, 30))
def test_going_on_from_a_cursor_gives_the_rest(shape, done):
    order = orders(*shape)[-1]
    whole = list(order.steps(Cursor(), done + 5))
    cursor = whole[done - 1].after if done else Cursor()
    assert list(order.steps(cursor, 5)) == whole[done:]


def test_order_is_a_function_of_seed_and_epoch():
    assert epoch_order(50, 1, 2) == epoch_order(50, 1, 2)
    assert len({tuple(index for _, index in epoch_order(50, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_the_order_does_not_depend_on_how_it_is_cut():
    def flat(batch: int, accumulate: int, world: int) -> list[tuple[int, int]]:
        plans = [list(order.steps(Cursor(), 4)) for order in orders(24, batch, accumulate, world)]
        return [
            item
            for together in zip(*plans, strict=True)
            for item in sorted(i for step in together for part in step.micro_batches for i in part.items)
        ]

    assert flat(8, 1, 1) == flat(2, 4, 1) == flat(2, 2, 2) == flat(1, 2, 4)


def test_a_family_may_order_its_own_epochs():
    task = Sized(num_train=4)
    task.own = [[3, 2, 1, 0], [0, 1]]
    order = Order(task, 0, 3, 1, 0, 1)
    plans = list(order.steps(Cursor(), 5))
    assert [part.items for step in plans for part in step.micro_batches] == [
        ((0, 3), (0, 2), (0, 1)),
        ((0, 0),),
        ((1, 0), (1, 1)),
        ((2, 3), (2, 2), (2, 1)),
        ((2, 0),),
    ]
    assert order.steps_of_epochs(2) == 3


@given(shapes)
def test_a_loss_over_ranks_sees_whole_groups_alone(shape):
    """As many steps as the plan counts, every one of them full on every rank."""
    size, batch, accumulate, world = shape
    stage = Stage("x", objective="o", metric="m", epochs=2, loss_over="ranks")
    settings = TrainerConfig(batch_size=batch, accumulate_grad_batches=accumulate, nodes=world)
    ranks = [make_order(Sized(num_train=size), settings, stage, seed=7, rank=rank, size=world) for rank in range(world)]
    counted = num_steps(RunConfig(family="toy", trainer=settings), stage, size)
    if not counted:
        with pytest.raises(DataError, match=f"epoch 0 has {size} samples, fewer than"):
            ranks[0].steps_of_epochs(2)
        return
    assert [order.steps_of_epochs(2) for order in ranks] == [counted] * world
    for order in ranks:
        parts = [part for step in order.steps(Cursor(), counted) for part in step.micro_batches]
        assert {(len(part.items), part.padding) for part in parts} == {(batch, False)}


def test_any_number_of_workers_gives_the_same_batches():
    order = Order(ToyTask(num_train=11), 5, 2, 2, 0, 1)
    batches = [
        [batch["x"] for batch in training_batches(order, Cursor(0, 4), 6, num_workers=workers, pin=False)]
        for workers in (0, 1, 2)
    ]
    assert len(batches[0]) == len(batches[1]) == len(batches[2]) == 12
    for one, two, three in zip(*batches, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
