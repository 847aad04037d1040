"""What the stages hand on: references, copies, scale; which parents are refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stageline.checkpoint.layout import CheckpointRef, resolve
from stageline.checkpoint.tensors import read_tensors
from stageline.cli.exports import write_export
from stageline.contract import Parent
from stageline.data.prepared import PreparedData, open_prepared
from stageline.errors import CheckpointError, ConfigError, InterruptedRunError, StagelineError
from stageline.families.sparse_structure import guide
from stageline.families.sparse_structure.assembly import DualModel, build_model
from stageline.families.sparse_structure.checkpoint_utils import (
    load_combined_checkpoint,
    load_dual_backbone_from_checkpoints,
)
from stageline.families.sparse_structure.config import STAGES
from stageline.families.sparse_structure.data.made import make_scene
from stageline.families.sparse_structure.data.meshes import write_scene
from stageline.families.sparse_structure.facts import facts
from stageline.families.sparse_structure.task import FlowTask, build_task
from stageline.plan import make_plan
from stageline.verbs.predict import load
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

from .runs import at_stage, below, equal, small


def task_of(root: Path, prepared: PreparedData, stage: str, *overrides: str) -> FlowTask:
    task = build_task(at_stage(small(root, *overrides), stage), STAGES[stage], prepared)
    assert isinstance(task, FlowTask)
    return task


def parent_of(root: Path, role: str, stage: str) -> Parent:
    return Parent(role, stage, facts(at_stage(small(root), stage), STAGES[stage]))


def fill(task: FlowTask, *refs: CheckpointRef) -> None:
    """Put the tensors of checkpoints into a task's model, under their own names."""
    own = task.model.state_dict()
    with torch.no_grad():
        for ref in refs:
            for name, tensor in read_tensors(ref, "ema").items():
                if name in own:
                    own[name].copy_(tensor)


def test_a_save_holds_what_its_stage_trains(chain: dict[str, CheckpointRef]) -> None:
    """Frozen branch and autoencoder stay with their owners, bit for bit, under the names that they have everywhere."""
    scene = chain["global_flow"].metadata
    own = set(scene.tensors["model"])
    assert {name.split(".")[0] for name in own} == {"global_sparse_flow"}
    assert {role: {n.split(".")[0] for n in owner.tensors} for role, owner in scene.referenced.items()} == {
        "sparse": {"sparse_flow", "scale"},
        "vae": {"vae"},
    }
    whole = read_tensors(chain["global_flow"], "raw")
    for prefix, stage in (("sparse_flow.", "sparse_flow"), ("scale.", "sparse_flow"), ("vae.", "shape_vae")):
        assert equal(below(whole, prefix), below(read_tensors(chain[stage], "ema"), prefix)), prefix
    joint = chain["joint"].metadata
    assert {name.split(".")[0] for name in joint.tensors["model"]} == {"sparse_flow", "global_sparse_flow"}
    assert set(joint.referenced) == {"global", "vae"}


def test_a_save_costs_what_trains(root: Path, chain: dict[str, CheckpointRef]) -> None:
    """In bytes on disk: weights at most 1.1 times the scene's branch, and the whole save, with average, optimizer and
    all that is written about them, at most 1.1 times four such branches; the frozen ones would be three more."""
    parents = (f"parents.global_flow.{r}={chain[s].uri}" for r, s in (("vae", "shape_vae"), ("sparse", "sparse_flow")))
    wide = ("model.global_sparse_flow.start=fresh", "model.global_sparse_flow.model_channels=64")
    config = small(root, "stages=[global_flow]", *parents, *wide, run="wide")
    data = str(prepare_data(config).reference)
    ref = resolve(str(train_stage(config, "global_flow", data=data).reference), prefer="last")
    whole = read_tensors(ref, "raw")
    branch = sum(tensor.nbytes for name, tensor in whole.items() if name.startswith("global_sparse_flow."))
    files = {path.name: path.stat().st_size for path in Path(ref.uri).rglob("*") if path.is_file()}
    assert {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "checkpoint_metadata.json"} <= set(files)
    assert branch < files["model.safetensors"] <= 1.1 * branch
    assert sum(files.values()) <= 1.1 * 4 * branch


def test_a_fresh_branch_changes_nothing(root: Path, chain: dict[str, CheckpointRef], prepared: PreparedData) -> None:
    """Check 10, in the stage: blocks are the sparse branch's, the output is zero, the sum equals it bit for bit."""
    task = task_of(root, prepared, "global_flow", "model.global_sparse_flow.block_map=[1]")
    fill(task, chain["shape_vae"], chain["sparse_flow"])
    task.derive({"sparse": parent_of(root, "sparse", "sparse_flow"), "vae": parent_of(root, "vae", "shape_vae")})
    model = task.network
    assert isinstance(model, DualModel)
    assert equal(model.global_sparse_flow.blocks[0].state_dict(), model.sparse_flow.blocks[1].state_dict())
    scale = chain["sparse_flow"]
    assert equal(model.scale.state_dict(), below(read_tensors(scale, "ema"), "scale."))  # type: ignore[union-attr]
    task.begin(None)  # type: ignore[arg-type]  # looks at nothing of it
    batch = task.collate([task.val_set[0], task.val_set[1]])
    x, t, cond = task._data(model, batch), torch.tensor([300.0]), batch["conditionals"]["cond"]
    both = model.velocity(x, t, cond, scene_sizes=batch["scene_sizes"])
    assert equal(both, model.sparse_flow(x, t, cond))


