"""What a stage refuses, what it survives, and what it leaves behind when it ends badly."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stageline.checkpoint.layout import StageDir
from stageline.checkpoint.lease import StageLease
from stageline.checkpoint.tensors import read_tensors
from stageline.checkpoint.verify import verify
from stageline.errors import (
    BusyError,
    CheckpointError,
    ConfigError,
    DataError,
    DiskFullError,
    OutOfMemoryError,
    PlanError,
    TrainingError,
)
from stageline.telemetry import FAILURE_DIR_VARIABLE, read_events, read_failure


@pytest.fixture
def family() -> Any:
    from toy_family import family

    return family


def stage_dir(root: Path, run: str = "r", stage: str = "base") -> StageDir:
    return StageDir(str(root), run, stage)


def events(root: Path, kind: str, **where: str) -> list[dict[str, Any]]:
    return [e for e in read_events(stage_dir(root, **where).store) if e["event"] == kind]


def test_a_bad_step_changes_nothing_and_is_counted(train, tmp_path):
    poison = list(range(22))
    with pytest.raises(TrainingError, match="max_bad_steps=3") as caught:
        train(**{"data.poison": poison, "trainer.max_bad_steps": 3, "trainer.checkpoint_every_steps": 1})
    assert caught.value.exit_code == 7
    assert [e["in_a_row"] for e in events(tmp_path, "skipped")] == [1, 2, 3, 4]
    *_, last = stage_dir(tmp_path).committed()
    assert last.metadata.step == 3
    from toy_family.model import ToyModel

    fresh = ToyModel(3).state_dict()
    for name, tensor in read_tensors(last).items():
        if name != "strength":
            assert torch.equal(tensor, fresh[name]), name
    assert read_tensors(last, "ema").keys() == fresh.keys()
    record = read_failure(stage_dir(tmp_path).store)
    assert record.kind == "training"
    assert record.exit_code == 7
    assert record.log_tail


def test_bad_steps_here_and_there_do_not_end_a_stage(train, tmp_path):
    result = train(**{"data.poison": [5], "trainer.max_bad_steps": 1, "trainer.max_epochs": 2})
    assert result.step == 12
    skipped = events(tmp_path, "skipped")
    assert len(skipped) == 2
    assert {e["in_a_row"] for e in skipped} == {1}
    assert all(isinstance(e["loss"], float) or e["loss"] == "nan" for e in events(tmp_path, "step"))


def test_an_infinite_gradient_is_a_bad_step_too(train, tmp_path, family):
    def explode(task: Any) -> None:
        # The loss stays finite; the derivative of the square root at 0 is not.
        task.on_loss = lambda summed, context: (
            summed + (task.model.head.bias * 0).sqrt().sum() if context.step == 2 else summed
        )

    family.CHANGE[:] = [explode]
    train(**{"trainer.max_steps": 4})
    assert [e["step"] for e in events(tmp_path, "skipped")] == [3]
    assert "gradient" in events(tmp_path, "skipped")[0]["reason"]


def test_out_of_memory_names_the_setting(train, tmp_path, family):
    def starve(task: Any) -> None:
        def on_loss(summed: Any, context: Any) -> Any:
            if context.step == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return summed

        task.on_loss = on_loss

    family.CHANGE[:] = [starve]
    with pytest.raises(OutOfMemoryError) as caught:
        train()
    message = caught.value.message
    assert "\n" not in message
    for part in ("step 3", "trainer.batch_size=2", "trainer.accumulate_grad_batches=2", "trainer.precision=32-true"):
        assert part in message
    assert "trainer.batch_size=1" in caught.value.remedy
    assert "trainer.accumulate_grad_batches=4" in caught.value.remedy
    with pytest.raises(OutOfMemoryError) as caught:
        train(run="small", **{"trainer.batch_size": 1})
    assert "bf16-mixed" in caught.value.remedy


@pytest.mark.parametrize(
    ("stage", "settings", "error", "words"),
    [
        pytest.param("base", {"trainer.precision": "16-mixed"}, ConfigError, "needs a GPU", id="fp16 on a CPU"),
        pytest.param("base", {"trainer.processes": 2}, ConfigError, "one of 1, 1 of them", id="no torchrun"),
        pytest.param("base", {"data.num_train": 0, "data.num_val": 0}, DataError, "2 faults", id="no samples"),
        pytest.param("whole", {}, ConfigError, "may not be split", id="loss that cannot split"),
        pytest.param("loose", {}, ConfigError, "'nothing.*' matches none of 6", id="pattern without match"),
        pytest.param("unmeasured", {}, TrainingError, "declares the metric 'absent'", id="metric not measured"),
        pytest.param("tune", {}, PlanError, "parent default: stage 'base' will be trained", id="parent missing"),
        pytest.param("nowhere", {}, ConfigError, "no stage 'nowhere'", id="no such stage"),
    ],
)
def test_refusals(train, tmp_path, stage, settings, error, words):
    with pytest.raises(error, match=words) as caught:
        train(stage, **settings)
    assert caught.value.remedy
    assert stage_dir(tmp_path, stage=stage).committed() == []


def test_a_loss_that_may_not_be_split_trains_whole(train):
    assert train("whole", **{"trainer.accumulate_grad_batches": 1}).step == 10


def test_a_trained_parameter_that_never_has_a_gradient_ends_the_stage(train, tmp_path):
    """After ten steps, with its name; unless the family declares it."""
    with pytest.raises(TrainingError) as caught:
        train(**{"model.unused": True})
    assert caught.value.message == (
        "stage 'base': 1 of 7 trained parameters had no gradient in the first 10 steps: unused.weight"
    )
    assert stage_dir(tmp_path).committed() == []
    assert train(run="declared", **{"model.unused": True, "model.declared": True}).step == 10
    with pytest.raises(ConfigError, match=r"'unused\.\*' matches none of 6 parameters"):
        train(run="wrong", **{"model.declared": True})


def test_a_taken_metrics_port_never_ends_a_run(train, tmp_path):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))  # noqa: S104
        taken.listen()
        assert train(**{"trainer.metrics_port": taken.getsockname()[1]}).step == 10
    assert "/metrics" in events(tmp_path, "warning")[0]["text"]


def test_a_full_disk_leaves_the_last_checkpoint(train, tmp_path, monkeypatch, family):
    full = []
    real = os.statvfs

    def statvfs(path: Any) -> Any:
        found = list(real(path))
        if full:
            found[4] = 0  # f_bavail
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.setattr(os, "fstatvfs", statvfs)

    def fill(task: Any) -> None:
        def on_loss(summed: Any, context: Any) -> Any:
            if context.step == 5:
                full.append(True)
            return summed

        task.on_loss = on_loss

    family.CHANGE[:] = [fill]
    with pytest.raises(DiskFullError, match="no room"):
        train(**{"trainer.checkpoint_every_steps": 2})
    full.clear()
    (*_, last) = stage_dir(tmp_path).committed()
    assert last.metadata.step == 4
    assert verify(last) == []
    assert stage_dir(tmp_path).pointer("last").digest == last.digest
    family.CHANGE.clear()
    assert train(**{"trainer.checkpoint_every_steps": 2}).action == "continue"


def test_two_runs_in_one_directory(train, tmp_path, monkeypatch):
    monkeypatch.setenv(FAILURE_DIR_VARIABLE, str(tmp_path / "records"))
    holder = StageLease.acquire(stage_dir(tmp_path), "somebody else")
    try:
        with pytest.raises(BusyError, match="somebody else"):
            train()
        assert read_failure(stage_dir(tmp_path).store) is None, "the directory is the other one's"
        assert read_failure(tmp_path / "records").kind == "busy"
    finally:
        holder.release()
    assert train().step == 10


def test_a_stage_waits_for_the_lease_of_a_pod_that_was_killed(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STAGELINE_LEASE_WAIT_SECONDS", "60")
    StageLease.acquire(stage_dir(tmp_path), "killed pod", 2.0, keep_renewed=False)
    assert train().step == 10
    assert capsys.readouterr().out.count("waiting up to 60 s") == 1


def test_a_writer_that_lost_its_lease_leaves_the_next_ones_directory_alone(train, tmp_path, monkeypatch, family):
    directory = stage_dir(tmp_path)
    monkeypatch.setenv(FAILURE_DIR_VARIABLE, str(tmp_path / "records"))

    def take_over(task: Any) -> None:
        def on_loss(summed: Any, context: Any) -> Any:
            if context.step == 5:
                plain = json.loads(directory.store.get("lease.json"))
                other = {**plain, "holder": "the next", "id": "another", "expires": time.time() + 1000, "host": "x"}
                directory.store.put("lease.json", json.dumps(other).encode())
            return summed

        task.on_loss = on_loss

    family.CHANGE[:] = [take_over]
    with pytest.raises(BusyError, match="taken over by 'the next'"):
        train(**{"trainer.checkpoint_every_steps": 2, "trainer.async_checkpoint": False})
    assert [ref.metadata.step for ref in directory.committed()] == [2, 4]
    assert read_failure(directory.store) is None
    assert read_failure(tmp_path / "records").kind == "busy"
    assert json.loads(directory.store.get("lease.json"))["holder"] == "the next"


def test_another_identity_under_the_name(train, tmp_path):
    train()
    with pytest.raises(PlanError, match=r"data\.num_train") as caught:
        train(**{"data.num_train": 10})
    assert "run=" in caught.value.remedy
    assert read_failure(stage_dir(tmp_path).store) is None


def test_a_fault_of_ours_leaves_a_record_too(train, tmp_path, family):
    def on_loss(summed: Any, context: Any) -> Any:
        return {}["secret_key=abcdefgh"]

    family.CHANGE[:] = [lambda task: setattr(task, "on_loss", on_loss)]
    with pytest.raises(KeyError):
        train()
    record = read_failure(stage_dir(tmp_path).store)
    assert record.kind == "fault"
    assert record.exit_code == 1
    assert "abcdefgh" not in str(record)
    # The lease was given back: the next attempt may start at once.
    family.CHANGE.clear()
    assert train().action == "run"


def test_a_model_that_contradicts_its_config_is_not_trained(train, tmp_path, family):
    family.CHANGE[:] = [lambda task: setattr(task, "facts", lambda: {"width": 16})]
    with pytest.raises(CheckpointError, match="width: 16 -> 8"):
        train()
    assert stage_dir(tmp_path).committed() == []


def test_facts_that_change_on_the_way_are_not_written(train, tmp_path, family):
    def drift(task: Any) -> None:
        def on_loss(summed: Any, context: Any) -> Any:
            if context.step == 5:
                task.facts = lambda: {"width": 16}
            return summed

        task.on_loss = on_loss

    family.CHANGE[:] = [drift]
    with pytest.raises(CheckpointError, match="width"):
        train(**{"trainer.checkpoint_every_steps": 2})
    assert [ref.metadata.step for ref in stage_dir(tmp_path).committed()] == [2, 4]
