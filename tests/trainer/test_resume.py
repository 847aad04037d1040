"""Interrupted and continued equals uninterrupted, bit for bit: killed anywhere, any number of loader workers."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks

from stageline.checkpoint.layout import StageDir
from stageline.checkpoint.verify import verify
from stageline.errors import InterruptedRunError, PeerLostError
from stageline.signals import REPEAT_SECONDS
from stageline.telemetry import read_events, read_failure

SETTINGS = {
    "trainer.checkpoint_every_steps": 3,
    "trainer.validate_every_steps": 4,
    "trainer.max_steps": 10,
    "model.dropout": 0.2,
    "trainer.schedule": "onecycle",
}


def weights_and_optimizer(root: Path, run: str, stage: str = "base") -> tuple[dict[str, str], dict[str, Any]]:
    """(hashes of all tensor files of the final checkpoint, what its state and metrics say but for times)."""
    ref = StageDir(str(root), run, stage).newest()
    assert ref is not None
    assert ref.metadata.final
    assert verify(ref) == []
    state = json.loads(ref.store.get("training/state.json"))
    state.pop("seconds")
    hashes = {name: record.sha256 for name, record in ref.metadata.files.items() if name.endswith("safetensors")}
    return hashes, {**state, "metrics": ref.metadata.metrics}


@pytest.fixture(scope="module")
def runs() -> dict[str, tuple[Any, Any]]:
    """Settings -> what `uninterrupted` gives."""
    return {}


@pytest.fixture
def uninterrupted(train, tmp_path, runs) -> Any:
    """uninterrupted(settings) -> (weights and optimizer, best) of a run that nothing stopped, made once."""

    def find(settings: dict[str, Any]) -> tuple[Any, Any]:
        key = json.dumps(settings, sort_keys=True)
        if key not in runs:
            whole = train(run="whole", **settings)
            runs[key] = (weights_and_optimizer(tmp_path, "whole"), whole.best)
        return runs[key]

    return find


def kill_in_loss(step: int, micro: int, rank: int = 0) -> Any:
    """SIGKILL in the loss of one micro-batch (counted within the step)."""

    def change(task: Any) -> None:
        seen: dict[int, int] = {}

        def on_loss(summed: Any, context: Any) -> Any:
            number = seen.setdefault(context.step, 0)
            seen[context.step] += 1
            if (context.step, number) == (step, micro) and os.environ.get("RANK", "0") == str(rank):
                os.kill(os.getpid(), signal.SIGKILL)
            return summed

        task.on_loss = on_loss

    return change


def kill_in_save(step: int) -> Any:
    """SIGKILL when the average's file of a step's checkpoint is written and about to get its name."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event != "os.rename" or "ema" not in str(args[1]):
            return
        # The store names a file relative to its open folder.
        folder = Path(f"/proc/self/fd/{args[3]}").readlink() if args[3] >= 0 else Path()
        if f"step-{step:08d}" in str(folder / str(args[1])):
            os.kill(os.getpid(), signal.SIGKILL)

    def change(task: Any) -> None:
        sys.addaudithook(hook)

    return change


DEATHS = {
    "mid_epoch": lambda: kill_in_loss(4, 0),
    "mid_accumulation": lambda: kill_in_loss(7, 1),
    "in_save": lambda: kill_in_save(6),
}
"""In this order with 0, 1 and 2 loader workers."""


@pytest.fixture
def family() -> Any:
    from toy_family import family

    return family


