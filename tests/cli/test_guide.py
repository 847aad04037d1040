"""`stageline guide`: a family's folder of scripts and configs is laid out whole, or nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest

from stageline.cli import main
from stageline.cli.guiding import guide_folder
from stageline.families import FAMILIES, load_config

pytestmark = pytest.mark.parametrize("family", FAMILIES)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_file_is_laid_out_and_a_second_time_changes_nothing(family: str, tmp_path: Path) -> None:
    assert main(["guide", family, str(tmp_path / "guide")]) == 0
    wanted = {name: data for name, data in files_of(guide_folder(family)).items() if "__pycache__" not in name}
    assert files_of(tmp_path / "guide") == wanted
    assert main(["guide", family, str(tmp_path / "guide")]) == 0
    assert files_of(tmp_path / "guide") == wanted


def test_other_files_are_refused_all_at_once_before_anything_is_written(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["guide", family, str(tmp_path / "guide")]) == 0
    names = sorted(files_of(tmp_path / "guide"))
    mine = names[1:] or names
    other = tmp_path / "other"
    for name in mine:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text("mine")
    before = files_of(other)
    assert main(["guide", family, str(other)]) == 2
    assert files_of(other) == before
    told = capsys.readouterr().err
    assert all(f"{other / name} is there and is another file" in told for name in mine)


def test_demo_data_is_the_same_each_time_and_its_configs_are_read(family: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main(["guide", family, str(tmp_path / name), "--demo-data"]) == 0
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    configs = sorted((tmp_path / "one" / "configs").glob("*.yaml"))
    assert configs
    for config in configs:
        assert load_config(config).run
