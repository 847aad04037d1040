"""What belongs to a stage directory while it is ours: lease, recorder, provenance, the record of a failure."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stageline import __version__
from stageline.build import find_build
from stageline.checkpoint.fencing import fence_leftovers
from stageline.checkpoint.identity import RunRecord, versions
from stageline.checkpoint.layout import CheckpointRef
from stageline.checkpoint.lease import StageLease, await_free, lease_wait_seconds
from stageline.checkpoint.metadata import GroupRecord, ParentRecord, Provenance
from stageline.checkpoint.steps import Damaged, set_aside
from stageline.checkpoint.usercode import code_digests
from stageline.config import to_yaml
from stageline.errors import InterruptedRunError, StagelineError
from stageline.printing import say
from stageline.stage import stage_settings
from stageline.store import Store
from stageline.telemetry import (
    FAILURE_DIR_VARIABLE,
    EventLog,
    FailureRecord,
    MetricsEndpoint,
    clear_failures,
    redact,
    write_failure,
)
from stageline.trainer.assembly import Parts
from stageline.trainer.interruption import StopRequest
from stageline.trainer.loggers import Loggers, Tracked
from stageline.trainer.parameters import count_parameters
from stageline.trainer.progress import ProgressView
from stageline.trainer.recorder import Recorder, open_tensorboard
from stageline.work.work import StageWork

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass
class Session:
    """One attempt at a stage on one rank. owned: whether the stage directory is ours to write into.

    job: what this rank knows of the job it belongs to.
    """

    rank: int
    job: Mapping[str, str] = field(default_factory=dict)
    work: StageWork | None = None
    run: RunRecord | None = None
    owned: bool = False
    lease: StageLease | None = None
    recorder: Recorder = field(default_factory=Recorder)
    aside: list[Damaged] = field(default_factory=list)
    """Damaged checkpoints that this attempt took out of use."""
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def command(self) -> str:
        """How this process was started, for people."""
        return shlex.join(sys.argv)

    def await_lease(self, work: StageWork, stop: StopRequest) -> None:
        """Where the environment says how long: wait until a former attempt's lease has run out."""
        limit = lease_wait_seconds()

        def tell(text: str) -> None:
            if self.rank == 0:
                say(f"{work.stage.name}: {text}")

        await_free(work.stage_dir, limit, tell, lambda: bool(stop.signal_name))
        if limit > 0 and stop.signal_name:
            raise InterruptedRunError(
                f"stage {work.stage.name!r} was stopped by {stop.signal_name} before it began; nothing was changed",
                remedy="start it again",
            )

    def take_lease(self, work: StageWork) -> None:
        """Rank 0: become the one writer of the stage directory and void what an earlier attempt said of failing."""
        holder = f"{work.config.run}/{work.stage.name}"
        self.lease = StageLease.acquire(work.stage_dir, holder)
        fence_leftovers(work.stage_dir, self.lease)
        clear_failures(work.stage_dir.store)
        work.stage_dir.store.put("config.yaml", redact(to_yaml(work.config)).encode())

    def set_aside(self, found: Sequence[Damaged]) -> None:
        """Rank 0, under the lease: take damaged checkpoints out of use and name them, in the events too."""
        assert self.lease is not None
        for damaged in found:
            self.lease.check()
            set_aside(damaged.store, damaged.reason, f"stage {self.lease.holder}")
            say(f"set aside, damaged: {damaged.uri}: {damaged.reason}")
            self.aside.append(damaged)

    def open_records(self, work: StageWork, ref: CheckpointRef | None, steps: int) -> None:
        """Rank 0: events, endpoint, TensorBoard and lines; earlier events after the starting step become void."""
        step = 0 if ref is None else ref.metadata.step
        settings, store = work.config.trainer, work.stage_dir.store
        events = EventLog(store)
        self.recorder = Recorder(
            events=events,
            metrics=MetricsEndpoint(settings.metrics_port, family=work.family.name, stage=work.stage.name),
            tensorboard=self._tensorboard(store, step) if settings.tensorboard else None,
            view=ProgressView(work.stage.name, steps),
            open_loggers=partial(_open_loggers, work, step) if settings.loggers else None,
        )
        for damaged in self.aside:
            self.recorder.event("set_aside", uri=damaged.uri, reason=damaged.reason)
        if ref is not None:
            self.recorder.event("resumed", step=step, reference=str(ref.reference))
            self.recorder.say(f"resumed at step {step} from {ref.uri}")
        elif events.had_lines:
            self.recorder.event("resumed", step=0, reference="")

    def _tensorboard(self, store: Store, step: int) -> SummaryWriter | None:
        """TensorBoard's writer in the stage directory; it takes a path, and gets one of the open folder."""
        if store.local is None:
            return None
        return open_tensorboard(self._open.enter_context(store.local.reached("tensorboard")), step)

    def serve_metrics(self, work: StageWork) -> None:
        """First rank of another node: nothing is written, but every pod that declares the port answers on it."""
        port = work.config.trainer.metrics_port
        metrics = MetricsEndpoint(port, family=work.family.name, stage=work.stage.name, is_first=False)
        if metrics.warning:
            say(f"{work.stage.name}: warning: {metrics.warning}")
        self.recorder = Recorder(metrics=metrics)

    def fail(self, error: BaseException) -> None:
        """Leave the failure record where the caller looks; never hides the error itself."""
        folder = os.environ.get(FAILURE_DIR_VARIABLE)
        tail = self.recorder.tail
        try:
            if folder:
                write_failure(Path(folder), error, rank=self.rank, log_tail=tail)
            ours = self.lease is None or not self.lease.is_lost  # its next writer's records are not ours to write
            if self.owned and ours and self.work is not None:
                write_failure(self.work.stage_dir.store, error, rank=self.rank, log_tail=tail)
                told = FailureRecord.of(error).to_json()
                keys = ("kind", "code", "sentence", "remedy", "exit_code")
                self.recorder.event("failed", **{key: told[key] for key in keys})
        except (StagelineError, OSError) as second:
            say(*f"the failure record could not be written: {redact(str(second))}".split("\n"), error=True)

    def close(self) -> None:
        """Give back what is held."""
        try:
            self.recorder.close()
        finally:
            self._open.close()
            if self.lease is not None:
                self.lease.release()
                self.lease = None