@pytest.mark.parametrize(
    ("size", "optimizer", "deaths"),
    [
        (1, "muon", ["mid_accumulation"]),
        pytest.param(1, "adamw", ["mid_epoch", "in_save"], marks=(pytest.mark.slow, pytest.mark.ranks)),
        pytest.param(2, "adamw", ["mid_accumulation", "in_save"], marks=(pytest.mark.slow, pytest.mark.ranks)),
        pytest.param(2, "muon", ["mid_epoch"], marks=(pytest.mark.slow, pytest.mark.ranks)),
    ],
    ids=str,
)
def test_resume_equals_uninterrupted(train, tmp_path, family, size, optimizer, deaths):
    settings = {**SETTINGS, "trainer.optimizer": optimizer, "trainer.processes": size, "trainer.batch_size": 4 // size}
    whole = run_ranks(lambda _: train(run="whole", **settings).step, size, tmp_path / "whole")
    assert [end.code for end in whole] == [0] * size, whole
    expected = weights_and_optimizer(tmp_path, "whole")
    for name in deaths:
        run, workers = name.replace("_", "-"), list(DEATHS).index(name)
        family.CHANGE[:] = [DEATHS[name]()]
        died = run_ranks(lambda _: train(run=run, **settings).step, size, tmp_path / run)  # noqa: B023
        assert died[0].code == -signal.SIGKILL, died
        if size == 2:
            assert died[1].code == PeerLostError.exit_code, died[1].output
        left = StageDir(str(tmp_path), run, "base")
        newest = left.newest()
        assert newest is not None
        assert newest.metadata.step in (3, 4, 6)
        assert not newest.metadata.final
        family.CHANGE.clear()
        again = {**settings, "trainer.num_workers": workers}
        ended = run_ranks(lambda _: train(run=run, **again).action, size, tmp_path / run)  # noqa: B023
        assert [end.code for end in ended] == [0] * size, ended
        assert ended[0].value == "continue"
        assert weights_and_optimizer(tmp_path, run) == expected, name
        steps = [e["step"] for e in read_events(left.store) if e["event"] == "step"]
        assert steps == list(range(1, 11)), "each step is told once"


@pytest.mark.slow
@pytest.mark.ranks
def test_a_signal_to_one_rank_commits_on_all(train, tmp_path, family):
    settings = {**SETTINGS, "trainer.processes": 2}
    whole = run_ranks(lambda _: train(run="whole", **settings).step, 2, tmp_path / "whole")
    assert [end.code for end in whole] == [0, 0], whole

    def signalled(task: Any) -> None:
        def on_loss(summed: Any, context: Any) -> Any:
            if context.step == 4 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)
            return summed

        task.on_loss = on_loss

    family.CHANGE[:] = [signalled]
    stopped = run_ranks(lambda _: train(run="stopped", **settings).step, 2, tmp_path / "stopped")
    assert [end.code for end in stopped] == [143, 143], stopped
    left = StageDir(str(tmp_path), "stopped", "base")
    newest = left.newest()
    assert newest is not None
    # The signal came in step 5, before the exchange in which ranks hear of it.
    assert newest.metadata.step == 5
    record = read_failure(left.store)
    assert record is not None
    assert record.kind == InterruptedRunError.kind
    assert record.exit_code == 143
    assert {path.name for path in left.store.local_path().glob("failure*")} == {
        "failure.json",
        "failure-rank-1.json",
    }
    family.CHANGE.clear()
    ended = run_ranks(lambda _: train(run="stopped", **settings).action, 2, tmp_path / "stopped")
    assert [end.value for end in ended] == ["continue"] * 2, ended
    assert weights_and_optimizer(tmp_path, "stopped") == weights_and_optimizer(tmp_path, "whole")
    assert read_failure(left.store) is None, "an earlier attempt's record does not outlive it"


def signal_in_loss(step: int) -> Any:
    """SIGTERM while the loss of a step is computed."""

    def change(task: Any) -> None:
        def on_loss(summed: Any, context: Any) -> Any:
            if context.step == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return summed

        task.on_loss = on_loss

    return change


def signal_in_validation(number: int) -> Any:
    """SIGTERM in the first batch of the n-th validation; the one that is tried before step 1 is none of them."""

    def change(task: Any) -> None:
        calls = []
        real = task.validate

        def validate(model: Any, batch: Any, context: Any) -> Any:
            calls.append(float(model.strength))
            if len({strength for strength in calls if strength}) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(model, batch, context)

        task.validate = validate

    return change


@pytest.mark.parametrize(
    ("stop", "step"),
    [
        pytest.param(signal_in_loss(4), 4, id="before a validation"),
        pytest.param(signal_in_loss(10), 10, id="before the last validation"),
        pytest.param(signal_in_validation(1), 4, id="in a validation"),
        pytest.param(signal_in_validation(3), 10, id="in the last validation"),
    ],
)
def test_a_stop_puts_validation_off_and_resume_makes_it(train, tmp_path, family, uninterrupted, stop, step):
    settings = {**SETTINGS, "trainer.validation_batch_size": 3}
    expected, best = uninterrupted(settings)
    family.CHANGE[:] = [stop]
    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        train(run="stopped", **settings)
    left = StageDir(str(tmp_path), "stopped", "base")
    assert left.newest().metadata.step == step
    assert not left.newest().metadata.final
    family.CHANGE.clear()
    again = train(run="stopped", **settings)
    assert again.action == "continue"
    assert again.best == best
    assert [e["step"] for e in read_events(left.store) if e["event"] == "validation"] == [4, 8, 10]
    assert weights_and_optimizer(tmp_path, "stopped") == expected


