"""An installed wheel carries the pipelines and components too: `pip install` elsewhere, and `stageline run` works."""

from __future__ import annotations

import email
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["src", "components", "pipelines", "scripts", "pyproject.toml", "setup.py", "README.md", "LICENSE"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=leave_out)
        else:
            shutil.copy(ROOT / part, source / part)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = out.glob("*.whl")
    return built


def test_every_module_and_every_compiled_pipeline_is_inside(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    folders = {"src/stageline": "stageline", "components": "stageline_components", "pipelines": "stageline_pipelines"}
    wanted = {
        f"{package}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, package in folders.items()
        for pattern in ("**/*.py", "**/*.yaml", "**/py.typed")
        for file in (ROOT / folder).glob(pattern)
    }
    assert "stageline/py.typed" in wanted
    assert "stageline_pipelines/film_flow.yaml" in wanted
    assert any(name.startswith("stageline_components/") for name in wanted)
    assert wanted - inside == set()


def test_the_guides_are_inside_with_their_configs_and_shell_scripts(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"stageline_guides/{file.relative_to(ROOT / 'scripts').as_posix()}"
        for folder in (ROOT / "scripts").iterdir()
        if folder.is_dir() and folder.name != "__pycache__"
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert "stageline_guides/panorama_vlm/scripts/train_bimamba_overlap0.sh" in wanted
    assert {name for name in inside if name.startswith("stageline_guides/")} == wanted


def test_nothing_else_is_inside(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "stageline",
        "stageline_components",
        "stageline_guides",
        "stageline_pipelines",
    }


def test_the_metadata_says_name_licence_command_and_extras(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    assert metadata["Name"] == "stageline"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"pipelines", "train", "vlm", "all"} <= set(metadata.get_all("Provides-Extra") or ())
    assert b"stageline = stageline.cli:main" in archive.read(f"{info}/entry_points.txt")
    assert b"Apache License" in archive.read(f"{info}/licenses/LICENSE")


def test_an_unpacked_wheel_runs_away_from_the_clone(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import stageline.cli, stageline_pipelines as p; print(stageline.cli.__file__); print(p.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(line.startswith(str(tmp_path)) for line in result.stdout.splitlines())


def test_an_unpacked_wheel_lays_out_a_guide(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    subprocess.run(
        [sys.executable, "-m", "stageline", "guide", "panorama_vlm", "laid_out"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "laid_out/configs/default.yaml").is_file()
    assert (tmp_path / "laid_out/scripts/train.py").is_file()
