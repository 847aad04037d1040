"""Training longer: a finished stage goes on under a new fingerprint, or the plan says why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stageline.checkpoint.layout import StageDir, resolve
from stageline.checkpoint.tensors import read_tensors
from stageline.errors import ConfigError, PlanError
from stageline.telemetry import read_events

CONSTANT = {"trainer.schedule": "constant", "trainer.warmup_steps": 3}
LONGER = {**CONSTANT, "trainer.max_steps": 16, "trainer.extend": True}


def steps_taken(root: Path) -> list[int]:
    """Numbers of the steps that the stage's events tell of, in order."""
    return [e["step"] for e in read_events(StageDir(str(root), "r", "base").store) if e["event"] == "step"]


def test_a_longer_training_takes_only_the_steps_it_lacks(train: Any, tmp_path: Path) -> None:
    first = train(**CONSTANT)
    before = steps_taken(tmp_path)
    longer = train(**LONGER)
    assert (longer.action, longer.step, longer.steps) == ("continue", 16, 16)
    taken = steps_taken(tmp_path)[len(before) :]
    assert taken == sorted(taken)
    assert min(taken) > 10, "the first ten are not taken again"
    assert max(taken) == 16
    assert longer.reference != first.reference
    assert (
        resolve(str(longer.reference)).metadata.stage_fingerprint
        != resolve(str(first.reference)).metadata.stage_fingerprint
    )


def test_it_is_reused_and_so_is_the_shorter_one(train: Any) -> None:
    first = train(**CONSTANT)
    longer = train(**LONGER)
    again = train(**LONGER)
    assert (again.action, again.reference) == ("reuse", longer.reference)
    back = train(**CONSTANT)
    assert (back.action, back.reference) == ("reuse", first.reference)
    longest = train(**(LONGER | {"trainer.max_steps": 20}))
    assert (longest.action, longest.step) == ("continue", 20)


def test_its_best_is_one_of_its_own(train: Any) -> None:
    """A best of the shorter training is not what the longer one hands on, however good it was."""
    train(**CONSTANT, **{"trainer.validate_every_steps": 1})
    longer = train(**LONGER, **{"trainer.validate_every_steps": 1})
    best = resolve(str(longer.reference)).metadata.best
    assert best is not None
    assert best.step > 10


def test_steps_gone_on_with_are_those_of_one_long_training(train: Any) -> None:
    """The toy family's loss does not ask how long the training is, so that even the bits are equal."""
    train(**CONSTANT)
    extended = read_tensors(resolve(str(train(**LONGER).reference)), "raw")
    whole = read_tensors(resolve(str(train(run="whole", **(LONGER | {"trainer.extend": False})).reference)), "raw")
    assert extended.keys() == whole.keys()
    assert all(torch.equal(extended[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trainer.schedule": "cosine"}, "trainer.schedule=cosine"),
        ({"trainer.schedule": "linear", "trainer.warmup_fraction": 0.2}, "trainer.warmup_fraction=0.2"),
    ],
)
def test_a_schedule_that_knows_its_end_is_refused(train: Any, settings: dict[str, Any], said: str) -> None:
    train(**settings)
    with pytest.raises(ConfigError) as caught:
        train(**settings, **{"trainer.max_steps": 16, "trainer.extend": True})
    assert said in caught.value.message


def test_other_settings_and_no_more_steps_are_refused(train: Any) -> None:
    train(**CONSTANT)
    with pytest.raises(PlanError, match=r"trainer\.learning_rate: 0\.02 -> 0\.01"):
        train(**LONGER, **{"trainer.learning_rate": 0.01})
    with pytest.raises(PlanError, match="has 10 steps, and 10 are asked for"):
        train(**(LONGER | {"trainer.max_steps": 10}))


def test_where_nothing_was_finished_it_is_trained_from_its_beginning(train: Any) -> None:
    result = train(**LONGER)
    assert (result.action, result.step) == ("run", 16)
