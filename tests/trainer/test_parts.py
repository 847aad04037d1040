"""Smaller parts: which parameters train, groups, the save queue, validation's share of ranks, the time left."""

from __future__ import annotations

import io
import sys
import threading
import time
from dataclasses import replace
from importlib.metadata import entry_points

import pytest
import torch
from guards import HANG_SECONDS
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from toy_family.model import ToyModel
from toy_family.task import STAGE, ToyTask

from stageline.config import TrainerConfig
from stageline.contract import ParameterGroup
from stageline.data.batches import equal_batches
from stageline.errors import ConfigError, DiskFullError
from stageline.objectives.step import seeded
from stageline.stage import Trains
from stageline.trainer.gradients import summing_scale
from stageline.trainer.interruption import StopRequest
from stageline.trainer.parameters import (
    fill_optimizer,
    freeze_untrained,
    frozen_modules,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
)
from stageline.trainer.progress import ProgressView, StepClock, clock_text
from stageline.trainer.ranks import Ranks
from stageline.trainer.saving import Saved, SaveQueue
from stageline.trainer.validation import is_better, plan_validation


def test_patterns_choose_what_trains():
    model = ToyModel()
    trains = Trains(STAGE.trains)
    assert freeze_untrained(model, trains, "x") == ("body.0.weight", "body.0.bias", "head.weight", "head.bias")
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["stem.weight", "stem.bias"]
    assert freeze_untrained(model, Trains(("*",), ("*.bias", "stem.*")), "x") == ("body.0.weight", "head.weight")
    with pytest.raises(ConfigError, match=r"stage x: trains: 3 faults") as caught:
        freeze_untrained(model, Trains(("body.*", "hed.*", "neck.*"), ("body.1.*",)), "stage x")
    assert "'hed.*' matches none of 6 parameters; near: 'head'" in caught.value.message
    assert "exclude 'body.1.*' matches none" in caught.value.message
    with pytest.raises(ConfigError, match="leaves no parameter"):
        freeze_untrained(model, Trains(("body.*",), ("*",)), "stage x")


def test_no_installed_package_puts_callbacks_into_training(tmp_path, monkeypatch):
    """Fabric would load what its group of entry points names, here a module that is not there."""
    record = tmp_path / "stranger-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[lightning_fabric.callbacks_factory]\nall = no_such_module:make\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert [point.value for point in entry_points(group="lightning_fabric.callbacks_factory")] == [
        "no_such_module:make"
    ]
    Ranks(TrainerConfig(accelerator="cpu"))


def test_modules_in_which_nothing_trains_are_the_largest_ones():
    model = ToyModel()
    freeze_untrained(model, Trains(("head.*",)), "x")
    assert [name for name, module in model.named_modules() if module in list(frozen_modules(model))] == ["stem", "body"]
    freeze_untrained(model, Trains(("*",)), "x")
    assert list(frozen_modules(model)) == []


def test_groups_must_cover_what_trains_exactly():
    task = ToyTask()
    trained = freeze_untrained(task.model, Trains(STAGE.trains), "x")
    groups = (
        ParameterGroup("a", ("body.0.weight", "head.weight", "stem.weight")),
        ParameterGroup("b", ("head.weight", "head.bias")),
    )
    with pytest.raises(ConfigError) as caught:
        make_optimizer(task.model, groups, trained, TrainerConfig())
    for fault in ("'head.weight' stands in 'a' and 'b'", "'stem.weight' in 'a' does not train", "'body.0.bias' trains"):
        assert fault in caught.value.message


def test_groups_have_their_factors_and_decay():
    task = ToyTask()
    trained = freeze_untrained(task.model, Trains(STAGE.trains), "x")
    optimizer = make_optimizer(task.model, task.parameter_groups(), trained, TrainerConfig(weight_decay=0.1))
    set_learning_rate(optimizer, 0.5)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.5, 0.1), (1.0, 0.0)]


