"""Checkpoints out of a running stage: copy to the host, then write behind the loop's back, one save at a time.

The loop waits only for the copy, and for a save that is still being written when the next one is due. What goes wrong
in the background surfaces at the next step or at the end. Sharded saves need every rank's part in the exchange, so
they are written in the loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from stageline.checkpoint.commit import CheckpointWriter, Snapshot
from stageline.checkpoint.derived import Exports
from stageline.checkpoint.layout import CheckpointRef, StageDir
from stageline.checkpoint.ownership import Ownership
from stageline.checkpoint.sharded import save_sharded
from stageline.errors import CheckpointError, Faults
from stageline.layers.memory import peak_memory_bytes
from stageline.trainer.assembly import Parts
from stageline.trainer.parameters import optimizer_tensors
from stageline.trainer.ranks import Ranks
from stageline.trainer.restoring import OPTIMIZER_GROUP
from stageline.trainer.state import TrainingState


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint. write_seconds: in the writer.  blocked_seconds: while the loop waited."""

    step: int
    reference: str
    is_best: bool
    final: bool
    write_seconds: float = 0.0
    blocked_seconds: float = 0.0


class Saver(Protocol):
    """Writes checkpoints, one at a time, perhaps behind the loop's back."""

    def submit(
        self, parts: Parts, state: TrainingState, *, final: bool, is_best: bool, metrics: Mapping[str, float]
    ) -> None:
        """Copy what is needed to the host and return; waits for a save that is still being written."""

    def finished(self) -> Sequence[Saved]:
        """Saves that were committed since the last call; raises where one failed."""

    def wait(self) -> Sequence[Saved]:
        """The same after waiting for the last one, on every rank."""


class SaveQueue:
    """At most one save under way. background: in a thread; otherwise `put` itself writes."""

    def __init__(self, *, background: bool) -> None:
        self._background = background
        self._thread: threading.Thread | None = None
        self._done: list[Saved] = []
        self._error: BaseException | None = None

    def put(self, write: Callable[[], str], saved: Saved, *, began: float) -> None:
        """Start a save; raises the error of the one before. began: when the loop began to wait for this save."""
        self.join()
        self._raise()

        def run() -> None:
            start = time.monotonic()
            try:
                reference = write()
            except BaseException as error:  # noqa: BLE001  # raised again in the loop's thread
                self._error = error
                return
            taken = time.monotonic() - start
            blocked = handed - began if self._background else time.monotonic() - began
            self._done.append(replace(saved, reference=reference, write_seconds=taken, blocked_seconds=blocked))

        handed = time.monotonic()
        if not self._background:
            run()
            self._raise()
            return
        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the save under way, whatever becomes of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def take(self) -> list[Saved]:
        """What was committed since the last call; raises the error of a save that failed."""
        if self._thread is not None and not self._thread.is_alive():
            self.join()
        self._raise()
        done, self._done = self._done, []
        return done


def host_copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in host memory that share nothing with the originals or each other."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


