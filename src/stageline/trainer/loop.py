"""The loop: for each step of the order, do it, tell of it, validate and save when due, stop when asked.

Every rank runs the same sentence; what could differ between them (a signal, a clock, a loss that is not finite) goes
through one sum per step first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from stageline.checkpoint.metadata import BestRecord
from stageline.contract import StageTask
from stageline.errors import InterruptedRunError, TrainingError
from stageline.layers.ema import LEFTOVER_FRACTION, leftover_fraction
from stageline.trainer.assembly import Parts
from stageline.trainer.gradients import refuse_without_gradient
from stageline.trainer.interruption import StopRequest
from stageline.trainer.memory import memory_advice
from stageline.trainer.order import Cursor, StepPlan, make_order, training_batches
from stageline.trainer.recorder import Recorder, StepReport
from stageline.trainer.saving import Saver
from stageline.trainer.state import TrainingState
from stageline.trainer.step import StepResult, run_step
from stageline.trainer.validation import check_validation, declared_value, is_better, run_validation

GRADIENT_STEPS = 10
"""After so many steps every trained parameter must have had a gradient."""


@dataclass(frozen=True)
class FitResult:
    """What came of a stage. reference: of the final checkpoint, empty without a saver."""

    step: int
    steps: int
    best: BestRecord | None
    metrics: Mapping[str, float]
    reference: str
    final: bool
    seconds: float


@dataclass
class _Fit:
    """One call of `fit`: what it was given and where it stands."""

    parts: Parts
    seed: int
    steps: int
    recorder: Recorder
    saver: Saver | None
    stop: StopRequest
    state: TrainingState
    committed_step: int = 0
    """Step of the last checkpoint that was handed to the saver, or that this call went on from."""
    metrics: dict[str, float] = field(default_factory=dict)
    reference: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def task(self) -> StageTask:
        return self.parts.task

    def seconds(self) -> float:
        return time.monotonic() - self.began

    @contextmanager
    def measured_weights(self) -> Iterator[None]:
        """What validation measures: the averaged weights where there are any. Ends in the mode for training."""
        parts = self.parts
        applied = nullcontext() if parts.ema is None else parts.ema.applied(parts.own)
        with memory_advice(parts.settings, "validation"), applied:
            yield
        parts.set_train_mode()

    def check_validation(self) -> None:
        """Try validation before the first step: what would end the stage after hours of training ends it now."""
        parts, start = self.parts, time.monotonic()
        with self.measured_weights():
            check_validation(
                self.task, parts.model, parts.settings, parts.ranks, parts.stage, seed=self.seed, stop=self.stop
            )
        self.recorder.event("validation_checked", step=self.state.step, seconds=round(time.monotonic() - start, 3))

    def validate(self, *, due_save: bool) -> bool:
        """Validate now; whether this is the best so far, to be saved as such. A request to stop puts it off.

        due_save: whether a save is due at this step, be there a best or not.
        """
        parts, start = self.parts, time.monotonic()
        album = self.recorder.open_album()
        with self.measured_weights():
            found = run_validation(
                self.task, parts.model, parts.settings, parts.ranks, seed=self.seed, stop=self.stop, album=album
            )
        if found is None:
            self.state = self.state.model_copy(update={"validation_due": True})
            return False
        self.metrics, counts = found
        value = declared_value(self.metrics, parts.stage)
        best = self.state.best
        # What is never saved can't be the best: it could not be handed on.
        may_be_best = due_save or parts.settings.save_best == "always"
        improved = may_be_best and is_better(value, None if best is None else best.value, parts.stage)
        if improved:
            best = BestRecord(
                metric=parts.stage.metric, direction=parts.stage.direction, value=value, step=self.state.step
            )
            self.recorder.best(value)
        self.state = self.state.model_copy(update={"best": best, "validation_due": False})
        self.recorder.validation(
            self.state.step, self.metrics, counts, is_best=improved, seconds=time.monotonic() - start, album=album
        )
        return improved

    def save(self, *, final: bool, is_best: bool) -> None:
        """Hand the present state to the saver."""
        if self.saver is None:
            return
        scaler = self.parts.ranks.scaler
        ema = self.parts.ema
        state = self.state.model_copy(
            update={
                "seconds": self.state.seconds + self.seconds(),
                "scaler": None if scaler is None else dict(scaler.state_dict()),
                "ema_updates": 0 if ema is None else ema.updates,
            }
        )
        with memory_advice(self.parts.settings, "saving"):
            self.saver.submit(self.parts, state, final=final, is_best=is_best, metrics=self.metrics)
        self.committed_step = self.state.step

    def commit_before_validation(self) -> None:
        """Commit a save that is due and wait for it: whatever happens in validation, the steps are not lost.

        It says that its validation is still due; whoever goes on from it makes that first.
        """
        if self.committed_step != self.state.step:
            self.state = self.state.model_copy(update={"validation_due": True})
            self.save(final=False, is_best=False)
            self.note_saves(wait=True)

    def note_saves(self, *, wait: bool) -> None:
        """Tell of commits; an error of the writer surfaces here."""
        if self.saver is None:
            return
        for saved in self.saver.wait() if wait else self.saver.finished():
            self.reference = saved.reference
            self.recorder.checkpoint(
                saved.step,
                saved.reference,
                is_best=saved.is_best,
                final=saved.final,
                write=saved.write_seconds,
                blocked=saved.blocked_seconds,
            )

    def interrupt(self) -> None:
        """Commit what is not committed yet and end with the code that says: start me again."""
        reason = self.stop.reason or "another rank was asked to stop"
        if self.committed_step != self.state.step:
            self.save(final=False, is_best=False)
        self.note_saves(wait=True)
        step = self.state.step
        self.recorder.event("interrupted", step=step, reason=reason)
        kept = "nothing saved" if self.saver is None else f"checkpoint {self.reference or 'of before'}"
        self.recorder.say(f"stopped after step {step}/{self.steps}: {reason}; {kept}")
        raise InterruptedRunError(
            f"stage {self.parts.stage.name!r} was stopped after step {step} of {self.steps} by {reason}; "
            "a checkpoint was committed",
            remedy="start it again to continue from there",
        )

    def count(self, plan: StepPlan, result: StepResult) -> None:
        """Move the counters over one step; TrainingError after too many bad ones in a row."""
        old = self.state
        bad = bool(result.fault) and result.counted
        in_a_row = (old.bad_in_a_row + 1 if bad else old.bad_in_a_row) if result.fault else 0
        self.state = old.model_copy(
            update={
                "step": old.step + 1,
                "epoch": plan.after.epoch,
                "index": plan.after.index,
                "num_samples": old.num_samples + plan.num_samples,
                "bad_steps": old.bad_steps + int(bad),
                "bad_in_a_row": in_a_row,
            }
        )
        if result.fault:
            self.recorder.skipped(self.state.step, result.fault, in_a_row)
        limit = self.parts.settings.max_bad_steps
        if in_a_row > limit:
            raise TrainingError(
                f"step {self.state.step} of stage {self.parts.stage.name!r}: {result.fault}; "
                f"{in_a_row} such steps in a row, trainer.max_bad_steps={limit}",
                remedy="lower trainer.learning_rate or trainer.gradient_clip_val, use trainer.precision=32-true, "
                "or look at the samples of these steps; the last checkpoint is intact",
            )


def fit(
    parts: Parts,
    *,
    seed: int,
    steps: int,
    recorder: Recorder,
    saver: Saver | None,
    stop: StopRequest,
    state: TrainingState,
) -> FitResult:
    """Train from `state` to `steps` optimizer steps and commit the result as final.

    stop: installed by the caller.  state: of the checkpoint that was restored into `parts`, or a fresh one.
    Raises InterruptedRunError after a commit when any rank was asked to stop, TrainingError, OutOfMemoryError,
    PeerLostError, and what task or saver raise.
    """
    run = _Fit(parts, seed, steps, recorder, saver, stop, state, committed_step=state.step)
    _announce(run)
    parts.task.advance(state.step, steps)
    parts.set_train_mode()
    if state.step == 0:
        run.check_validation()
    if state.validation_due and state.step < steps:
        _validate_and_save(run, due_save=False)
    for plan, result, report in _steps(run):
        run.count(plan, result)
        parts.task.advance(run.state.step, steps)
        parts.ranks.share_buffers(parts.own)
        recorder.step(report, steps, log=_is_logged(run.state.step, steps, parts))
        if run.state.step == min(GRADIENT_STEPS, steps):
            refuse_without_gradient(parts, run.state.step)
        run.note_saves(wait=False)
        if result.stop:
            due = _is_validation_due(run) or run.state.step == steps
            run.state = run.state.model_copy(update={"validation_due": due})
            run.interrupt()
        if run.state.step < steps:
            _between_steps(run)
    return _finish(run)


def _announce(run: _Fit) -> None:
    settings, state = run.parts.settings, run.state
    run.recorder.start(
        step=state.step,
        steps=run.steps,
        ranks=run.parts.ranks.size,
        device=str(run.parts.ranks.device),
        precision=settings.precision,
    )
    leftover = leftover_fraction(settings.ema_decay, run.steps)
    if run.parts.ema is not None and leftover > LEFTOVER_FRACTION:
        decay = settings.ema_decay
        run.recorder.warn(
            f"trainer.ema_decay={decay:g} is long for {run.steps} steps: {leftover:.0%} of the average are the weights "
            "before the first of them; train longer, or say evaluate.weights=raw"
        )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _is_validation_due(run: _Fit) -> bool:
    """After every N steps, or after the last step of every N-th epoch."""
    settings, state = run.parts.settings, run.state
    by_epoch = state.index == 0 and _is_due(state.epoch, settings.validate_every_epochs)
    return by_epoch or _is_due(state.step, settings.validate_every_steps)


def _is_logged(step: int, steps: int, parts: Parts) -> bool:
    return step == steps or _is_due(step, parts.settings.log_every_steps) or step == 1


def _steps(run: _Fit) -> Iterator[tuple[StepPlan, StepResult, StepReport]]:
    """Do the remaining steps one by one."""
    parts, settings = run.parts, run.parts.settings
    ranks = parts.ranks
    order = make_order(parts.task, settings, parts.stage, seed=run.seed, rank=ranks.rank, size=ranks.size)
    cursor, left = Cursor(run.state.epoch, run.state.index), run.steps - run.state.step
    if left <= 0:
        return
    loader = training_batches(order, cursor, left, num_workers=settings.num_workers, pin=ranks.is_cuda)
    batches = iter(loader)
    for plan in order.steps(cursor, left):
        start, step = time.monotonic(), run.state.step
        result = run_step(
            parts,
            plan,
            batches,
            seed=run.seed,
            step=step,
            steps=run.steps,
            log=_is_logged(step + 1, run.steps, parts),
            asked=lambda: bool(run.stop.reason),
        )
        report = StepReport(
            step=step + 1,
            epoch=plan.after.epoch,
            loss=result.loss,
            parts=result.parts,
            gradient_norm=result.gradient_norm,
            learning_rate=result.learning_rate,
            num_samples=plan.num_samples,
            step_seconds=time.monotonic() - start,
            data_seconds=result.data_seconds,
            device_bytes=torch.cuda.max_memory_allocated(ranks.device) if ranks.is_cuda else 0,
        )
        yield plan, result, report


def _between_steps(run: _Fit) -> None:
    """Validation and saves that are due after a step that is not the last."""
    settings = run.parts.settings
    due_save = _is_due(run.state.step, settings.checkpoint_every_steps)
    if _is_validation_due(run):
        _validate_and_save(run, due_save=due_save)
    elif due_save:
        run.save(final=False, is_best=False)


def _validate_and_save(run: _Fit, *, due_save: bool) -> None:
    """Validate between steps, the save that is due before it.

    Metrics are in the checkpoints that need them: a best one, and where several are kept by the metric every due one;
    these are committed once more, no tensor is written again, and of one step retention keeps the newest.
    """
    if due_save:
        run.commit_before_validation()
    is_best = run.validate(due_save=due_save)
    if run.state.validation_due:
        run.interrupt()
    if is_best or (due_save and run.parts.settings.keep.best > 1):
        run.save(final=False, is_best=is_best)
    run.metrics = {}


def _finish(run: _Fit) -> FitResult:
    """Commit, validate, commit the final checkpoint with its metrics and wait until it is durable."""
    run.commit_before_validation()
    is_best = run.validate(due_save=True)
    if run.state.validation_due:
        run.interrupt()
    run.save(final=True, is_best=is_best)
    run.note_saves(wait=True)
    total = run.state.seconds + run.seconds()
    best = run.state.best
    run.recorder.event(
        "finished",
        step=run.state.step,
        seconds=round(total, 3),
        best=None if best is None else best.model_dump(mode="json"),
    )
    return FitResult(run.state.step, run.steps, best, run.metrics, run.reference, True, total)
