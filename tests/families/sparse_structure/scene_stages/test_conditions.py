"""Conditions that do not fit the networks, in training and in prediction; samples that are nothing or no numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families.sparse_structure.data.folders import write_scene_files
from families.sparse_structure.model.networks import moved

from stageline.errors import CheckpointError, DataError
from stageline.families.sparse_structure.assembly import build_model
from stageline.families.sparse_structure.config import STAGES
from stageline.families.sparse_structure.predict import predict, read_inputs
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

from .runs import at_stage, small
from .small import CHANNELS


def latents(count: int) -> dict[str, torch.Tensor]:
    return {name: torch.ones(count, 64 if name == "shape" else 1, width) for name, width in CHANNELS.items()}


def of_latents(root: Path, *overrides: str) -> Any:
    return small(root, "data.name=latents", f"data.data_root={root / 'own'}", "trainer.batch_size=1", *overrides)


def test_scenes_whose_conditions_do_not_fit_are_named_by_the_training(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for number, name in enumerate(("first", "second")):
            conditions = {"cond": torch.ones(1, 2 + number, 32)}
            write_scene_files(tmp_path / "own", name, latents(2), conditions, split=split)
    data = str(prepare_data(of_latents(tmp_path)).reference)
    with pytest.raises(DataError, match=r"scenes (first|second): condition 'cond' is of shape .*, tokens, 16\)"):
        train_stage(of_latents(tmp_path, "model.cond_channels=16"), "sparse_flow", data=data)
    together = of_latents(tmp_path, "trainer.batch_size=2", "run=together")
    with pytest.raises(DataError, match=r"(?s)do not go together: condition 'cond' .*trainer\.batch_size: 1"):
        train_stage(together, "sparse_flow", data=data)
    train_stage(of_latents(tmp_path, "run=apart"), "sparse_flow", data=data)


def test_conditions_to_predict_from_are_checked_before_anything_is_sampled(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    asked: dict[str, tuple[Any, int]] = {
        "good": ({"cond": torch.ones(2, 5, 32)}, 2),
        "empty": ({}, 2),
        "name": ({"tokens": torch.ones(1, 5, 32)}, 2),
        "width": ({"cond": torch.ones(1, 5, 16)}, 2),
        "crowd": ({"cond": torch.ones(1, 5, 32)}, 10**9),
    }
    for name, (conditions, count) in asked.items():
        (tmp_path / name).mkdir()
        torch.save(conditions, tmp_path / name / "conditionals.pt")
        (tmp_path / name / "metadata.json").write_text(json.dumps({"num_objects": count}))
    with pytest.raises(DataError) as caught:
        read_inputs(of_latents(tmp_path), [tmp_path / name for name in asked])
    told = str(caught.value)
    for fault in (
        "empty': condition 'cond' is not there; expected (1 or 2, tokens, 32)",
        "name': conditions tokens: a network takes one, 'cond'",
        "width': condition 'cond' is of shape (1, 5, 16)",
        "crowd': metadata.json says 1000000000 objects, at most 1024",
    ):
        assert fault in told
    assert "4 faults" in told


def network(root: Path) -> tuple[Any, Any]:
    config = at_stage(small(root), "global_flow")
    model: Any = moved(build_model(config, STAGES["global_flow"]), std=0.05)
    return config, model


def room(folder: Path) -> str:
    (folder / "room").mkdir()
    (folder / "room" / "scene.json").write_text(json.dumps({"objects": [{"class": "table"}, {"class": "chair"}]}))
    return str(folder / "room")


def test_a_scene_without_an_occupied_voxel_has_no_mesh(tmp_path: Path) -> None:
    config, model = network(tmp_path)
    with torch.no_grad():
        model.vae.decoder[-1].weight.zero_()
        model.vae.decoder[-1].bias.fill_(-9.0)
    (found,) = predict(config, model, [room(tmp_path)], lambda *_: None)
    assert {"voxels", "poses", "picture"} <= set(found)
    assert "mesh" not in found


@pytest.mark.parametrize(("bias", "named"), [(1e30, "scale, "), (1e4, "scale$")])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, bias: float, named: str) -> None:
    """Latents of a model that diverged, and sizes whose logarithm is finite."""
    config, model = network(tmp_path)
    with torch.no_grad():
        model.sparse_flow.latent_mapping["scale"].out_layer.bias.fill_(bias)
    with pytest.raises(CheckpointError, match=f"(?m)numbers that are not finite: .*{named}") as caught:
        list(predict(config, model, [room(tmp_path)], lambda *_: None))
    assert "scene_strength" in str(caught.value)