def make_provenance(
    work: StageWork, run: RunRecord | None, parts: Parts, parents: Mapping[str, ParentRecord], command: str
) -> Provenance:
    """What every checkpoint of this stage says about itself."""
    own, trained = parts.own, set(parts.trained)
    frozen = [name for name, _ in own.named_parameters() if name not in trained]
    groups = {group.name: count_parameters(own, group.names) for group in parts.task.parameter_groups()}
    ranks, build = parts.ranks, find_build()
    environment = {
        **versions(),
        "build": build.to_json(),
        "host": socket.gethostname(),
        "device": str(ranks.device.type),
        "ranks": ranks.size,
        "strategy": work.config.trainer.strategy,
    }
    return Provenance(
        family=work.family.name,
        stage=work.stage.name,
        variant=work.variant,
        run=work.config.run,
        identity="" if run is None else run.fingerprint,
        stage_fingerprint=work.fingerprint,
        settings=stage_settings(work.config),
        parents=dict(parents),
        facts=work.family.facts(work.config, work.stage),
        trained={name: GroupRecord(**counts) for name, counts in groups.items() if counts["tensors"]},
        frozen={"frozen": GroupRecord(**count_parameters(own, frozen))} if frozen else {},
        data_digest=work.data_digest,
        data_inputs=dict(work.inputs or {}),
        data_set_aside=work.set_aside,
        code=code_digests(work.config),
        environment=environment,
        stageline_version=__version__,
        image=build.image,
        command=redact(command),
    )


def _open_loggers(work: StageWork, step: int, warn: Callable[[str], None]) -> Loggers:
    """The experiment trackers that the config names. step: where the stage begins or goes on."""
    tracked = Tracked(
        run=work.config.run,
        stage=work.stage.name,
        family=work.family.name,
        fingerprint=work.fingerprint,
        step=step,
        settings=redact(stage_settings(work.config)),
    )
    return Loggers(work.config.trainer.loggers, work.stage_dir.store, tracked, warn)