def test_muon_turns_matrices_by_their_singular_vectors_and_leaves_the_rest_to_adamw():
    """From zero momentum the step is U V' of the gradient, each singular value within the iteration's own bounds."""
    rate, moved, sizes = 1e-2, {}, torch.linspace(0.3, 5, 8).double()
    u, v = (torch.linalg.qr(torch.randn(8, 8, generator=seeded("muon", side)).double())[0] for side in "uv")
    for optimizer in ("adamw", "muon"):
        task = ToyTask()
        trained = freeze_untrained(task.model, Trains(STAGE.trains), "x")
        settings = TrainerConfig(optimizer=optimizer, learning_rate=rate, weight_decay=0.0)
        made = make_optimizer(task.model, task.parameter_groups(), trained, settings, ("body.*",))
        set_learning_rate(made, rate)
        before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
        task.model(torch.ones(3, 4)).sum().backward()
        task.model.body[0].weight.grad = ((u * sizes) @ v.T).float()
        made.step()
        moved[optimizer] = {name: p.detach() - before[name] for name, p in task.model.named_parameters()}
    assert [name for name, by in moved["muon"].items() if not torch.equal(by, moved["adamw"][name])] == [
        "body.0.weight"
    ]
    turned = u.T @ -moved["muon"]["body.0.weight"].double() @ v / (rate * 0.2 * 8**0.5)
    assert (turned - turned.diag().diag()).abs().max() < 0.1  # it computes in bfloat16
    assert turned.diag().min() > 0.6
    assert turned.diag().max() < 1.25


def test_muon_is_refused_where_nothing_is_declared_for_it():
    task = ToyTask()
    trained = freeze_untrained(task.model, Trains(STAGE.trains), "x")
    with pytest.raises(ConfigError, match=r"'bodies.\*' matches none of .* parameters"):
        make_optimizer(task.model, task.parameter_groups(), trained, TrainerConfig(optimizer="muon"), ("bodies.*",))
    with pytest.raises(ConfigError, match=r"no matrix that trains is among \['body\.\*bias', 'stem\.\*'\]"):
        make_optimizer(
            task.model,
            task.parameter_groups(),
            trained,
            TrainerConfig(optimizer="muon"),
            ("body.*bias", "stem.*"),  # vectors, and what is frozen
        )


@pytest.mark.parametrize(("optimizer", "slots"), [("adamw", 0), ("muon", -2)])
def test_optimizer_state_by_name_round_trips(optimizer, slots):
    task = ToyTask()
    trained = freeze_untrained(task.model, Trains(STAGE.trains), "x")
    settings = TrainerConfig(optimizer=optimizer)
    made = [
        make_optimizer(task.model, task.parameter_groups(), trained, settings, ("body.*.weight",)) for _ in range(2)
    ]
    assert optimizer_tensors(made[0], task.model) == {}
    task.model(torch.ones(3, 4)).sum().backward()
    made[0].step()
    tensors = optimizer_tensors(made[0], task.model)
    assert len(tensors) == 3 * len(trained) + slots  # of a matrix Muon keeps one tensor instead of three
    for name, tensor in fill_optimizer(made[1], task.model, sorted(tensors)).items():
        tensor.copy_(tensors[name])
    again = optimizer_tensors(made[1], task.model)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) and again[name].dtype == tensors[name].dtype for name in again)


@pytest.mark.parametrize(("batch", "accumulate", "size"), [(1, 1, 1), (8, 1, 1), (3, 5, 2)])
def test_the_summing_scale_is_a_power_of_two_near_the_mean(batch, accumulate, size):
    scale = summing_scale(TrainerConfig(batch_size=batch, accumulate_grad_batches=accumulate), size)
    assert torch.frexp(torch.tensor(scale)).mantissa == 0.5
    assert 0.5 < scale * batch * accumulate * size <= 1


