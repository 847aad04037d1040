"""Pictures as they are: sides that the network does not divide, several sizes in one split, through the whole chain."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from stageline.contract import Evaluation
from stageline.data.prepared import open_prepared
from stageline.families.film_flow.config import FilmFlowConfig
from stageline.families.film_flow.config.stages import STAGES
from stageline.families.film_flow.evaluate import evaluate
from stageline.families.film_flow.predict import predict
from stageline.families.film_flow.sampling import evaluation_sampling, predict_probability
from stageline.families.film_flow.task import FilmFlowTask, build_task
from stageline.trainer.interruption import StopRequest
from stageline.trainer.ranks import Ranks
from stageline.trainer.validation import run_validation
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

from .small import Kept, at_stage, kick, kicked_model, make_config

RETINA = [(73, 61)]
"""584 x 565 made small: neither side is a multiple of the network's 8."""
TINY_BESIDE_HUGE = [(9, 7), (150, 40), (20, 90)]
"""Smaller than a training crop of 32 on both sides, on none, and on one."""
MIXED = [(40, 48), (37, 53), (40, 48), (33, 37), (37, 53)]
SIZES = [
    pytest.param([*RETINA, *RETINA, *TINY_BESIDE_HUGE, MIXED[0]], id="all"),
    pytest.param(RETINA, id="retina", marks=pytest.mark.slow),
    pytest.param(TINY_BESIDE_HUGE, id="tiny-beside-huge", marks=pytest.mark.slow),
    pytest.param(MIXED, id="mixed", marks=pytest.mark.slow),
]
KEYS: dict[str, Any] = {
    "stage_overrides": {"backbone": {"trainer.max_steps": 1}, "film": {"trainer.max_steps": 1}},
    "model.timesteps": 1,
}


def quiet(*_: Any) -> None:
    """No progress."""


def draw_pictures(folder: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """Pictures and labels of these sizes: a bright cross with a junction in it."""
    for number, (height, width) in enumerate(sizes):
        rng = np.random.default_rng([number, len(folder.name)])
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[height // 2 : height // 2 + 2, 3 : width - 3] = 255
        mask[len(folder.name) : height - 3, width // 3 : width // 3 + 3] = 255
        noise = rng.integers(0, 60, (height, width), dtype=np.uint8)
        for part, picture in (("image", noise + mask // 2), ("label", mask)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / part / f"{folder.name}-{number}.png")
    return folder


def config_of(root: Path, sizes: Sequence[tuple[int, int]], **keys: Any) -> FilmFlowConfig:
    """A config over pictures of these sizes, validation and training alike, each with a prompt of its own."""
    train, val = (draw_pictures(root / split, sizes) for split in ("train", "val"))
    names = [path.name for folder in (train, val) for path in sorted((folder / "image").iterdir())]
    prompts = root / "prompts.json"
    prompts.write_text(json.dumps({name: f"dark branches {number}" for number, name in enumerate(names)}))
    words = {"data.train_dir": str(train), "data.val_dir": str(val), "data.prompts_file": str(prompts)}
    return make_config(root, **{"data.name": "folder", **words, **KEYS, **keys})


@pytest.mark.parametrize("sizes", SIZES)
def test_both_stages_end_with_a_checkpoint_that_is_evaluated_and_predicts(
    tmp_path: Path, sizes: list[tuple[int, int]]
) -> None:
    config = config_of(tmp_path, sizes, **{"evaluate.compare_film": False})
    data = str(prepare_data(config).reference)
    for stage in ("backbone", "film"):
        result = train_stage(config, stage, data=data)
        assert math.isfinite(result.metrics["dice"])
    assert {"film_3_gamma_abs", "head_junction_f1"} <= set(result.metrics)
    record = evaluate_checkpoint(config, str(result.reference), data)
    for name in ("dice", "iou", "cldice"):
        assert result.metrics[name] == pytest.approx(record.metrics[name], abs=1e-9)


def validation_of(config: FilmFlowConfig, task: FilmFlowTask, batch_size: int) -> dict[str, float]:
    """Validation inside training with batches of this size; FiLM's numbers of a batch as a whole left out."""
    settings = config.trainer.model_copy(update={"validation_batch_size": batch_size})
    with StopRequest() as stop:
        found = run_validation(task, task.model, settings, Ranks(settings), seed=config.seed, stop=stop)
    assert found is not None
    metrics, counts = found
    assert counts["dice"] == len(task.val_set)
    return {name: value for name, value in metrics.items() if not name.endswith(("_spread", "_p50", "_p95"))}


def test_validation_does_not_depend_on_the_size_of_batches(tmp_path: Path) -> None:
    config = at_stage(config_of(tmp_path, MIXED), "film")
    data = open_prepared(prepare_data(config).reference)
    task = build_task(config, STAGES["film"], data)
    kick(task.network)
    alone = validation_of(config, task, 1)
    assert -1 <= alone["condition_cosine"] < 0.99
    for batch_size in (2, 8):
        assert validation_of(config, task, batch_size) == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("window", [False, True])
def test_an_evaluation_is_the_same_for_every_size_of_batches_and_each_picture_has_its_size(
    tmp_path: Path, window: bool
) -> None:
    keys = {"model.use_sliding_infer": window, "evaluate.compare_film": not window}
    config = config_of(tmp_path, MIXED, **{"evaluate.prompt": "dark branches", **keys})
    data = open_prepared(prepare_data(config).reference)
    model = kicked_model(config)

    rows: dict[int, set[tuple[str, str]]] = {}

    def measure(batch_size: int) -> Evaluation:
        section = config.evaluate.model_copy(update={"batch_size": batch_size})
        own = at_stage(config.model_copy(update={"evaluate": section}), "film")

        kept = Kept()
        found = evaluate(own, model, data, {}, kept, quiet)
        rows[batch_size] = set(kept.rows)
        return found

    one, many = measure(1), measure(8)
    assert rows[1] == rows[8]
    assert len({name for name, mode in rows[1] if mode == "on"}) == len(MIXED)
    for name, value in one.metrics.items():
        assert many.metrics[name] == pytest.approx(value, abs=0.02), name
    paths = [tmp_path / "val" / "image" / f"val-{number}.png" for number in range(len(MIXED))]
    shapes = [made["size"] for made in predict(at_stage(config, "film"), model, paths, quiet)]
    assert shapes == [list(size) for size in MIXED]


@pytest.mark.parametrize("window", [False, True])
def test_a_small_picture_is_predicted_as_if_it_had_been_padded_by_hand(tmp_path: Path, window: bool) -> None:
    config = make_config(tmp_path, **{**KEYS, "model.use_sliding_infer": window})
    model, sampling = kicked_model(config), evaluation_sampling(config)
    side = config.data.image_size
    small = torch.rand(1, 1, side - 12, side - 1, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = functional.pad(small, (0, 1, 0, 12), mode="replicate")
    parts = [predict_probability(model, image, None, ["a"], sampling).mean for image in (small, whole)]
    assert torch.equal(parts[0], parts[1][..., : side - 12, : side - 1])
