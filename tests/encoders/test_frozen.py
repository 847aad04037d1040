"""Frozen models of transformers: every tensor is the file's, and a file of others executes nothing."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stageline.encoders.frozen import load_frozen, read_weights
from stageline.errors import CheckpointError


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    """A vision tower with random weights, as transformers saves it."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(tmp_path / "tower")
    return tmp_path / "tower"


def change(tower: Path, **tensors: torch.Tensor | None) -> None:
    """Put tensors into its file, or take them out (None)."""
    path = tower / "model.safetensors"
    kept = {**load_file(path), **tensors}
    save_file({name: t for name, t in kept.items() if t is not None}, path, metadata={"format": "pt"})


def test_every_tensor_is_the_files_and_none_trains(tower: Path) -> None:
    from transformers import CLIPVisionModel

    model = load_frozen(CLIPVisionModel.from_pretrained, tower, dtype=torch.float32)
    saved, held = load_file(tower / "model.safetensors"), model.state_dict()
    assert {name: t for name, t in held.items() if name in saved}.keys() == saved.keys()
    assert all(torch.equal(held[name], tensor) for name, tensor in saved.items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_missing_a_foreign_and_a_misshapen_tensor_are_named(tower: Path) -> None:
    from transformers import CLIPVisionModel

    name = next(name for name in load_file(tower / "model.safetensors") if name.endswith("fc1.weight"))
    change(tower, **{name: None, "head.weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError) as refused:
        load_frozen(CLIPVisionModel.from_pretrained, tower)
    assert f"lack 1 tensors: {name}" in refused.value.message
    assert "have beyond it 1 tensors: head.weight" in refused.value.message
    change(tower, **{name: torch.zeros(3, 3)})
    with pytest.raises(CheckpointError, match=r"in another shape 1 tensors: .*fc1\.weight \(3, 3\) for \(12, 8\)"):
        load_frozen(CLIPVisionModel.from_pretrained, tower, unused=("head.*",))
    change(tower, **{name: torch.zeros(12, 8)})
    assert load_frozen(CLIPVisionModel.from_pretrained, tower, unused=("head.*",))


class Payload:
    """Unpickled without care, it would make a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_a_torch_file_gives_tensors_and_executes_nothing(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    torch.save({"state_dict": tensors}, tmp_path / "good.pth")
    save_file(tensors, tmp_path / "good.safetensors")
    for name in ("good.pth", "good.safetensors"):
        found = read_weights(tmp_path / name)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "lightning.ckpt")
    assert read_weights(tmp_path / "lightning.ckpt").keys() == tensors.keys()
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"a": Payload(str(tmp_path / "made"))}))
    with pytest.raises(CheckpointError, match="without executing"):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "made").exists()
    torch.save({"a": torch.ones(1), "epoch": 3}, tmp_path / "mixed.pth")
    with pytest.raises(CheckpointError, match="holds more than tensors: epoch"):
        read_weights(tmp_path / "mixed.pth")
