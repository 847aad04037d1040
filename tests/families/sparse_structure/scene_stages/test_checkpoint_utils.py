"""The guide's files: which branch a file is, what is refused before a tensor changes, what is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stageline.checkpoint.legacy import load_torch_file
from stageline.checkpoint.torch_files import write_torch_file
from stageline.errors import CheckpointError
from stageline.families.sparse_structure.checkpoint_utils import (
    WRAPPERS,
    create_dual_backbone_from_single_checkpoint,
    load_combined_checkpoint,
    load_dual_backbone_from_checkpoints,
    save_dual_backbone_checkpoint,
)


class TwoBranches(nn.Module):
    """Two networks of equal layout and different depth, and a factor: the names that a dual backbone has."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.sparse_flow = branch(3)
        self.global_sparse_flow = branch(2)
        self.global_flow_weight = nn.Parameter(torch.rand(()))


def branch(depth: int) -> nn.Module:
    return nn.ModuleDict(
        {"t_embedder": nn.Linear(2, 2), "blocks": nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))}
    )


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def model() -> TwoBranches:
    return TwoBranches(0)


@pytest.fixture
def other() -> TwoBranches:
    return TwoBranches(1)


def write(path: Path, tensors: Mapping[str, Tensor], prefix: str = "", **more: Any) -> Path:
    named = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    write_torch_file(path, {"state_dict": {**named, **more}})
    return path


def test_a_directory_gets_three_files_and_gives_the_model_back(
    model: TwoBranches, other: TwoBranches, tmp_path: Path
) -> None:
    """Check 14: reload equal; the combined file equals the two."""
    folder = tmp_path / "not there yet"
    written = save_dual_backbone_checkpoint(model, folder, additional_state={"epoch": 3})
    assert sorted(path.name for path in folder.iterdir()) == [
        "combined_model.ckpt",
        "global_sparse_flow.ckpt",
        "sparse_flow.ckpt",
    ]
    assert sorted(written) == sorted(folder.iterdir())
    assert all(load_torch_file(path)["epoch"] == 3 for path in written)
    load_dual_backbone_from_checkpoints(other, folder / "sparse_flow.ckpt", folder / "global_sparse_flow.ckpt")
    wanted = copied(model)
    loaded = copied(other)
    assert wanted.pop("global_flow_weight") != loaded.pop("global_flow_weight")  # stands in the combined file alone
    assert equal(wanted, loaded)
    load_combined_checkpoint(other, folder / "combined_model.ckpt")
    assert equal(copied(model), copied(other))
    both = TwoBranches(2)
    load_dual_backbone_from_checkpoints(both, *2 * [folder / "combined_model.ckpt"])
    assert equal(copied(both.sparse_flow), copied(model.sparse_flow))
    assert equal(copied(both.global_sparse_flow), copied(model.global_sparse_flow))


@pytest.mark.parametrize("outer", ["", "module."])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_branch_is_found_by_the_prefix_that_covers_it(
    model: TwoBranches, other: TwoBranches, tmp_path: Path, wrapper: str, outer: str
) -> None:
    """Check 14: beside embedder and decoder of the published file, strictly."""
    foreign = {
        "_base_models.condition_embedder.idx_emb": torch.zeros(3),
        "_base_models.decoder.blocks.0.weight": torch.zeros(2, 2),
    }
    file = write(tmp_path / "a.ckpt", model.sparse_flow.state_dict(), outer + wrapper, **(foreign if wrapper else {}))
    load_dual_backbone_from_checkpoints(other, file)
    assert equal(copied(other.sparse_flow), copied(model.sparse_flow))
    assert not equal(copied(other.global_sparse_flow), copied(model.global_sparse_flow))
    assert other.last_load_report["sparse_flow"]["unexpected"] == []


def test_one_branch_alone(model: TwoBranches, other: TwoBranches, tmp_path: Path) -> None:
    """Check 14: the global-only file loads; a file is a file, a folder a folder."""
    (in_folder,) = save_dual_backbone_checkpoint(model, f"{tmp_path}/", save_global_flow_only=True)
    assert in_folder == tmp_path / "global_sparse_flow.ckpt"
    (file,) = save_dual_backbone_checkpoint(model, tmp_path / "new" / "g.pt", save_global_flow_only=True)
    assert file.is_file()
    load_dual_backbone_from_checkpoints(other, global_sparse_flow_checkpoint=file)
    assert equal(copied(other.global_sparse_flow), copied(model.global_sparse_flow))
    (both,) = save_dual_backbone_checkpoint(model, tmp_path / "both.ckpt")
    assert load_torch_file(both)["state_dict"].keys() == model.state_dict().keys()
    (sparse,) = save_dual_backbone_checkpoint(model, tmp_path / "s.ckpt", save_sparse_flow_only=True)
    assert load_torch_file(sparse)["state_dict"].keys() == model.sparse_flow.state_dict().keys()


