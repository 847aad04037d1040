"""Files for other programs, made at commit, and files of other programs, brought in as one checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stageline.checkpoint.export import export
from stageline.checkpoint.layout import StageDir, resolve
from stageline.checkpoint.tensors import read_tensors
from stageline.checkpoint.verify import verify
from stageline.cli import main
from stageline.errors import CheckpointError, ConfigError

EXPORTED = {
    "model.exported": True,
    "trainer.checkpoint_every_steps": 2,
    "trainer.validate_every_steps": 2,
    "trainer.max_steps": 5,
}
WEIGHTS = "head_for_others/weights.safetensors"
LAYERS = "head_for_others/layers.txt"


def nothing(config: Any, stage: Any, tensors: Any) -> dict[str, bytes]:
    """What a family without files for other programs makes."""
    return {}


def test_derived_files_are_hashed_and_no_source_of_ours(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from toy_family import family

    ref = resolve(str(train(**EXPORTED).reference))
    with monkeypatch.context() as patch:
        patch.setattr(family, "FAMILY", replace(family.FAMILY, exports=nothing))
        plain = resolve(str(train(run="plain", **EXPORTED).reference))
    kinds = ref.metadata.file_kinds
    assert {name for name, kind in kinds.items() if kind == "derived"} == {WEIGHTS, LAYERS}
    assert {name for name, kind in kinds.items() if kind == "weights"} == {"model.safetensors", "ema.safetensors"}
    assert ref.content == plain.content
    assert verify(ref) == []
    folder = Path(ref.uri)
    average = read_tensors(ref, "ema")
    shown = load_file(folder / WEIGHTS)
    assert set(shown) == {"layers.head.weight", "layers.head.bias"}
    assert all(torch.equal(tensor, average[name.removeprefix("layers.")]) for name, tensor in shown.items())
    (folder / LAYERS).write_text("changed")
    assert any(LAYERS in fault for fault in verify(ref))


def test_the_stage_directory_shows_those_of_best(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toy_family import family

    train(**EXPORTED)
    directory = StageDir(str(tmp_path), "r", "base")
    best = directory.pointer("best")
    assert best is not None
    for name in (WEIGHTS, LAYERS):
        assert directory.store.get(name) == best.store.get(name)
    exported = export(best, tmp_path / "out")
    assert (exported / LAYERS).read_bytes() == best.store.get(LAYERS)
    monkeypatch.setattr(family, "FAMILY", replace(family.FAMILY, exports=nothing))
    train(**EXPORTED, **{"trainer.learning_rate": 0.01})
    assert not directory.store.exists(WEIGHTS), "those of a former best go"


@pytest.mark.parametrize("name", ["model.safetensors", "training/x", "config.yaml", "checkpoints/a", "claim.json"])
def test_a_name_of_ours_is_refused(train: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from toy_family import family

    monkeypatch.setattr(
        family, "FAMILY", replace(family.FAMILY, exports=lambda _config, _stage, _tensors: {name: b"x"})
    )
    with pytest.raises(CheckpointError, match="is a name of ours"):
        train(**{"trainer.max_steps": 1})


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """The toy model in two files."""
    from toy_family.model import ToyModel

    state = ToyModel(7).state_dict()
    paths = [tmp_path / "stem=1.safetensors", tmp_path / "rest.safetensors"]
    save_file({name: t for name, t in state.items() if name.startswith("stem")}, paths[0])
    save_file({name: t for name, t in state.items() if not name.startswith("stem")}, paths[1])
    return paths


def test_several_files_become_one_checkpoint_of_the_stage_that_is_named(
    parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from toy_family.model import ToyModel

    command = ["checkpoint", "import", *map(str, parts), f"root={tmp_path}", "--to", "old", "--family", "toy"]
    assert main([*command, "--stage", "tune"]) == 0, capsys.readouterr().err
    ref = resolve(capsys.readouterr().out.splitlines()[-1])
    assert (ref.metadata.stage, ref.metadata.final) == ("tune", True)
    assert ref.metadata.notes["import"]["files"] == ["stem=1.safetensors", "rest.safetensors"]
    assert ref.metadata.notes["import"]["report"] == {"parts": 2, "asked": "tune"}
    tensors, state = read_tensors(ref), ToyModel(7).state_dict()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state.items())
    assert main(command) == CheckpointError.exit_code, "without --stage they fit several"
    assert main([*command[:3], f"root={tmp_path}", "--to", "b", "--family", "toy"]) == CheckpointError.exit_code
    assert not (tmp_path / "runs" / "b").exists()


def test_what_is_missing_is_told_at_once(parts: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "import", "a.pt", "b.pt", "--to", "old", "--family", "toy"]) == CheckpointError.exit_code
    told = capsys.readouterr().err
    assert "'a.pt'" in told
    assert "'b.pt'" in told
    assert main(["checkpoint", "import", str(parts[0]), "--to", "old"]) == ConfigError.exit_code
    assert "--family" in capsys.readouterr().err
