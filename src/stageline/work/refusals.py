"""What a stage's settings ask for and the stage does not allow; no torch."""

from __future__ import annotations

from stageline.config import TrainerConfig
from stageline.errors import ConfigError
from stageline.stage import Stage


def refuse_split(stage: Stage, trainer: TrainerConfig) -> None:
    """ConfigError where the settings split the loss of a stage over what it may not be split over.

    trainer: the stage's own settings.
    """
    found, remedies = [], []
    if stage.loss_over != "any" and trainer.accumulate_grad_batches > 1:
        found.append(f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} splits it over micro-batches")
        remedies.append("trainer.accumulate_grad_batches=1")
    if stage.loss_over == "none" and trainer.world_size > 1:
        found.append(
            f"trainer.nodes={trainer.nodes} x trainer.processes={trainer.processes} split it over {trainer.world_size} "
            "ranks"
        )
        remedies += ["trainer.nodes=1", "trainer.processes=1"]
    if found:
        rule = "may be split over ranks only" if stage.loss_over == "ranks" else "may not be split"
        raise ConfigError(
            f"the loss of stage {stage.name!r} {rule}, but {' and '.join(found)}",
            remedy=f"set {' '.join(remedies)}; raise trainer.batch_size instead",
        )


def refuse_optimizer(stage: Stage, trainer: TrainerConfig) -> None:
    """ConfigError where the settings ask for Muon, and the stage declares no matrices for it.

    trainer: the stage's own settings.
    """
    if trainer.optimizer == "muon" and not stage.matrices:
        raise ConfigError(
            f"trainer.optimizer=muon: stage {stage.name!r} declares no matrices between hidden layers",
            remedy="set trainer.optimizer=adamw",
        )