def interrupt_twice(pause_seconds: float) -> Any:
    """A change of the toy task: two SIGINTs in its third step, that far apart."""

    def change(task: Any) -> None:
        def on_loss(summed: Any, context: Any) -> Any:
            if context.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(pause_seconds)
                os.kill(os.getpid(), signal.SIGINT)
            return summed

        task.on_loss = on_loss

    return change


def test_a_second_ctrl_c_ends_at_once(train, tmp_path, family):
    family.CHANGE[:] = [interrupt_twice(2 * REPEAT_SECONDS)]
    ended = run_ranks(lambda _: train(run="twice", **SETTINGS).step, 1, tmp_path / "twice")
    assert ended[0].code == -signal.SIGINT


def test_a_signal_that_is_delivered_twice_is_one_request(train, tmp_path, family):
    family.CHANGE[:] = [interrupt_twice(0.0)]
    with pytest.raises(InterruptedRunError, match="Ctrl-C"):
        train(run="doubled", **SETTINGS)
    assert StageDir(str(tmp_path), "doubled", "base").newest().metadata.step == 3


def test_max_seconds_stops_commits_and_continues(train, tmp_path, uninterrupted):
    settings = {**SETTINGS, "trainer.validation_batch_size": 3}
    expected, best = uninterrupted(settings)
    with pytest.raises(InterruptedRunError, match="max_seconds"):
        train(run="short", **settings, **{"trainer.max_seconds": 1e-6})
    assert StageDir(str(tmp_path), "short", "base").newest().metadata.step == 1
    assert train(run="short", **settings).best == best
    assert weights_and_optimizer(tmp_path, "short") == expected


def kill_after_validation(number: int) -> Any:
    """SIGKILL in the first loss after the n-th validation."""

    def change(task: Any) -> None:
        validated: list[float] = []
        real = task.validate

        def validate(model: Any, batch: Any, context: Any) -> Any:
            validated.append(float(model.strength))
            return real(model, batch, context)

        def on_loss(summed: Any, context: Any) -> Any:
            if len({strength for strength in validated if strength}) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return summed

        task.validate, task.on_loss = validate, on_loss

    return change


def kill_in_validation(number: int) -> Any:
    """SIGKILL in the n-th validation: as when a picture is too large for the memory."""

    def change(task: Any) -> None:
        validated: set[float] = set()
        real = task.validate

        def validate(model: Any, batch: Any, context: Any) -> Any:
            validated.add(float(model.strength))
            if len(validated - {0.0}) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(model, batch, context)

        task.validate = validate

    return change


@pytest.mark.parametrize(
    ("death", "step"),
    [
        pytest.param(kill_in_validation(2), 8, id="in a validation"),
        pytest.param(kill_in_validation(3), 10, id="in the last validation"),
        pytest.param(kill_after_validation(2), 8, id="after a validation"),
    ],
)
def test_a_save_that_is_due_is_committed_before_its_validation(train, tmp_path, family, uninterrupted, death, step):
    settings = {**SETTINGS, "trainer.checkpoint_every_steps": 4}
    expected, best = uninterrupted(settings)
    family.CHANGE[:] = [death]
    died = run_ranks(lambda _: train(run="died", **settings).step, 1, tmp_path / "died")
    assert died[0].code == -signal.SIGKILL, died
    left = StageDir(str(tmp_path), "died", "base")
    assert (left.newest().metadata.step, left.newest().metadata.final) == (step, False)
    family.CHANGE.clear()
    again = train(run="died", **settings)
    assert (again.action, again.best) == ("continue", best)
    assert weights_and_optimizer(tmp_path, "died") == expected
    assert [e["step"] for e in read_events(left.store) if e["event"] == "validation"] == [4, 8, 10]
