"""Experiment trackers of the user's choice, beside our own records: scalars of training and validation, rank 0 only.

A logger never ends and never delays a step: values go through a bounded queue to a thread of its own; what does not fit
is counted and told, and a logger that fails is left out from then on, which is told too. Keys and addresses come from
the environment, as those programs document (`MLFLOW_TRACKING_URI`, `WANDB_API_KEY`, …), never from a config.
"""

from __future__ import annotations

import csv
import io
import math
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol

from stageline.errors import ConfigError, Faults
from stageline.store import NotFoundError, Store
from stageline.telemetry import redact
from stageline.trainer.handover import Handover

CSV_NAME = "scalars.csv"
CSV_SECONDS = 30.0
"""How often the table is written whole; also at the end."""
QUEUE_LENGTH = 10_000
CLOSE_SECONDS = 10.0
"""How long the end of a stage waits for what is still queued."""
PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}
"""Logger -> the package that it needs; neither is part of ours."""

Values = Mapping[str, float]


@dataclass(frozen=True)
class Tracked:
    """What a logger is told of a stage once.

    run, stage, family: names.  fingerprint: of the stage.  step: where it begins or goes on.  settings: flat.
    """

    run: str
    stage: str
    family: str
    fingerprint: str
    step: int
    settings: Mapping[str, Any]


class Logger(Protocol):
    """One tracker. Called by one thread only."""

    def log(self, values: Values, step: int) -> None: ...

    def close(self) -> None: ...


class CsvLogger:
    """`scalars.csv` in the stage directory: step, seconds since 1970, name, value, one line each.

    store: of the stage directory.  step: rows of a former attempt after it are void.
    """

    def __init__(self, store: Store, tracked: Tracked) -> None:
        self._store = store
        self._rows = [row for row in self._former() if int(row[0]) <= tracked.step]
        self._written = time.monotonic()

    def _former(self) -> list[list[str]]:
        try:
            text = self._store.get(CSV_NAME).decode()
        except NotFoundError:
            return []
        return [row for row in csv.reader(io.StringIO(text)) if len(row) == 4 and row[0].isdecimal()]

    def log(self, values: Values, step: int) -> None:
        now = f"{time.time():.3f}"
        self._rows += [[str(step), now, name, repr(float(value))] for name, value in values.items()]
        if time.monotonic() - self._written > CSV_SECONDS:
            self._write()

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        block = io.StringIO()
        writer = csv.writer(block)
        writer.writerow(("step", "time", "name", "value"))
        writer.writerows(self._rows)
        self._store.put(CSV_NAME, block.getvalue().encode())
        self._written = time.monotonic()


class MlflowLogger:
    """One MLflow run per attempt, in the experiment of the family; its tags name run, stage and fingerprint."""

    def __init__(self, store: Store, tracked: Tracked) -> None:  # noqa: ARG002
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        name = f"stageline/{tracked.family}"
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        told = {"run": tracked.run, "stage": tracked.stage, "fingerprint": tracked.fingerprint}
        tags = {f"stageline.{key}": value for key, value in told.items()}
        made = self._client.create_run(experiment, run_name=f"{tracked.run}/{tracked.stage}", tags=tags)
        self._id = made.info.run_id
        for key, value in tracked.settings.items():
            self._client.log_param(self._id, key, str(value)[:500])

    def log(self, values: Values, step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, float(value), step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


class WandbLogger:
    """One run of Weights & Biases per stage fingerprint, gone on with where the stage is."""

    def __init__(self, store: Store, tracked: Tracked) -> None:
        import wandb

        local = store.local
        self._run = wandb.init(
            project=f"stageline-{tracked.family}",
            name=f"{tracked.run}/{tracked.stage}",
            id=tracked.fingerprint[:16],
            resume="allow",
            config=dict(tracked.settings),
            dir=None if local is None else str(local.checked()),  # of a process of its own
        )

    def log(self, values: Values, step: int) -> None:
        self._run.log({name: float(value) for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


KINDS: Mapping[str, Callable[[Store, Tracked], Logger]] = {
    "csv": CsvLogger,
    "mlflow": MlflowLogger,
    "wandb": WandbLogger,
}


def check_loggers(names: Sequence[str]) -> None:
    """ConfigError where a logger's package is not installed here. names: of `trainer.loggers`."""
    faults = Faults(
        ConfigError, "trainer.loggers", "install them beside stageline, or take them out of trainer.loggers"
    )
    for name in names:
        package = PACKAGES.get(name)
        if package is not None and find_spec(name) is None:
            faults.add(f"{name!r} needs the package {package!r}, which is not installed (pip install {package})")
    faults.raise_if_any()


class Loggers:
    """All loggers of a stage behind one queue.

    warn: told in a sentence what went wrong, by the thread that logs and closes.
    """

    def __init__(self, names: Sequence[str], store: Store, tracked: Tracked, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._faults: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._queue = Handover[tuple[Values, int]](
            "stageline-loggers", partial(self._run, tuple(names), store, tracked), length=QUEUE_LENGTH
        )

    def log(self, values: Values, step: int) -> None:
        """Hand values on; returns at once. Values that are not finite are left out, the trackers refuse them."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self._queue.put((finite, step))
        self._tell()

    def close(self) -> None:
        """Wait a little for what is queued; what is not through then is lost, and told."""
        lost = self._queue.close(CLOSE_SECONDS)
        self._tell()
        if lost:
            self._warn(f"loggers were too slow: {lost} steps are missing there")

    def _run(self, names: Sequence[str], store: Store, tracked: Tracked, items: Iterator[tuple[Values, int]]) -> None:
        working: dict[str, Logger] = {}
        for name in names:
            with self._surviving(working, name, "did not start"):
                working[name] = KINDS[name](store, tracked)
        for item in items:
            for name in list(working):
                with self._surviving(working, name, "failed"):
                    working[name].log(*item)
        for name in list(working):
            with self._surviving(working, name, "did not end"):
                working[name].close()

    @contextmanager
    def _surviving(self, working: dict[str, Logger], name: str, what: str) -> Iterator[None]:
        """Whatever another program raises costs that program's records and nothing else."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # told, and the stage goes on
            working.pop(name, None)
            said = redact(f"{type(error).__name__}: {error}")
            self._faults.put(f"logger {name!r} {what} and is left out: {said}")

    def _tell(self) -> None:
        while not self._faults.empty():
            self._warn(self._faults.get())
