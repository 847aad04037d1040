"""`stageline checkpoint import`: a legacy file becomes a committed checkpoint of the stage its tensors are of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stageline.checkpoint.layout import resolve
from stageline.checkpoint.tensors import read_tensors
from stageline.checkpoint.verify import verify
from stageline.cli import main
from stageline.errors import CheckpointError, PlanError

TO = ("--to", "old", "--family", "film_flow")


@pytest.mark.parametrize(("stages", "name"), [((1, 3), "film"), ((), "backbone")], ids=["film", "no-film"])
def test_an_imported_file_is_a_whole_checkpoint_of_its_stage(
    legacy_model: Callable[..., torch.nn.Module],
    write_legacy: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stages: tuple[int, ...],
    name: str,
) -> None:
    path = write_legacy(legacy_model(stages))
    command = [
        "checkpoint",
        "import",
        str(path),
        *TO,
        f"root={tmp_path}",
        "data.image_size=16",
    ]
    assert main(command) == 0, capsys.readouterr().err
    reference = capsys.readouterr().out.splitlines()[-1]
    ref = resolve(reference)
    assert ref.uri.startswith(str(tmp_path / "runs" / "old" / name))
    assert ref.metadata.final
    assert ref.metadata.facts["vlm_film_trained_stages"] == list(stages)
    assert ref.metadata.notes["import"]["files"] == ["old.ckpt"]
    assert verify(ref) == []
    assert set(read_tensors(ref)) == set(legacy_model(stages).state_dict())
    assert resolve(str(tmp_path / "runs" / "old" / name)).digest == ref.digest


def test_a_file_with_left_over_tensors_commits_nothing(
    legacy_model: Callable[..., torch.nn.Module],
    write_legacy: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_legacy(legacy_model((1,)))
    plain = torch.load(path, weights_only=True)
    plain["state_dict"]["unet.base_unet.surplus.weight"] = torch.zeros(3)
    torch.save(plain, path)
    assert main(["checkpoint", "import", str(path), *TO, f"root={tmp_path}"]) == CheckpointError.exit_code
    assert "surplus" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_import_under_another_runs_name_is_blocked(
    legacy_model: Callable[..., torch.nn.Module],
    write_legacy: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_legacy(legacy_model(()))
    command = [
        "checkpoint",
        "import",
        str(path),
        *TO,
        f"root={tmp_path}",
        "data.image_size=16",
    ]
    assert main(command) == 0
    assert main([*command, "seed=3"]) == PlanError.exit_code
    assert "seed: 0 -> 3" in capsys.readouterr().err
