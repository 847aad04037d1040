"""The tiny profile learns the prompted task, and what it learned passes through FiLM (acceptance checks 17, 18, 19).

Without the condition the task is ambiguous: swapping the prompt must swap the output. Trained once, from scratch, for
all tests of this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stageline.contract import Evaluation
from stageline.data.prepared import PreparedData, open_prepared
from stageline.families import parse_config
from stageline.families.film_flow.config import STAGES, FilmFlowConfig
from stageline.families.film_flow.config.presets import PRESETS
from stageline.families.film_flow.evaluate import evaluate
from stageline.families.film_flow.sampling import predict_probability, training_sampling
from stageline.families.film_flow.task import build_task
from stageline.objectives.step import ValidationContext
from stageline.stage import num_steps, stage_config
from stageline.verbs.prepare import prepare_data

from .plain_loop import Trained, train
from .small import Kept

pytestmark = pytest.mark.slow


def nothing(*_: Any, **__: Any) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def data_of(folder: Path) -> PreparedData:
    config = parse_config(PRESETS["tiny"], [f"root={folder}"])
    return open_prepared(prepare_data(config).reference)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Iterator[Trained]:
    torch.set_num_threads(1)
    config = parse_config(PRESETS["tiny"], [f"root={folder}"])
    film = STAGES["film"]
    own = stage_config(config, film)
    assert isinstance(own, FilmFlowConfig)
    assert own.model.vlm_film_decoder_stages == (2, 3)
    steps = num_steps(own, film)
    assert steps is not None
    result = train(build_task(own, STAGES["film"], data_of(folder)), steps)
    with result.averaged():
        yield result


@pytest.fixture(scope="module")
def evaluation(trained: Trained, folder: Path) -> Evaluation:
    return evaluate(trained.task.config, trained.task.model, data_of(folder), {}, Kept(), nothing)


def test_the_loss_falls_to_a_quarter(trained: Trained) -> None:
    """Acceptance check 18."""
    first, last = trained.losses[:10], trained.losses[-20:]
    assert sum(last) / 20 < 0.25 * sum(first) / 10


def test_masks_are_found(evaluation: Evaluation) -> None:
    """Acceptance check 18."""
    assert evaluation.num_samples["dice"] == 48
    assert evaluation.metrics["dice"] >= 0.80
    assert evaluation.metrics["cldice"] >= 0.85


def test_the_condition_decides_what_is_found(evaluation: Evaluation) -> None:
    """Acceptance check 18."""
    found = evaluation.metrics
    assert found["dice_swapped"] <= 0.30
    assert found["dice_off"] <= 0.65
    assert found["dice_shuffle"] <= found["dice"] - 0.2


def test_junctions_are_found(evaluation: Evaluation) -> None:
    """Acceptance check 19."""
    assert evaluation.metrics["head_junction_f1"] >= 0.60


def test_the_evaluation_says_how_it_was_made(evaluation: Evaluation) -> None:
    said = evaluation.provenance
    assert (said["film_stages"], said["film_mode"], said["nfe"]) == ([2, 3], "on", 4)
    assert not said["ablation"]


def test_validation_inside_training_measures_the_same(trained: Trained, evaluation: Evaluation) -> None:
    """Acceptance check 12."""
    task = trained.task
    sums: dict[str, list[float]] = {}
    task.model.eval()
    for start in range(0, 48, 8):
        samples = tuple(range(start, start + 8))
        batch = task.collate([task.val_set[index] for index in samples])
        for name, pair in task.validate(task.model, batch, ValidationContext(task.config.seed, samples)).items():
            old = sums.setdefault(name, [0.0, 0.0])
            sums[name] = [old[0] + pair[0], old[1] + pair[1]]
    for name in ("dice", "cldice", "iou"):
        assert sums[name][0] / sums[name][1] == pytest.approx(evaluation.metrics[name], abs=1e-9)


def test_dopri5_agrees_with_many_euler_steps(trained: Trained) -> None:
    """Acceptance check 17."""
    task = trained.task
    task.model.eval()
    batch = task.collate([task.val_set[index] for index in range(4)])
    plain = training_sampling(task.config)

    def run(**keys: Any) -> tuple[torch.Tensor, int]:
        found = predict_probability(task.network, batch.image, batch.condition, batch.ids, replace(plain, **keys))
        return found.mean, found.nfe

    adaptive, cost = run(solver="dopri5")
    euler, steps = run(solver="euler", steps=64)
    assert steps == 64
    assert cost > 6
    assert float((adaptive - euler).abs().mean()) <= 0.02
