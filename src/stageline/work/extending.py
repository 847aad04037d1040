"""Training longer: a finished stage goes on under a new fingerprint, where its schedule allows that. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from stageline.checkpoint.layout import CheckpointRef, Survey
from stageline.config import RunConfig
from stageline.errors import ConfigError, PlanError, StagelineError
from stageline.work.differences import changes, expected_seconds
from stageline.work.work import StageWork, blocked

KEY = "trainer.extend"
LENGTH = ("max_steps", "max_epochs", "extend")
"""Keys of `trainer` in which a longer training differs from the one it goes on from."""
CONSTANT = ("constant", "constant_with_warmup")


def extend(work: StageWork, survey: Survey, fingerprint_of: Callable[[RunConfig], str]) -> StageWork | None:
    """The stage as one that goes on from its own finished training of the same settings but for the length.

    fingerprint_of: the stage's fingerprint with another config of its own.
    None where nothing of the stage was ever finished, so that there is nothing to go on from. Blocked where the
    learning rate of a longer training would have been another one from the start, where what is finished was trained
    with other settings, data or parents, or where it is no shorter.
    """
    finished = [ref for ref in survey.refs if ref.metadata.final]
    if not finished:
        return None
    faults = schedule_faults(work.config)
    if faults:
        return blocked(work, faults)
    same = [ref for ref in finished if fingerprint_of(_as_trained(work.config, ref)) == ref.metadata.stage_fingerprint]
    if not same:
        return blocked(work, [_refuse_other(work, finished[-1])])
    longest = max(same, key=lambda ref: (ref.metadata.step, ref.metadata.sequence))
    step = longest.metadata.step
    if work.steps is not None and work.steps <= step:
        return blocked(work, [_refuse_shorter(work, step)])
    return replace(
        work,
        action="continue",
        reasons=(f"{KEY}: goes on from step {step}, where it was finished; not the same as one long training",),
        from_step=step,
        reference=str(longest.reference),
        ref=longest,
        extends=longest.metadata.stage_fingerprint,
        seconds=expected_seconds(longest.metadata, work.steps, step),
    )


def schedule_faults(config: RunConfig) -> list[StagelineError]:
    """Why the learning rate of the steps done depends on how many there are in all. config: the stage's own."""
    trainer = config.trainer
    found = []
    if trainer.schedule not in CONSTANT:
        found.append(f"trainer.schedule={trainer.schedule} falls towards the last step, and has reached it")
    if trainer.warmup_fraction:
        found.append(f"trainer.warmup_fraction={trainer.warmup_fraction:g} is a share of the steps")
    if not found:
        return []
    remedy = "train anew without it, or train with trainer.schedule=constant and trainer.warmup_steps from the start"
    return [ConfigError(f"{KEY} cannot go on: {'; '.join(found)}", remedy=remedy)]


def _as_trained(config: RunConfig, ref: CheckpointRef) -> RunConfig:
    """The stage's config with the length that a checkpoint was trained for."""
    recorded = ref.metadata.settings
    length = {key: recorded.get(f"trainer.{key}", False if key == "extend" else None) for key in LENGTH}
    return config.model_copy(update={"trainer": config.trainer.model_copy(update=length)})


def _refuse_other(work: StageWork, ref: CheckpointRef) -> PlanError:
    lines = changes(ref.metadata, work.config, work.inputs or {}, work.sources, work.digests)
    others = [line for line in lines if not line.startswith(tuple(f"trainer.{key}:" for key in LENGTH))]
    why = "; ".join(others) or "another version of stageline trained it"
    return PlanError(
        f"{KEY} goes on with equal settings alone, and what is finished was trained otherwise: {why}",
        remedy=f"undo the change, or train anew without {KEY}",
    )


def _refuse_shorter(work: StageWork, step: int) -> PlanError:
    return PlanError(
        f"{KEY}: stage {work.item!r} has {step} steps, and {work.steps} are asked for",
        remedy=f"ask for more, or take what is there without {KEY}",
    )