class CheckpointSaver:
    """The real saver of one stage directory.

    writer: on rank 0, None elsewhere.  steps: planned.  config_yaml: saved with every checkpoint.  owned: which tensors
    are saved here; None saves all.  exports: makes files for other programs.
    """

    def __init__(
        self,
        stage_dir: StageDir,
        writer: CheckpointWriter | None,
        ranks: Ranks,
        *,
        steps: int,
        background: bool,
        config_yaml: str = "",
        owned: Ownership | None = None,
        exports: Exports | None = None,
    ) -> None:
        self._owned = owned
        self._exports = exports
        self._guard: dict[str, Tensor] = {}
        self._latest: CheckpointRef | None = None
        self._buffers: dict[str, Tensor] = {}
        self._stage_dir = stage_dir
        self._writer = writer
        self._ranks = ranks
        self._steps = steps
        self._config_yaml = config_yaml
        self._queue = SaveQueue(background=background and not ranks.sharded)

    def submit(
        self, parts: Parts, state: TrainingState, *, final: bool, is_best: bool, metrics: Mapping[str, float]
    ) -> None:
        """See `Saver`. Ranks other than 0 only take part where the model is sharded."""
        if self._writer is None and not self._ranks.sharded:
            return
        began = time.monotonic()
        self._queue.join()
        self._refuse_changed(parts)
        snapshot = self._snapshot(parts, state, final=final, is_best=is_best, metrics=metrics)
        saved = Saved(state.step, "", is_best, final)
        latest = self._latest_if_same(parts, state.step)
        self._latest = None
        if latest is not None:
            self._queue.put(lambda: self._save_again(latest, snapshot), saved, began=began)
            return
        self._buffers = host_copy(_own_buffers(parts))
        groups = _groups(parts, self._owned)
        if self._ranks.sharded:

            def save() -> CheckpointRef:
                return save_sharded(self._stage_dir, self._writer, snapshot, groups)
        else:
            writer, whole = self._writer, _whole(snapshot, groups)
            assert writer is not None

            def save() -> CheckpointRef:
                return writer.save(whole)

        def write() -> str:
            self._latest = save()
            return str(self._latest.reference)

        self._queue.put(write, saved, began=began)

    def _latest_if_same(self, parts: Parts, step: int) -> CheckpointRef | None:
        """What was saved last where the model is as it was then: validation, which came between, changes no tensor.

        A family's could change buffers; these are compared.
        """
        latest = self._latest
        if latest is None or latest.metadata.step != step:
            return None
        own = _own_buffers(parts)
        same = all(torch.equal(own[name].cpu(), kept) for name, kept in self._buffers.items())
        if self._ranks.sharded:
            same = self._ranks.first(lambda: same)
        return latest if same else None

    def _save_again(self, latest: CheckpointRef, snapshot: Snapshot) -> str:
        writer = self._writer

        def save() -> str:
            assert writer is not None
            return str(writer.save_again(latest, snapshot).reference)

        return self._ranks.first(save) if self._ranks.sharded else save()

    def _snapshot(
        self, parts: Parts, state: TrainingState, *, final: bool, is_best: bool, metrics: Mapping[str, float]
    ) -> Snapshot:
        """Everything but tensors."""
        return Snapshot(
            step=state.step,
            steps=self._steps,
            final=final,
            tensors={},
            training_state=state.model_dump(mode="json"),
            facts=parts.task.facts(),
            metrics=dict(metrics),
            best=state.best,
            is_best=is_best,
            config_yaml=self._config_yaml,
            exports=self._exports,
            timing={"seconds": state.seconds, "step_seconds": state.seconds / max(1, state.step)},
            peak_memory_bytes=peak_memory_bytes(self._ranks.device),
        )

    def watch(self, parts: Parts) -> None:
        """Remember the buffers that parents hold, as they are now; a save that finds one changed is refused."""
        if self._owned is not None:
            held = {name: tensor for name, tensor in parts.own.named_buffers() if name in self._owned.referenced}
            self._guard = {name: local_part(tensor).detach().clone() for name, tensor in held.items()}

    def _refuse_changed(self, parts: Parts) -> None:
        own = dict(parts.own.named_buffers()) if self._guard else {}
        faults = Faults(
            CheckpointError,
            f"stage {parts.stage.name!r} can't be saved",
            "keep frozen modules in eval mode, or let the section that holds these train; a fault in the family's code",
        )
        faults.extend(
            f"{name}: a buffer that the parent {self._owned.referenced[name]!r} holds has changed"
            for name, kept in self._guard.items()
            if self._owned is not None and not torch.equal(local_part(own[name]), kept)
        )
        faults.raise_if_any()

    def finished(self) -> Sequence[Saved]:
        """See `Saver`."""
        return self._queue.take()

    def wait(self) -> Sequence[Saved]:
        """See `Saver`. Every rank returns what rank 0 committed."""
        self._queue.join()
        done = self._ranks.first(lambda: [vars(saved) for saved in self._queue.take()])
        return [Saved(**saved) for saved in done]

    def close(self) -> None:
        """Let a save under way end; for leaving after an error."""
        self._queue.join()


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this rank."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _own_buffers(parts: Parts) -> dict[str, Tensor]:
    return {name: local_part(tensor) for name, tensor in parts.own.named_buffers()}


def _groups(parts: Parts, owned: Ownership | None) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint by group, as they lie on this rank: own ones, what is averaged, the optimizer's."""
    state = parts.as_loaded(parts.own.state_dict())
    groups = {"model": state if owned is None else {name: state[name] for name in owned.own}}
    if parts.ema is not None:
        groups["ema"] = parts.ema.state_dict(parts.own)
        strange = sorted(set(groups["ema"]) - set(groups["model"]))
        if strange:
            raise CheckpointError(f"averaged weights that are no own tensors: {strange}", remedy="a fault in the model")
    optimizer = optimizer_tensors(parts.optimizer, parts.own)
    if optimizer:
        groups[OPTIMIZER_GROUP] = optimizer
    return groups


def _whole(snapshot: Snapshot, groups: Mapping[str, Mapping[str, Tensor]]) -> Snapshot:
    """The snapshot with host copies of the tensors."""
    return replace(
        snapshot,
        tensors=host_copy(groups["model"]),
        ema=host_copy(groups["ema"]) if "ema" in groups else None,
        training_tensors=host_copy(groups.get(OPTIMIZER_GROUP, {})),
    )