def test_the_scale_is_that_of_the_training_latents(
    root: Path, chain: dict[str, CheckpointRef], prepared: PreparedData
) -> None:
    task = task_of(root, prepared, "sparse_flow")
    fill(task, chain["sparse_flow"])
    task.begin(None)  # type: ignore[arg-type]
    found: list[Tensor] = []
    poses: list[Tensor] = []
    for number in range(len(task.train_set)):
        batch = task.collate([task.train_set[number]])
        x = task._data(task.flow, batch)
        found.append(x["shape"].flatten(0, 1))
        poses.append(x["translation"].flatten(0, 1))
    latents = torch.cat(found)
    torch.testing.assert_close(latents.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(0, correction=0), torch.ones(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cat(poses).mean(0), torch.zeros(3), atol=1e-4, rtol=0)


def blocked(root: Path, *overrides: str, stage: str = "global_flow") -> str:
    """Why the plan blocks a stage of a run of its own; "" where it does not."""
    (item,) = [
        item
        for item in make_plan(small(root, f"stages=[{stage}]", *overrides, run="other")).items
        if item.name == stage
    ]
    return "; ".join(item.reasons) if item.action == "blocked" else ""


def test_wrong_parents_are_refused_by_the_plan(root: Path, chain: dict[str, CheckpointRef]) -> None:
    """A missing, another stage's, a swapped one, and one of other sizes."""
    vae, sparse = (f"{chain[stage].uri}" for stage in ("shape_vae", "sparse_flow"))
    right = (f"parents.global_flow.vae={vae}", f"parents.global_flow.sparse={sparse}")
    assert not blocked(root, *right)
    assert "sparse" in blocked(root, right[0])
    for absent in ((), ("parents.global_flow.vae=none",)):
        assert "(role 'vae') and has none: data.name 'made' are voxels" in blocked(root, right[1], *absent)
    tuned = f"parents.sparse_flow.sparse={sparse}"
    assert "(role 'vae') and has none" in blocked(root, tuned, stage="sparse_flow")
    assert not blocked(root, tuned, f"parents.sparse_flow.vae={vae}", stage="sparse_flow")
    both = f"parents.sparse_flow.sparse={chain['joint'].uri}"
    assert not blocked(root, both, f"parents.sparse_flow.vae={vae}", stage="sparse_flow")
    wrong = blocked(root, f"parents.sparse_flow.sparse={vae}", stage="sparse_flow")
    assert "'shape_vae', expected 'sparse_flow'" in wrong
    assert "shape_vae" in blocked(root, right[0], f"parents.global_flow.sparse={vae}")
    assert "sparse_flow" in blocked(root, f"parents.global_flow.vae={sparse}", f"parents.global_flow.sparse={vae}")
    wide = ("model.sparse_flow.model_channels=64", "model.global_sparse_flow.model_channels=64")
    assert "sparse_flow.model_channels: checkpoint 32, run 64" in blocked(root, *right, *wide)
    assert "vae.width: checkpoint 16, run 32" in blocked(root, *right, "model.vae.width=32")


def test_a_trained_scene_branch_goes_on_in_another_run(root: Path, chain: dict[str, CheckpointRef]) -> None:
    """Role `sparse` takes a checkpoint of both branches too, and then both are its."""
    parents = (f"parents.global_flow.vae={chain['shape_vae'].uri}", f"parents.global_flow.sparse={chain['joint'].uri}")
    config = small(root, "stages=[global_flow]", *parents, "trainer.learning_rate=1e-12", run="further")
    result = train_stage(config, "global_flow", data=str(prepare_data(config).reference))
    found, before = (read_tensors(ref, "ema") for ref in (resolve(str(result.reference)), chain["joint"]))
    assert equal(below(found, "sparse_flow."), below(before, "sparse_flow."))
    for name, tensor in below(found, "global_sparse_flow.").items():
        torch.testing.assert_close(tensor, before[f"global_sparse_flow.{name}"], atol=1e-6, rtol=0)


def test_a_stop_inside_a_self_consistency_step_leaves_no_trace(root: Path, chain: dict[str, CheckpointRef]) -> None:
    """Interrupted in its first step and continued: the same content as in a run that was not."""
    from tiny_run import built_by

    def config(run: str) -> Any:
        parents = [
            f"parents.global_flow.{r}={chain[s].uri}" for r, s in (("vae", "shape_vae"), ("sparse", "sparse_flow"))
        ]
        own = ["objective.self_consistency_prob=1.0", "trainer.accumulate_grad_batches=2", "trainer.batch_size=1"]
        return small(root, "stages=[global_flow]", *parents, *own, run=run)

    data = str(prepare_data(config("whole")).reference)
    whole = train_stage(config("whole"), "global_flow", data=data)

    def stopping(build: Any) -> Any:
        def built(own: Any, stage: Any, prepared: Any) -> Any:
            task = build(own, stage, prepared)
            loss = task.loss

            def stopped(*args: Any) -> Any:
                os.kill(os.getpid(), signal.SIGTERM)
                return loss(*args)

            task.loss = stopped
            return task

        return built

    with built_by("sparse_structure", stopping), pytest.raises(InterruptedRunError):
        train_stage(config("parts"), "global_flow", data=data)
    parts = train_stage(config("parts"), "global_flow", data=data)
    assert parts.action == "continue"
    contents = [resolve(str(result.reference), prefer="last").content for result in (whole, parts)]
    assert contents[0] == contents[1]


def test_a_checkpoint_leaves_as_the_guides_files(root: Path, chain: dict[str, CheckpointRef], tmp_path: Path) -> None:
    """Check 14: all three, read back by the guide's utilities, the frozen branch bit-equal to its owner."""
    write_export(chain["global_flow"].uri, tmp_path / "all", "ckpt", "raw")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        "combined_model.ckpt",
        "global_sparse_flow.ckpt",
        "sparse_flow.ckpt",
    ]
    stored, own = read_tensors(chain["global_flow"], "raw"), at_stage(small(root, "seed=5"), "global_flow")
    for way in ("combined", "branches"):
        model = build_model(own, STAGES["global_flow"])
        model.vae = model.scale = None  # type: ignore[assignment]  # no part of the guide's model
        if way == "combined":
            load_combined_checkpoint(model, tmp_path / "all" / "combined_model.ckpt")
        else:
            files = [tmp_path / "all" / f"{branch}.ckpt" for branch in ("sparse_flow", "global_sparse_flow")]
            load_dual_backbone_from_checkpoints(model, *files)
        assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    write_export(chain["sparse_flow"].uri, tmp_path / "one", "ckpt", None)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["sparse_flow.ckpt"]
    with pytest.raises(StagelineError, match="holds no flow"):
        write_export(chain["shape_vae"].uri, tmp_path / "none", "ckpt", None)