def test_safetensors_and_other_keys_are_read(model: TwoBranches, other: TwoBranches, tmp_path: Path) -> None:
    save_file(model.sparse_flow.state_dict(), tmp_path / "a.safetensors")
    load_dual_backbone_from_checkpoints(other, tmp_path / "a.safetensors")
    assert equal(copied(other.sparse_flow), copied(model.sparse_flow))
    write_torch_file(tmp_path / "b.ckpt", {"weights": model.global_sparse_flow.state_dict(), "epoch": 1})
    with pytest.raises(CheckpointError, match="state_dict_key, one of: weights"):
        load_dual_backbone_from_checkpoints(other, global_sparse_flow_checkpoint=tmp_path / "b.ckpt")
    load_dual_backbone_from_checkpoints(
        other, global_sparse_flow_checkpoint=tmp_path / "b.ckpt", state_dict_key="weights"
    )
    assert equal(copied(other.global_sparse_flow), copied(model.global_sparse_flow))


def test_nothing_changes_where_one_file_does_not_fit(model: TwoBranches, other: TwoBranches, tmp_path: Path) -> None:
    """Check 14: both branches stay as they are, and every fault of both files is told."""
    tensors = dict(model.sparse_flow.state_dict())
    tensors["blocks.0.weight"] = torch.zeros(3, 2)
    sparse = write(tmp_path / "s.ckpt", tensors, "backbone.")
    wrong = write(tmp_path / "g.ckpt", model.sparse_flow.state_dict())  # the deeper one
    before = copied(other)
    with pytest.raises(RuntimeError) as caught:
        load_dual_backbone_from_checkpoints(other, sparse, wrong)
    assert "blocks.0.weight has shape (3, 2), expected (2, 2)" in str(caught.value)
    assert "2 unexpected: blocks.2.weight, blocks.2.bias" in str(caught.value)
    assert "build the model with the file's sizes" in str(caught.value)
    assert equal(before, copied(other))
    with pytest.raises(RuntimeError, match=r"blocks\.0\.weight has shape"):
        load_dual_backbone_from_checkpoints(other, sparse, sparse_flow_strict=False)
    with pytest.raises(RuntimeError, match=r"none of its names is one of the \d+ wanted: .*it has a\n"):
        load_dual_backbone_from_checkpoints(
            other, write(tmp_path / "x.ckpt", {"a": torch.zeros(1)}), sparse_flow_strict=False
        )
    assert equal(before, copied(other))


def test_a_part_is_loaded_where_that_is_asked_for(model: TwoBranches, other: TwoBranches, tmp_path: Path) -> None:
    file = write(tmp_path / "s.ckpt", model.sparse_flow.state_dict())
    with pytest.warns(UserWarning, match="loaded in part; 2 unexpected: blocks.2.weight, blocks.2.bias"):
        load_dual_backbone_from_checkpoints(other, global_sparse_flow_checkpoint=file, global_sparse_flow_strict=False)
    assert torch.equal(other.global_sparse_flow["blocks"][1].weight, model.sparse_flow["blocks"][1].weight)
    assert other.last_load_report["global_sparse_flow"]["unexpected"] == ["blocks.2.weight", "blocks.2.bias"]


def test_missing_files_are_named_before_any_is_read(model: TwoBranches, tmp_path: Path) -> None:
    """Check 14."""
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"nothing")
    with pytest.raises(FileNotFoundError, match=r"gone\.ckpt"):
        load_dual_backbone_from_checkpoints(model, broken, tmp_path / "gone.ckpt")
    with pytest.raises(CheckpointError):
        load_dual_backbone_from_checkpoints(model, broken)
    with pytest.raises(FileNotFoundError, match=r"gone\.ckpt"):
        load_combined_checkpoint(model, tmp_path / "gone.ckpt")


