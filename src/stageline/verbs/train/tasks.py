"""A task of one's own through the loop: no run, no checkpoint, no identity by which it could be reused or continued.

For models and data that exist in Python only. What is trained is the task's module, in place.
"""

from __future__ import annotations

import torch

from stageline.config import TrainerConfig
from stageline.contract import StageTask
from stageline.errors import InterruptedRunError
from stageline.stage import Stage, Trains
from stageline.trainer.assembly import assemble
from stageline.trainer.interruption import StopRequest
from stageline.trainer.loop import FitResult, fit
from stageline.trainer.order import make_order
from stageline.trainer.progress import ProgressView
from stageline.trainer.ranks import Ranks
from stageline.trainer.recorder import Recorder
from stageline.trainer.refusals import refuse_data, refuse_settings
from stageline.trainer.state import TrainingState


def train_task(task: StageTask, stage: Stage, settings: TrainerConfig, *, trains: Trains, seed: int = 0) -> FitResult:
    """Train a task for as long as its settings or its stage say; every rank calls this.

    stage: what is told of it, and its default length.  settings: of the loop; what concerns checkpoints has no effect.
    trains: which of the module's parameters do.  seed: of order and draws.
    The module ends with the optimizer's weights; averaged ones are used in validation alone. Raises what the loop
    raises; InterruptedRunError when asked to stop, with the module as it then is.
    """
    refuse_settings(settings, has_cuda=torch.cuda.is_available())
    refuse_data(task.train_set, task.val_set)
    torch.set_num_threads(settings.threads)
    ranks = Ranks(settings)
    parts = assemble(task, settings, ranks, stage, trains)
    steps = settings.max_steps or stage.steps
    if settings.max_steps is None:
        order = make_order(task, settings, stage, seed=seed, rank=ranks.rank, size=ranks.size)
        steps = steps or order.steps_of_epochs(settings.max_epochs or stage.epochs or 1)
    assert steps is not None, "a stage has steps or epochs"
    recorder = Recorder(view=ProgressView(stage.name, steps) if ranks.is_first else None)
    with StopRequest(settings.max_seconds) as stop:
        try:
            return fit(parts, seed=seed, steps=steps, recorder=recorder, saver=None, stop=stop, state=TrainingState())
        except InterruptedRunError as error:
            raise InterruptedRunError(
                f"training of {stage.name!r} was stopped by {stop.reason or 'another rank'}; nothing was saved",
                remedy="save the module, or train it as a stage of a run",
            ) from error
        finally:
            recorder.close()
            ranks.close()