def test_a_checkpoint_is_asked_for_the_parts_that_it_has(chain: dict[str, CheckpointRef]) -> None:
    """The sparse branch alone is taken under a config of both, and refused where its own sizes are others."""
    model = load(chain["sparse_flow"].uri)
    assert model.metadata.stage == "sparse_flow"
    wide = ["model.sparse_flow.model_channels=64", "model.global_sparse_flow.model_channels=64"]
    with pytest.raises(CheckpointError, match=r"sparse_flow\.model_channels: checkpoint 32, config 64"):
        load(chain["sparse_flow"].uri, wide)


def test_own_meshes_are_what_stages_train_on(tmp_path: Path) -> None:
    """A folder of the same rooms as meshes: their voxels and poses are those that the made rooms have."""
    for split, number in (("train", 2), ("val", 1), ("test", 1)):
        for index in range(number):
            scene = make_scene(split, index, 0, num_objects=(2, 3))
            write_scene(tmp_path / "scenes" / split / scene.name, scene)
    own = small(tmp_path / "own", "data.name=meshes", f"data.data_root={tmp_path / 'scenes'}", "data.fill=solid")
    made = small(tmp_path / "made", "data.num_train=2", "data.num_val=1")
    tasks = []
    for config in (own, made):
        data = open_prepared(str(prepare_data(config).reference), ["train", "val"])
        tasks.append(build_task(at_stage(config, "sparse_flow"), STAGES["sparse_flow"], data))
    for number in range(2):
        first, second = (task.train_set[number] for task in tasks)
        assert torch.equal(first["voxels"], second["voxels"])
        assert equal(first["conditionals"], second["conditionals"])
        for name, value in first["latents"].items():
            torch.testing.assert_close(value, second["latents"][name], atol=1e-3, rtol=0, msg=name)


def test_the_guides_command_goes_on_from_its_own_checkpoint_alone(root: Path, chain: dict[str, CheckpointRef]) -> None:
    """One of another output folder has the same names there; to pass over it would train anew without a word."""
    place = chain["global_flow"]
    run = place.metadata.run
    guide.check_resume(place.uri, root, run, "global_flow")
    for where, name, stage, words in (
        (root / "other", run, "global_flow", "say the --output_dir that it lies in to go on"),
        (root, "other", "joint", f"say --run {run} and --stage global_flow to go on"),
    ):
        with pytest.raises(ConfigError, match=f"going on is for '{stage}' of '{name}' in {where}") as caught:
            guide.check_resume(place.uri, where, name, stage)
        assert words in str(caught.value)
