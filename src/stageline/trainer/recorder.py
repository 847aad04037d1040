"""One place through which the loop tells what happened: events, `/metrics`, TensorBoard, experiment trackers and the
person watching.

Only rank 0 has one that writes; the others hold a recorder that writes nowhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stageline.printing import one_line
from stageline.telemetry import LONGEST_LABEL, EventLog, MetricsEndpoint
from stageline.trainer.loggers import Loggers
from stageline.trainer.pictures import Album, PictureWriter
from stageline.trainer.progress import ProgressView, StepClock

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHOWN_METRICS = 5
"""Validation metrics on the line for people, in the family's order; events hold all of them."""


@dataclass(frozen=True)
class StepReport:
    """One finished step. loss, gradient_norm: nan where the step was skipped.  parts: name -> mean."""

    step: int
    epoch: int
    loss: float
    parts: Mapping[str, float]
    gradient_norm: float
    learning_rate: float
    num_samples: int
    step_seconds: float
    data_seconds: float
    device_bytes: int = 0


class Recorder:
    """Where the records of one stage go; each may be absent."""

    def __init__(
        self,
        *,
        events: EventLog | None = None,
        metrics: MetricsEndpoint | None = None,
        tensorboard: SummaryWriter | None = None,
        view: ProgressView | None = None,
        open_loggers: Callable[[Callable[[str], None]], Loggers] | None = None,
    ) -> None:
        """open_loggers: opens the experiment trackers, given whom they tell what goes wrong."""
        self._events = events
        self._metrics = metrics
        self._tensorboard = tensorboard
        self._view = view
        self._clock = StepClock()
        self._loggers = None if open_loggers is None else open_loggers(self.warn)
        self._pictures = None if tensorboard is None else PictureWriter(tensorboard, self.warn)
        if metrics is not None and metrics.warning:
            self.warn(metrics.warning)

    def event(self, name: str, **fields: Any) -> None:
        if self._events is not None:
            self._events.emit(name, **fields)

    @property
    def tail(self) -> list[str]:
        """The last lines a person saw."""
        return [] if self._view is None else list(self._view.lines)

    def say(self, text: str) -> None:
        """One line for the person watching."""
        if self._view is not None:
            self._view.line(text)

    def warn(self, text: str) -> None:
        """Something a person should know that does not end the stage."""
        self.event("warning", text=text)
        self.say(f"warning: {text}")

    def start(self, *, step: int, steps: int, **facts: Any) -> None:
        """The loop begins or goes on at `step`."""
        self.event("started", step=step, steps=steps, **facts)
        self._metric("stageline_planned_steps", steps)
        self._metric("stageline_finished_steps", step)

    def step(self, report: StepReport, steps: int, *, log: bool) -> None:
        """A step is done. log: also into events, TensorBoard and lines."""
        self._clock.add(report.step_seconds)
        left = self._clock.left_seconds(steps - report.step)
        for name, value in (
            ("stageline_finished_steps", report.step),
            ("stageline_remaining_seconds", left),
            ("stageline_step_duration_seconds", report.step_seconds),
            ("stageline_data_wait_seconds", report.data_seconds),
            ("stageline_samples_total", report.num_samples),
            ("stageline_learning_rate", report.learning_rate),
            ("stageline_last_step_timestamp_seconds", time.time()),
            ("stageline_device_memory_peak_bytes", report.device_bytes),
        ):
            self._metric(name, value)
        rate = report.num_samples / report.step_seconds if report.step_seconds else 0.0
        if self._view is not None:
            shown = {"loss": report.loss, "lr": report.learning_rate, "samples/s": rate}
            self._view.step(report.step, shown, left, log=log)
        if not log:
            return
        self._metric("stageline_loss_value", report.loss)
        self._metric("stageline_gradient_norm", report.gradient_norm)
        for part, value in report.parts.items():
            self._metric("stageline_loss_value", value, part)
        self.event(
            "step",
            step=report.step,
            epoch=report.epoch,
            loss=report.loss,
            parts=dict(report.parts),
            gradient_norm=report.gradient_norm,
            learning_rate=report.learning_rate,
            num_samples=report.num_samples,
            step_seconds=round(report.step_seconds, 6),
            data_seconds=round(report.data_seconds, 6),
            samples_per_second=round(rate, 3),
        )
        scalars = {
            "loss/total": report.loss,
            "gradient_norm": report.gradient_norm,
            "learning_rate": report.learning_rate,
        }
        self._scalars(scalars | {f"loss/{part}": value for part, value in report.parts.items()}, report.step)

    def skipped(self, step: int, reason: str, in_a_row: int) -> None:
        """A step changed nothing because loss or gradient was not finite."""
        self._metric("stageline_bad_steps_total", 1)
        self.event("skipped", step=step, reason=reason, in_a_row=in_a_row)
        self.say(f"step {step} skipped: {reason} ({in_a_row} in a row)")

    def open_album(self) -> Album | None:
        """What takes the pictures of one validation; None where nobody looks at any."""
        return None if self._pictures is None else Album()

    def validation(
        self,
        step: int,
        metrics: Mapping[str, float],
        counts: Mapping[str, float],
        *,
        is_best: bool,
        seconds: float,
        album: Album | None = None,
    ) -> None:
        """Validation after `step` steps. album: its pictures."""
        for part, value in metrics.items():
            self._metric("stageline_validation_value", value, part)
        self.event(
            "validation",
            step=step,
            metrics=dict(metrics),
            counts=dict(counts),
            is_best=is_best,
            seconds=round(seconds, 3),
        )
        self._scalars({f"validation/{name}": value for name, value in metrics.items()}, step)
        if self._pictures is not None and album is not None and album.pictures:
            self._pictures.put(album.pictures, step)
        said = "  ".join(f"{name} {value:.4f}" for name, value in list(metrics.items())[:SHOWN_METRICS])
        self.say(f"step {step} validation  {said}{'  (best)' if is_best else ''}")

    def best(self, value: float) -> None:
        self._metric("stageline_best_value", value)

    def checkpoint(
        self, step: int, reference: str, *, is_best: bool, final: bool, write: float, blocked: float
    ) -> None:
        """A checkpoint is committed. write, blocked: seconds."""
        self._metric("stageline_last_checkpoint_timestamp_seconds", time.time())
        self._metric("stageline_last_checkpoint_steps", step)
        self._metric("stageline_checkpoint_write_seconds", write)
        self._metric("stageline_checkpoint_blocked_seconds", blocked)
        uri, _, digest = reference.partition("@sha256:")
        self.event(
            "checkpoint",
            step=step,
            uri=uri,
            digest=digest,
            is_best=is_best,
            final=final,
            write_seconds=round(write, 4),
            blocked_seconds=round(blocked, 4),
        )

    def close(self) -> None:
        for sink in (self._loggers, self._pictures, self._view, self._tensorboard, self._metrics, self._events):
            if sink is not None:
                sink.close()

    def _metric(self, name: str, value: float, part: str | None = None) -> None:
        if self._metrics is not None:
            self._metrics.record(name, value, part)

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        values = {one_line(name, LONGEST_LABEL): value for name, value in values.items()}
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._loggers is not None:
            self._loggers.log(values, step)


def open_tensorboard(folder: Path, step: int) -> SummaryWriter:
    """A TensorBoard writer in a local folder that voids what came after `step`."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    return SummaryWriter(str(folder), purge_step=step + 1)