def test_never_two_saves_at_once_and_errors_surface():
    queue = SaveQueue(background=True)
    running, most = [0], [0]

    def write() -> str:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05)
        running[0] -= 1
        return "uri@sha256:0"

    for step in range(3):
        queue.put(write, Saved(step, "", False, False), began=time.monotonic())
    queue.join()
    assert most == [1]
    assert [saved.step for saved in queue.take()] == [0, 1, 2]
    assert queue.take() == []

    def fail() -> str:
        raise DiskFullError("full")

    queue.put(fail, Saved(3, "", False, False), began=time.monotonic())
    queue.join()
    with pytest.raises(DiskFullError):
        queue.take()
    queue.put(fail, Saved(4, "", False, False), began=time.monotonic())
    with pytest.raises(DiskFullError):
        queue.put(write, Saved(5, "", False, False), began=time.monotonic())


def test_a_save_in_the_background_does_not_block():
    started, gate = threading.Event(), threading.Event()

    def write() -> str:
        started.set()
        return str(gate.wait(HANG_SECONDS))

    queue = SaveQueue(background=True)
    began = time.monotonic()
    queue.put(write, Saved(1, "", False, False), began=began)
    asked = time.monotonic() - began
    assert queue.take() == []
    assert started.wait(HANG_SECONDS)
    time.sleep(asked)  # so that writing takes longer than the loop waited, however busy the machine is
    gate.set()
    queue.join()
    (saved,) = queue.take()
    assert saved.reference == "True"
    assert saved.blocked_seconds <= saved.write_seconds


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 5))
def test_validation_covers_each_sample_once_in_equally_many_batches(num, batch, size):
    for kinds in (1, 2, num):  # samples that are alike, of two sizes, all different
        plans = [plan_validation(num, lambda index: index % kinds, batch, rank, size) for rank in range(size)]  # noqa: B023
        assert len({len(plan.batches) for plan in plans}) == 1
        counted = [part for plan in plans for part in plan.batches[: plan.counted]]
        assert sorted(index for part in counted for index in part) == list(range(num))
        assert all(len(part) <= batch and len({index % kinds for index in part}) == 1 for part in counted)


def test_samples_that_are_alike_fill_batches_in_their_order():
    assert [plan_validation(7, lambda _: 0, 2, rank, 2).batches for rank in range(2)] == [
        [[0, 2], [4, 6]],
        [[1, 3], [5]],
    ]
    assert equal_batches(range(6), lambda index: index in (1, 2, 3), 2) == [[0], [1, 2], [3], [4, 5]]


def test_better_follows_the_direction():
    up, down = replace(STAGE, direction="max"), replace(STAGE, direction="min")
    assert is_better(0.6, 0.5, up)
    assert not is_better(0.5, 0.5, up)
    assert is_better(0.4, 0.5, down)
    assert is_better(-1.0, None, up)
    assert not is_better(float("nan"), None, up)


def test_the_clock_counts_the_time_only_where_there_is_no_main_thread():
    found = []

    def elsewhere() -> None:
        with StopRequest(max_seconds=0.001) as stop:
            time.sleep(0.002)
            found.append(stop.reason)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == ["trainer.max_seconds=0.001"]
    with StopRequest() as stop:
        assert stop.reason == ""


def test_time_left_is_steps_times_the_mean():
    clock = StepClock()
    for _ in range(50):
        clock.add(2.0)
    assert clock.left_seconds(10) == pytest.approx(20.0)
    assert clock_text(3725.4) == "1:02:05"


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_or_a_bar(terminal):
    out = io.StringIO()
    view = ProgressView("film", 20, Console(file=out, force_terminal=terminal, width=120))
    view.step(10, {"loss": 0.5}, 65.0, log=True)
    view.step(11, {"loss": 0.5}, 60.0, log=False)
    view.line("validation  dice 0.9")
    view.step(20, {"loss": 0.25}, 0.0, log=True)
    view.close()
    text = out.getvalue()
    assert "validation  dice 0.9" in text
    if terminal:
        assert "20/20" in text
    else:
        assert text.splitlines() == [
            "film: step 10/20  loss 0.5  0:01:05 left",
            "film: validation  dice 0.9",
            "film: step 20/20  loss 0.25",
        ]
        assert list(view.lines)[-1] == "step 20/20  loss 0.25"
