"""Experiment trackers get the scalars, and whatever becomes of them, no step is lost or delayed."""

from __future__ import annotations

import csv
import io
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stageline.checkpoint.layout import StageDir
from stageline.errors import ConfigError
from stageline.store import Store, open_store
from stageline.telemetry import read_events
from stageline.trainer import loggers
from stageline.trainer.loggers import CSV_NAME, Loggers, Tracked

TRACKED = Tracked("r", "base", "toy", "f" * 64, 0, {"seed": 0})


def rows(store: Store) -> list[tuple[int, str, float]]:
    text = store.get(CSV_NAME).decode()
    return [(int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(io.StringIO(text))]


def test_the_table_holds_what_the_events_say(train: Any, tmp_path: Path) -> None:
    train(**{"trainer.loggers": ["csv"]})
    store = StageDir(str(tmp_path), "r", "base").store
    told = {(event["step"], "loss/total", event["loss"]) for event in read_events(store) if event["event"] == "step"}
    written = rows(store)
    assert told
    assert told <= set(written)
    assert any(name.startswith("validation/") for _, name, _ in written)


def test_rows_after_the_step_that_is_gone_on_from_are_void(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        tracked = Tracked("r", "base", "toy", "f" * 64, start, {})
        both = Loggers(["csv"], store, tracked, pytest.fail)
        for step in steps:
            both.log({"loss": step + start / 10}, step)
        both.close()
    assert rows(store) == [(1, "loss", 1.0), (2, "loss", 2.0), (3, "loss", 3.2), (4, "loss", 4.2)]


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    one = Loggers(["csv"], store, TRACKED, pytest.fail)
    one.log({"loss": float("nan"), "rate": 1.0}, 1)
    one.close()
    assert rows(store) == [(1, "rate", 1.0)]


class Broken:
    """A tracker whose server is gone from some call on."""

    def __init__(self, fails_at: str) -> None:
        self.fails_at = fails_at
        self.logged: list[int] = []

    def log(self, values: Any, step: int) -> None:
        if self.fails_at == "log" and step > 1:
            raise ConnectionError("gone, https://me:abc123456789@tracker.example")
        self.logged.append(step)

    def close(self) -> None:
        if self.fails_at == "close":
            raise ConnectionError("gone")


@pytest.mark.parametrize("fails_at", ["start", "log", "close"])
def test_a_tracker_that_fails_is_told_and_costs_no_other(
    fails_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(store: Store, tracked: Tracked) -> Broken:
        if fails_at == "start":
            raise ConnectionError("refused")
        return Broken(fails_at)

    kinds = {**loggers.KINDS, "mlflow": opened}
    monkeypatch.setattr(loggers, "KINDS", kinds)
    warnings: list[str] = []
    store = open_store(tmp_path)
    both = Loggers(["mlflow", "csv"], store, TRACKED, warnings.append)
    for step in (1, 2, 3):
        both.log({"loss": 1.0}, step)
    both.close()
    assert len(warnings) == 1, "once, not at every step"
    assert "logger 'mlflow'" in warnings[0]
    assert "left out" in warnings[0]
    assert "abc123456789" not in warnings[0]
    assert [step for step, _, _ in rows(store)] == [1, 2, 3]


def test_a_tracker_that_hangs_delays_nothing_and_what_is_missing_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    class Hanging(Broken):
        def log(self, values: Any, step: int) -> None:
            release.wait(60)

    monkeypatch.setattr(loggers, "KINDS", {"wandb": lambda store, tracked: Hanging("")})  # noqa: ARG005
    monkeypatch.setattr(loggers, "QUEUE_LENGTH", 5)
    monkeypatch.setattr(loggers, "CLOSE_SECONDS", 0.1)
    warnings: list[str] = []
    one = Loggers(["wandb"], open_store(tmp_path), TRACKED, warnings.append)
    begin = time.monotonic()
    for step in range(50):
        one.log({"loss": 1.0}, step)
    one.close()
    assert time.monotonic() - begin < 30, "sixty seconds would be one step of the tracker"
    release.set()
    assert len(warnings) == 1
    assert "too slow" in warnings[0]


def test_a_package_that_is_not_there_is_refused_before_anything_is_written(train: Any, tmp_path: Path) -> None:
    assert "wandb" not in sys.modules
    with pytest.raises(ConfigError, match="'wandb' needs the package 'wandb'"):
        train(**{"trainer.loggers": ["csv", "wandb"]})
    assert not (tmp_path / "runs" / "r" / "base").exists()


def test_mlflow_is_given_steps_settings_and_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the part of MlflowClient's interface that is used, as its documentation states it."""
    calls: list[tuple[Any, ...]] = []

    class Client:
        def get_experiment_by_name(self, name: str) -> None:
            calls.append(("experiment", name))

        def create_experiment(self, name: str) -> str:
            return f"id of {name}"

        def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> Any:
            calls.append(("run", experiment_id, run_name, tags["stageline.fingerprint"]))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="7"))

        def log_param(self, run_id: str, key: str, value: str) -> None:
            calls.append(("param", run_id, key, value))

        def log_metric(self, run_id: str, key: str, value: float, step: int) -> None:
            calls.append(("metric", run_id, key, value, step))

        def set_terminated(self, run_id: str) -> None:
            calls.append(("end", run_id))

    tracking = types.ModuleType("mlflow.tracking")
    tracking.MlflowClient = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking)
    failed: Callable[[str], None] = pytest.fail
    one = Loggers(["mlflow"], open_store(tmp_path), TRACKED, failed)
    one.log({"loss": 0.5}, 3)
    one.close()
    assert calls == [
        ("experiment", "stageline/toy"),
        ("run", "id of stageline/toy", "r/base", "f" * 64),
        ("param", "7", "seed", "0"),
        ("metric", "7", "loss", 0.5, 3),
        ("end", "7"),
    ]
