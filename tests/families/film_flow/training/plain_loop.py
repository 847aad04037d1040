"""A training loop of twenty lines over a StageTask: what the trainer does, without everything around it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from stageline.families.film_flow.task import FilmFlowTask
from stageline.layers.ema import Ema
from stageline.objectives.step import StepContext, seeded
from stageline.trainer.order import epoch_order
from stageline.trainer.parameters import make_optimizer, set_learning_rate
from stageline.trainer.schedule import learning_rate_factor


@dataclass(frozen=True)
class Trained:
    """A trained task. losses: mean loss of every step.  averaged: the model with its averaged weights inside."""

    task: FilmFlowTask
    losses: list[float]
    averaged: Callable[[], AbstractContextManager[None]]


def train(task: FilmFlowTask, steps: int) -> Trained:
    """Train a task with its config's own settings, without accumulation."""
    settings, seed = task.config.trainer, task.config.seed
    names = [name for name, _ in task.model.named_parameters()]
    optimizer = make_optimizer(task.model, task.parameter_groups(), names, settings)
    ema = Ema(task.model, names, settings.ema_decay)
    items: list[tuple[int, int]] = []
    losses, epoch = [], 0
    task.set_train_mode(task.model)
    for step in range(steps):
        if not items:
            items, epoch = epoch_order(len(task.train_set), seed, epoch), epoch + 1  # type: ignore[arg-type]
        batch = task.collate([task.train_set[item] for item in items[: settings.batch_size]])
        items = items[settings.batch_size :]
        task.advance(step, steps)
        set_learning_rate(optimizer, settings.learning_rate * learning_rate_factor(step, steps, settings))
        loss = task.loss(task.model, batch, StepContext(step, step / steps, seeded("step", seed, step)))
        mean = loss.sum / loss.weight
        optimizer.zero_grad()
        mean.backward()
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), settings.gradient_clip_val)
        optimizer.step()
        ema.update(task.model)
        losses.append(float(mean.detach()))
    return Trained(task, losses, lambda: ema.applied(task.model))
