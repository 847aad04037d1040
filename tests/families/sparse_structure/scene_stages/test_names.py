"""The guides' module paths: filled in where they are missing, never replaced; the YAML files that name them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stageline.families.sparse_structure import checkpoint_utils
from stageline.families.sparse_structure.aliases import build_file
from stageline.families.sparse_structure.model import (
    DualBackboneSparseStructureFlowTdfyWrapper,
    SparseStructureFlowTdfyWrapper,
)
from stageline.families.sparse_structure.names import install
from stageline.families.sparse_structure.shortcut import ShortCut

FILES = Path(__file__).parents[4] / "scripts/sparse_structure/checkpoints/hf"
MODELS = "sam3d_objects.model.backbone.tdfy_dit.models"


@pytest.fixture(autouse=True)
def _own_modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("sam3d_objects"):
            del sys.modules[name]


def test_the_guides_imports_work_once_installed() -> None:
    added = install()
    assert f"{MODELS}.dual_backbone_checkpoint_utils" in added
    utilities = importlib.import_module(f"{MODELS}.dual_backbone_checkpoint_utils")
    assert utilities.save_dual_backbone_checkpoint is checkpoint_utils.save_dual_backbone_checkpoint
    dual = importlib.import_module(f"{MODELS}.dual_backbone_sparse_structure_flow")
    assert dual.DualBackboneSparseStructureFlowTdfyWrapper is DualBackboneSparseStructureFlowTdfyWrapper
    assert importlib.import_module("sam3d_objects.model.backbone.generator.shortcut.model").ShortCut is ShortCut
    assert install() == []


def test_nothing_of_an_installed_package_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / MODELS.replace(".", "/")
    folder.mkdir(parents=True)
    (folder / "mot_sparse_structure_flow.py").write_text("SparseStructureFlowTdfyWrapper = 'theirs'\n")
    for parent in [folder, *folder.parents]:
        if parent != tmp_path and tmp_path in parent.parents:
            (parent / "__init__.py").write_text("")
    (folder / "__init__.py").write_text("SparseStructureFlowTdfyWrapper = 'theirs too'\n")
    monkeypatch.syspath_prepend(tmp_path)
    added = install()
    assert f"{MODELS}.mot_sparse_structure_flow" not in added
    assert "sam3d_objects" not in added
    theirs = importlib.import_module(f"{MODELS}.mot_sparse_structure_flow")
    assert theirs.SparseStructureFlowTdfyWrapper == "theirs"
    package = importlib.import_module(MODELS)
    assert package.DualBackboneSparseStructureFlowTdfyWrapper is DualBackboneSparseStructureFlowTdfyWrapper
    assert package.SparseStructureFlowTdfyWrapper == "theirs too"
    assert importlib.import_module(f"{MODELS}.dual_backbone_sparse_structure_flow").__name__


def test_the_yaml_files_build_the_published_sizes() -> None:
    """Check 5: 945 tensors and 959,962,133 parameters; the dual file has a per-object branch of the same layout."""
    with torch.device("meta"):
        single = build_file(FILES / "ss_generator.yaml")
        both = build_file(FILES / "dual_backbone_generator.yaml")
    network = single.reverse_fn.backbone
    assert isinstance(network, SparseStructureFlowTdfyWrapper)
    assert len(network.state_dict()) == 945
    assert sum(parameter.numel() for parameter in network.parameters()) == 959_962_133
    assert single.loss_weights["6drotation_normalized"] == 0.1
    dual = both.reverse_fn.backbone
    assert isinstance(dual, DualBackboneSparseStructureFlowTdfyWrapper)
    assert both.batch_mode is True
    assert dual.sparse_flow.state_dict().keys() == network.state_dict().keys()


def test_a_per_object_file_starts_a_dual_backbone(tmp_path: Path) -> None:
    """Check 14: its sparse branch is the file, its scene's branch gives zeros."""
    from .small import dual_arguments, latents

    torch.manual_seed(0)
    network = SparseStructureFlowTdfyWrapper(**dual_arguments()["sparse_flow_config"])
    file = tmp_path / "ss_generator.ckpt"
    prefix = "_base_models.generator.reverse_fn.backbone."
    state = {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}
    checkpoint_utils.write_torch_file(file, {"state_dict": {**state, "_base_models.decoder.x": torch.zeros(1)}})
    dual = checkpoint_utils.create_dual_backbone_from_single_checkpoint(file, dual_arguments())
    x, cond = latents(2), torch.randn(2, 3, 16)
    a, b = network(x, torch.tensor([500.0]), cond), dual(x, torch.tensor([500.0]), cond)
    assert all(torch.equal(a[name], b[name]) for name in a)
    checkpoint_utils.save_dual_backbone_checkpoint(dual, tmp_path / "out")
    from_node = {
        "_target_": f"{MODELS}.dual_backbone_sparse_structure_flow.DualBackboneSparseStructureFlowTdfyWrapper",
        **dual_arguments(),
    }
    again = checkpoint_utils.create_dual_backbone_from_single_checkpoint(tmp_path / "out/sparse_flow.ckpt", from_node)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.sparse_flow.parameters(), strict=True))
