"""`train_scenes`: a data set of scenes and a network of the user's own through the loop, in Python.

The one place among the verbs that knows a family: the loop and the family's task are strangers to each other, and users
ask for both in one call. What it trains is no run; nothing is reused, continued or committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stageline.config import TrainerConfig
from stageline.errors import ConfigError
from stageline.stage import Trains
from stageline.verbs.train.tasks import train_task

if TYPE_CHECKING:
    from torch import nn

    from stageline.families.sparse_structure.data.scene_dataset import SceneDataset
    from stageline.families.sparse_structure.shortcut.shortcut import ShortCut
    from stageline.trainer.loop import FitResult

SETTINGS = TrainerConfig(batch_size=1, learning_rate=1e-4, weight_decay=0.01, schedule="constant", use_ema=False)
"""The optimizer of the scene-level guide."""


def train_scenes(
    dataset: SceneDataset,
    reverse_fn: nn.Module,
    *,
    validation: SceneDataset | None = None,
    shortcut: ShortCut | None = None,
    settings: TrainerConfig = SETTINGS,
    seed: int = 0,
) -> FitResult:
    """Train a network on scenes, one scene per micro-batch; also under torchrun.

    dataset: the scenes, perhaps a subclass that reads them elsewhere.
    reverse_fn: `forward(x_t, t, *conditions, d=None, **conditions)`; trained in place, what is frozen in it stays so.
    validation: scenes that the loss is measured on; None takes the training scenes.
    shortcut: the objective; None is scene mode on the grid, with both anchors.
    settings: of the loop; `accumulate_grad_batches` counts scenes per step and rank. 100 epochs where it has no length.
    """
    from stageline.families.sparse_structure.own_scenes import OWN_SCENES, OwnScenesTask
    from stageline.families.sparse_structure.shortcut.shortcut import ShortCut

    if settings.batch_size != 1:
        raise ConfigError(
            f"batch_size is {settings.batch_size}, and a scene is a batch by itself",
            remedy="say batch_size=1 and accumulate_grad_batches for more scenes in a step",
        )
    objective = shortcut or ShortCut(
        reverse_fn, batch_mode=True, t_d_sampling="grid", anchor_smallest_step=True, fm_eps_max=1 / 128
    )
    group = settings.accumulate_grad_batches * settings.world_size
    task = OwnScenesTask(dataset, validation or dataset, reverse_fn, objective, seed=seed, group=group)
    return train_task(task, OWN_SCENES, settings, trains=Trains(task.trained), seed=seed)
