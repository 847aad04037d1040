"""An evaluation of a small run: its modes, what has no value and why, and what pictures show."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families.sparse_structure.model.networks import moved
from PIL import Image

from stageline.checkpoint.layout import CheckpointRef
from stageline.data.prepared import open_prepared
from stageline.errors import DataError
from stageline.families.sparse_structure.assembly import build_model
from stageline.families.sparse_structure.config import STAGES
from stageline.families.sparse_structure.data.poses import PoseStatistics, decode_poses
from stageline.families.sparse_structure.data.prepared_scenes import PreparedScenes
from stageline.families.sparse_structure.predict import read_inputs
from stageline.families.sparse_structure.render import Frame, draw, surfaces
from stageline.families.sparse_structure.sampling import SceneGenerator
from stageline.families.sparse_structure.styles import LEAST_ACCURACY
from stageline.store import Store, open_store
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.prepare import prepare_data
from stageline.work.evaluations import EvaluationRecord

from .runs import at_stage, small

MODES = {"sampled", "steps_1", "sparse", "truth"}


@pytest.fixture(scope="module")
def data(root: Path) -> str:
    return str(prepare_data(small(root, "data.num_test=2")).reference)


@pytest.fixture(scope="module")
def record(root: Path, chain: dict[str, CheckpointRef], data: str) -> EvaluationRecord:
    config = small(root, "evaluate.steps=[1,2]", "evaluate.num_panels=1")
    return evaluate_checkpoint(config, str(chain["global_flow"].uri), data)


@pytest.fixture
def files(record: EvaluationRecord) -> Store:
    return open_store(record.reference.uri)


def rows_of(files: Store) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(files.get("rows.csv").decode())))


def test_every_scene_has_a_row_in_every_mode(record: EvaluationRecord, files: Store) -> None:
    """Metrics of samples are means over scenes of their rows, so that intervals over scenes are of them."""
    rows = rows_of(files)
    names = {row["id"] for row in rows}
    assert {(row["id"], row["mode"]) for row in rows} == {(name, mode) for name in names for mode in MODES}
    overlaps = [float(row["iou"]) for row in rows if row["mode"] == "steps_1"]
    assert record.metrics["iou_steps_1"] == pytest.approx(np.mean(overlaps))
    assert record.metrics["iou_vae"] is not None
    assert record.metrics["distance_sparse"] is not None
    assert "iou_truth" not in record.metrics


def test_guidance_by_the_scene_moves_what_both_branches_sample_and_nothing_else(root: Path) -> None:
    """One step of Euler is linear in the velocity."""
    samples = {}
    for strength in (0.0, 2.0):
        config = at_stage(small(root, f"evaluate.scene_strength={strength}"), "global_flow")
        model: Any = moved(build_model(config, STAGES["global_flow"]), std=0.05)
        model.eval()
        for alone in (False, True):
            rngs = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
            cond = {"cond": torch.ones(5, config.model.cond_tokens, config.model.cond_channels)}
            generator = SceneGenerator(config, model, alone=alone)
            samples[strength, alone] = generator.sample([2, 3], cond, 1, rngs)
    for name, both in samples[0.0, False].items():
        one = samples[0.0, True][name]
        assert torch.equal(one, samples[2.0, True][name])
        assert (both - one).abs().max() > 1e-3
        torch.testing.assert_close(samples[2.0, False][name] - one, 3 * (both - one), rtol=1e-4, atol=1e-4)


def test_guidance_by_the_scene_is_told_of_models_that_see_the_scene_alone(
    record: EvaluationRecord, root: Path, chain: dict[str, CheckpointRef], data: str
) -> None:
    assert record.plain["provenance"]["scene_strength"] == 0
    config = small(root, "evaluate.steps=[1]", "evaluate.num_panels=0", "evaluate.scene_strength=2.0")
    assert "scene_strength" not in evaluate_checkpoint(config, str(chain["sparse_flow"].uri), data).plain["provenance"]


def test_no_style_is_read_off_samples_where_the_reader_fails_on_the_truth(record: EvaluationRecord) -> None:
    """An autoencoder after two steps shows no style: no agreement in any mode, and the reason says how it failed."""
    accuracy = record.metrics["reader_accuracy"]
    assert accuracy is not None
    assert accuracy < LEAST_ACCURACY
    for suffix in ("", "_steps_1", "_sparse", "_truth"):
        for name in (f"agreement{suffix}", f"agreement_across{suffix}"):
            assert record.metrics[name] is None
            assert f"{accuracy:.3f}" in record.reasons[name]


def test_the_first_scene_is_shown_in_every_mode_by_one_camera(
    record: EvaluationRecord, files: Store, data: str
) -> None:
    """The true one is what voxels and poses of the data say, seen by the camera of all of them."""
    modes = ("steps_1", "steps_2", "sparse", "truth")
    names = {"truth-0.png", *(f"scene_{mode}-0.png" for mode in modes)}
    shown: dict[str, Any] = {Path(name).name: name for name in record.plain["files"] if name.endswith(".png")}
    assert set(shown) == names
    split = open_prepared(data, ["train", "test"])
    statistics = PoseStatistics.from_json(split.split("train").facts["pose_statistics"])
    scene = PreparedScenes(split.split("test"), statistics=statistics)[0]
    poses = decode_poses(statistics.restore({k: x[:, 0].numpy() for k, x in scene["latents"].items()}))
    expected = draw(surfaces(scene["voxels"].numpy(), poses), Frame.around(poses))
    found = np.asarray(Image.open(io.BytesIO(files.get(shown["truth-0.png"]))))
    assert (found == expected).mean() > 0.999  # rounding of standardised poses


def test_all_faults_of_what_is_to_be_predicted_are_told_at_once(root: Path, tmp_path: Path) -> None:
    """Among them classes that a model of made-up rooms never saw; own meshes have classes of their own."""
    rooms = {"ship": ["table", "ship", "desk"], "blank": ["", "chair"], "good": ["table", "chair"]}
    for name, kinds in rooms.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "scene.json").write_text(json.dumps({"objects": [{"class": kind} for kind in kinds]}))
    config = small(root)
    with pytest.raises(DataError) as caught:
        read_inputs(config, [tmp_path / name for name in (*rooms, "gone")])
    told = str(caught.value)
    assert "scenes: 3 faults" in told
    assert "desk, ship: no class of made-up rooms, which are chair, table, lamp" in told
    assert "objects 0 have no `class`" in told
    assert f"there is nothing at '{tmp_path / 'gone'}'" in told
    (found,) = read_inputs(small(root, "data.name=meshes", f"data.data_root={tmp_path}"), [tmp_path / "ship"])
    assert found.classes == ("table", "ship", "desk")
