"""Files of other programs as checkpoints: imported, a parent of a stage on latents, evaluated, exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stageline.checkpoint.layout import resolve
from stageline.checkpoint.tensors import read_tensors
from stageline.checkpoint.torch_files import write_torch_file
from stageline.cli.exports import write_export
from stageline.cli.imports import import_files
from stageline.errors import CheckpointError, ConfigError
from stageline.families import load_config, parse_config
from stageline.families.sparse_structure.assembly import build_model
from stageline.families.sparse_structure.checkpoint_utils import (
    BRANCHES,
    load_combined_checkpoint,
    load_dual_backbone_from_checkpoints,
)
from stageline.families.sparse_structure.config import STAGES
from stageline.families.sparse_structure.guide_data import demo_data
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.predict import load
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

from .runs import at_stage, below, equal

PUBLIC = "_base_models.generator.reverse_fn.backbone."
FOREIGN = {"_base_models.condition_embedder.idx_emb": torch.zeros(3, 4), "_base_models.decoder.x": torch.zeros(2)}
BLOCKS = 24
SHORT = ("evaluate.steps=[1]", "evaluate.max_scenes=1")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo data of the guide."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("guide")
    (folder / "configs").mkdir()
    source = Path(__file__).parents[4] / "scripts/sparse_structure/configs/default.yaml"
    (folder / "configs/default.yaml").write_text(source.read_text())
    demo_data(folder)
    return folder


def config_of(root: Path, *overrides: str, blocks: int = BLOCKS) -> Any:
    """Of the demo data, with as many blocks as the published network has, 16 wide."""
    keys = [f"root={root}", f"data.data_root={root / 'data/scenes'}", f"model.sparse_flow.num_blocks={blocks}"]
    keys += [f"model.{b}.model_channels=16" for b in ("sparse_flow", "global_sparse_flow")]
    keys += ["trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.tensorboard=false"]
    return load_config(root / "configs/default.yaml", [*keys, *overrides])


def words(root: Path, blocks: int = BLOCKS) -> list[str]:
    """The same as words of the command line."""
    keys = [f"root={root}", f"data.data_root={root / 'data/scenes'}", f"model.sparse_flow.num_blocks={blocks}"]
    return keys + [f"model.{b}.model_channels=16" for b in ("sparse_flow", "global_sparse_flow")]


def state(config: Any, stage: str, seed: int) -> dict[str, Tensor]:
    own = at_stage(parse_config({**config.model_dump(mode="json", exclude_unset=True), "seed": seed}), stage)
    model = build_model(own, STAGES[stage])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02)
    return dict(model.state_dict())


def test_the_published_layout_comes_in_trains_on_and_leaves(root: Path, tmp_path: Path) -> None:
    """945 tensors beside foreign ones: the frozen branch is bit-equal from the file through training and EMA to the
    files that leave, as the guide's utilities read them; what needs voxels has no value, with the reason."""
    config = config_of(
        root, "run=scenes", "stages=[global_flow]", "parents.global_flow.sparse=runs/public/sparse_flow", *SHORT
    )
    published = below(state(config, "sparse_flow", 7), "sparse_flow.")
    assert len(published) == 945
    file = tmp_path / "ss_generator.ckpt"
    write_torch_file(file, {"state_dict": {**{f"{PUBLIC}{n}": x for n, x in published.items()}, **FOREIGN}})
    yaml = root / "configs/default.yaml"
    answer = import_files([str(file), *words(root)], "public", config=yaml)
    assert answer["report"] == {"files": [file.name], "left_out": 2}
    assert resolve(answer["reference"]).metadata.stage == "sparse_flow"
    assert equal(below(read_tensors(resolve(answer["reference"])), "sparse_flow."), published)
    data = str(prepare_data(config).reference)
    trained = resolve(str(train_stage(config, "global_flow", data=data).reference))
    assert {name.split(".")[0] for name in trained.metadata.tensors["model"]} == {"global_sparse_flow"}
    for weights in ("raw", "ema"):
        assert equal(below(read_tensors(trained, weights), "sparse_flow."), published)
    record = evaluate_checkpoint(config, str(trained.reference), data)
    assert record.metrics["iou"] is None
    assert record.metrics["distance"] > 0
    assert "latents" in record.plain["reasons"]["iou"]
    write_export(trained.uri, tmp_path / "out", "ckpt", None)
    read_back(config, tmp_path / "out", read_tensors(trained, "ema"))
    again = import_files([str(tmp_path / "out" / "sparse_flow.ckpt"), *words(root)], "again", config=yaml)
    assert equal(read_tensors(resolve(again["reference"])), read_tensors(resolve(answer["reference"])))
    (made,) = load(str(trained.reference)).predict([root / "data/scenes/test/scene_000"], tmp_path / "predicted")
    assert made["objects"] == 2
    assert Path(made["latents"]).is_file()


