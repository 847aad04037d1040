"""Validation in the loop: tried before the first step, after the save that is due, and what may be called the best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import weights_and_optimizer

from stageline.checkpoint.layout import StageDir, resolve
from stageline.errors import DataError, InterruptedRunError, TrainingError
from stageline.telemetry import read_events

SETTINGS = {"model.dropout": 0.2, "trainer.validation_batch_size": 3, "trainer.num_workers": 1}


@pytest.fixture
def family() -> Any:
    from toy_family import family

    return family


def instead(validate: Callable[[Any, Any, Any], Any]) -> Callable[[Any], None]:
    """A change of the toy task: `validate(task, real, context)` gives the metrics, or () for the real ones."""

    def change(task: Any) -> None:
        real = task.validate

        def called(model: Any, batch: Any, context: Any) -> Any:
            return validate(task, lambda: real(model, batch, context), context)

        task.validate = called

    return change


def stage_dir(root: Path, run: str = "r") -> StageDir:
    return StageDir(str(root), run, "base")


def told(root: Path, kind: str, run: str = "r") -> list[dict[str, Any]]:
    return [event for event in read_events(stage_dir(root, run).store) if event["event"] == kind]


def test_two_batches_are_validated_before_the_first_step_of_a_new_stage_only(train, tmp_path, family):
    seen: list[tuple[float, tuple[int, ...]]] = []

    def note(task: Any, real: Any, context: Any) -> Any:
        seen.append((float(task.model.strength), context.samples))
        return real()

    family.CHANGE[:] = [instead(note)]
    with pytest.raises(InterruptedRunError):
        train(**SETTINGS, **{"trainer.max_seconds": 1e-6})
    assert seen == [], "who is asked to stop does not begin with it"
    train(run="whole", **SETTINGS)
    assert [samples for strength, samples in seen if strength == 0.0] == [(0, 1, 2), (6,)]
    assert [samples for strength, samples in seen if strength == 1.0] == [(0, 1, 2), (3, 4, 5), (6,)]
    assert [event["step"] for event in told(tmp_path, "validation", "whole")] == [10]
    assert [event["step"] for event in told(tmp_path, "validation_checked", "whole")] == [0]
    seen.clear()
    train(**SETTINGS)
    assert 0.0 not in {strength for strength, _ in seen}, "a stage that goes on was tried already"


def test_the_trial_changes_nothing_that_follows(train, tmp_path, family):
    train(run="plain", **SETTINGS)

    def draw(task: Any, real: Any, context: Any) -> Any:
        if float(task.model.strength) == 0.0:
            torch.manual_seed(99)
            torch.rand(1000)
            return {"error": (0.0, 1.0), "other": (1.0, 1.0)}
        return real()

    family.CHANGE[:] = [instead(draw)]
    train(run="drawn", **SETTINGS)
    assert weights_and_optimizer(tmp_path, "drawn") == weights_and_optimizer(tmp_path, "plain")


@pytest.mark.parametrize("metrics", [{"other": (1.0, 1.0)}, {}])
def test_a_metric_that_is_never_measured_ends_the_stage_before_it_begins(train, tmp_path, family, metrics):
    family.CHANGE[:] = [instead(lambda *_: metrics)]
    with pytest.raises(TrainingError, match="declares the metric 'error'"):
        train()
    assert told(tmp_path, "step") == []


def test_a_fault_of_validation_is_found_before_the_first_step(train, tmp_path, family):
    def refuse(*_: Any) -> Any:
        raise DataError("a picture is damaged")

    family.CHANGE[:] = [instead(refuse)]
    with pytest.raises(DataError, match="damaged"):
        train()
    assert told(tmp_path, "step") == []
    assert stage_dir(tmp_path).committed() == []


def test_a_fault_of_the_last_validation_costs_no_step(train, tmp_path, family):
    def refuse(task: Any, real: Any, context: Any) -> Any:
        if float(task.model.strength) == 1.0:
            raise DataError("a picture is damaged")
        return real()

    train(run="whole", **SETTINGS)
    family.CHANGE[:] = [instead(refuse)]
    with pytest.raises(DataError, match="damaged"):
        train(**SETTINGS)
    (left,) = stage_dir(tmp_path).committed()
    assert (left.metadata.step, left.metadata.final, left.metadata.metrics) == (10, False, {})
    family.CHANGE.clear()
    again = train(**SETTINGS)
    assert again.action == "continue"
    assert len(told(tmp_path, "step")) == 10
    assert weights_and_optimizer(tmp_path, "r") == weights_and_optimizer(tmp_path, "whole")


def test_a_step_is_saved_again_only_where_its_metrics_are_needed(train, tmp_path, family):
    """Validation gets better until step 6 and worse after it."""

    def by_step(task: Any, real: Any, context: Any) -> Any:
        step = round(float(task.model.strength) * 10)
        return {"error": (abs(step - 6.0), 1.0)}

    family.CHANGE[:] = [instead(by_step)]
    settings = {"trainer.validate_every_steps": 2, "trainer.checkpoint_every_steps": 4}
    expected = {
        # At 4 a save is due and it is the best, at 8 a save is due, at 2 and 6 there is a best.
        "always": ([2, 4, 4, 6, 8, 10, 10], 6),
        "when_due": ([4, 4, 8, 10, 10], 4),
    }
    for save_best, (saves, best) in expected.items():
        handed_on = train(run=save_best, **settings, **{"trainer.save_best": save_best}).reference
        assert [event["step"] for event in told(tmp_path, "checkpoint", save_best)] == saves
        assert resolve(str(handed_on)).metadata.best.step == best
        assert resolve(str(handed_on)).metadata.step == best
        assert resolve(str(handed_on)).metadata.metrics == {"error": abs(best - 6.0)}
        assert [event["step"] for event in told(tmp_path, "validation", save_best)] == [2, 4, 6, 8, 10]
    several = {**settings, "trainer.keep": {"best": 2, "last": 9}}
    train(run="ranked", **several)
    assert [event["step"] for event in told(tmp_path, "checkpoint", "ranked")] == [2, 4, 4, 6, 8, 8, 10, 10]
    assert {ref.metadata.step: ref.metadata.metrics["error"] for ref in stage_dir(tmp_path, "ranked").committed()} == {
        2: 4.0, 4: 2.0, 6: 0.0, 8: 2.0, 10: 4.0
    }  # fmt: skip