def test_what_is_no_dual_backbone_is_refused(model: TwoBranches, tmp_path: Path) -> None:
    """It would be written as three files, two of them empty."""
    file = write(tmp_path / "s.ckpt", model.sparse_flow.state_dict())
    for use in (
        lambda: save_dual_backbone_checkpoint(torch.nn.Linear(2, 2), tmp_path / "new"),
        lambda: load_dual_backbone_from_checkpoints(torch.nn.Linear(2, 2), file),
        lambda: load_combined_checkpoint(torch.nn.Linear(2, 2), file),
    ):
        with pytest.raises(TypeError, match="Linear has no sparse_flow and no global_sparse_flow; expected a dual"):
            use()
    with pytest.raises(TypeError, match="dual_backbone_config is a list, expected a mapping"):
        create_dual_backbone_from_single_checkpoint(file, [])  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_what_no_file_can_hold_is_refused(model: TwoBranches, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        save_dual_backbone_checkpoint(model, tmp_path, save_sparse_flow_only=True, save_global_flow_only=True)
    with pytest.raises(ValueError, match="model's own"):
        save_dual_backbone_checkpoint(model, tmp_path, additional_state={"state_dict": {}})
    with pytest.raises(ValueError, match=r"content\.args\.path: a PosixPath"):
        save_dual_backbone_checkpoint(model, tmp_path / "new", additional_state={"args": {"path": tmp_path}})
    assert not any(tmp_path.rglob("*.ckpt"))


def test_wrappers_of_torch_are_taken_off(model: TwoBranches, other: TwoBranches, tmp_path: Path) -> None:
    compiled = torch.compile(model, backend="eager")
    save_dual_backbone_checkpoint(compiled, tmp_path)
    load_combined_checkpoint(torch.compile(other, backend="eager"), tmp_path / "combined_model.ckpt")
    assert equal(copied(model), copied(other))


def test_names_in_files_are_those_without_wrappers(model: TwoBranches, other: TwoBranches, tmp_path: Path) -> None:
    """A branch that was compiled alone, and files of programs that saved what they had compiled."""
    for branch in ("sparse_flow", "global_sparse_flow"):
        setattr(model, branch, torch.compile(model.get_submodule(branch), backend="eager"))
    save_dual_backbone_checkpoint(model, tmp_path)
    names = [*load_torch_file(tmp_path / "sparse_flow.ckpt")["state_dict"]]
    assert names == [*other.sparse_flow.state_dict()]
    assert load_torch_file(tmp_path / "combined_model.ckpt")["state_dict"].keys() == other.state_dict().keys()
    load_combined_checkpoint(other, tmp_path / "combined_model.ckpt")
    load_dual_backbone_from_checkpoints(model, tmp_path / "sparse_flow.ckpt", tmp_path / "global_sparse_flow.ckpt")
    assert model.last_load_report["sparse_flow"]["loaded"] == names
    for prefix in ("_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "reverse_fn._orig_mod.backbone."):
        third = TwoBranches(2)
        load_dual_backbone_from_checkpoints(third, write(tmp_path / "c.ckpt", other.sparse_flow.state_dict(), prefix))
        assert equal(copied(third.sparse_flow), copied(other.sparse_flow))


def test_plain_values_of_others_among_the_tensors_do_not_count(
    model: TwoBranches, other: TwoBranches, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.ckpt", model.sparse_flow.state_dict(), "backbone.", **{"metric._extra_state": None})
    load_dual_backbone_from_checkpoints(other, file)
    assert equal(copied(other.sparse_flow), copied(model.sparse_flow))
    torch.save({"state_dict": copied(model.sparse_flow), "hyper_parameters": tmp_path}, file)
    with pytest.raises(CheckpointError, match=r"pathlib\.PosixPath") as caught:
        load_dual_backbone_from_checkpoints(other, file)
    assert "allow" not in str(caught.value), "there is nothing to allow it by"


def test_a_state_of_training_is_kept(model: TwoBranches, tmp_path: Path) -> None:
    """An optimizer's state is tensors and plain values, as the guide saves it."""
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    save_dual_backbone_checkpoint(model, tmp_path / "a.ckpt", additional_state={"optimizer": optimizer.state_dict()})
    again = torch.optim.AdamW(TwoBranches(3).parameters())
    again.load_state_dict(load_torch_file(tmp_path / "a.ckpt")["optimizer"])
    assert again.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()