def read_back(config: Any, folder: Path, expected: dict[str, Tensor]) -> None:
    """The three files, by the guide's utilities, into networks with other weights: both branches, and the whole."""
    assert {path.name for path in folder.iterdir()} == {f"{name}.ckpt" for name in (*BRANCHES, "combined_model")}
    for way in ("branches", "combined"):
        model = build_model(at_stage(config.model_copy(update={"seed": 9}), "global_flow"), STAGES["global_flow"])
        assert not equal(model.state_dict(), expected)
        if way == "combined":
            load_combined_checkpoint(model, folder / "combined_model.ckpt")
        else:
            load_dual_backbone_from_checkpoints(model, *(folder / f"{branch}.ckpt" for branch in BRANCHES))
        assert equal(model.state_dict(), expected)


def test_a_published_branch_is_tuned_on_scenes_of_ones_own(root: Path, tmp_path: Path) -> None:
    """Its time embedder and modulation stay the file's, the rest goes on from it, and the scene's branch from that."""
    config = config_of(
        root,
        *("run=tuned", "stages=[sparse_flow,global_flow]", "parents.sparse_flow.sparse=runs/two/sparse_flow"),
        *("model.sparse_flow.freeze_shared_parameters=true", "trainer.learning_rate=1e-3"),
        blocks=2,
    )
    published = below(state(config, "global_flow", 7), "sparse_flow.")
    file = tmp_path / "ss_generator.ckpt"
    write_torch_file(file, {"state_dict": {**{f"{PUBLIC}{n}": x for n, x in published.items()}, **FOREIGN}})
    import_files([str(file), *words(root, 2)], "two", config=root / "configs/default.yaml")
    data = str(prepare_data(config).reference)
    tuned, scene = (resolve(str(train_stage(config, s, data=data).reference)) for s in ("sparse_flow", "global_flow"))
    found = below(read_tensors(tuned, "raw"), "sparse_flow.")
    for name, tensor in published.items():
        kept = "t_embedder" in name or "adaLN_modulation" in name or name.endswith("shape.pos_emb")
        unweighted = name == "latent_mapping.translation_scale.out_layer.bias"
        assert torch.equal(found[name], tensor) == (kept or unweighted), name
        torch.testing.assert_close(found[name], tensor, atol=0.05, rtol=0, msg=name)
    assert tuned.metadata.parents["sparse"].stage == "sparse_flow"
    assert not tuned.metadata.referenced["sparse"].tensors.keys() - {f"sparse_flow.{name}" for name in published}
    assert equal(below(read_tensors(scene, "raw"), "sparse_flow."), below(read_tensors(tuned, "ema"), "sparse_flow."))
    write_export(scene.uri, tmp_path / "out", "ckpt", None)
    read_back(config, tmp_path / "out", read_tensors(scene, "ema"))
    with pytest.raises(ConfigError, match=r"name weights to start from in parents\.sparse_flow\.sparse"):
        train_stage(config.model_copy(update={"parents": {}}), "sparse_flow", data=data)


def test_both_branches_come_in_as_one_file_or_two(root: Path, tmp_path: Path) -> None:
    """With `--stage` where two stages have equal tensors; what does not fit is refused by name."""
    tensors, yaml = state(config_of(root, blocks=2), "joint", 3), root / "configs/default.yaml"
    combined, sparse, scene = (tmp_path / f"{n}.ckpt" for n in ("combined_model", "sparse_flow", "global_sparse_flow"))
    write_torch_file(combined, {"state_dict": {f"module.{name}": x for name, x in tensors.items()}})
    write_torch_file(sparse, {"state_dict": below(tensors, "sparse_flow.")})
    write_torch_file(scene, {"state_dict": below(tensors, "global_sparse_flow.")})
    given = words(root, 2)
    one = import_files([str(combined), *given], "one", config=yaml, stage="joint")
    two = import_files([str(sparse), str(scene), *given], "two", config=yaml, stage="global_flow")
    found = [resolve(answer["reference"]) for answer in (one, two)]
    assert [ref.metadata.stage for ref in found] == ["joint", "global_flow"]
    assert all(equal(read_tensors(ref), tensors) for ref in found)
    with pytest.raises(CheckpointError, match="one network, which is not what stage 'joint' has"):
        import_files([str(sparse), *given], "bad", config=yaml, stage="joint")
    with pytest.raises(CheckpointError, match="called `global"):
        import_files([str(sparse), str(combined), *given], "bad", config=yaml)
    with pytest.raises(CheckpointError, match=r"blocks\.2\.adaLN_modulation\.1\.weight is not there"):
        import_files([str(sparse), *words(root, 3)], "bad", config=yaml)
    with pytest.raises(CheckpointError, match="hold an autoencoder"):
        import_files([str(sparse), "data.name=made", "data.data_root=null"], "bad", config=yaml)
