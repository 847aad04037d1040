"""The guide, line by line, in a real shell."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stageline.checkpoint.layout import resolve
from stageline.cli.guiding import lay_out

BIMAMBA = "siglip2-so400m_Qwen3_bimamba_anyres-e2p_PE"
MLP = "siglip2-so400m_Qwen3_mlp_anyres-e2p_PE"
OVERLAP0 = f"{BIMAMBA}__ov000"
SECONDS = 1200
"""A hang guard for one command."""

pytestmark = pytest.mark.slow


class Shell:
    """A shell in a folder, with the interpreter of the tests as `python`."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        programs.mkdir()
        (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (programs / "python").chmod(0o755)
        paths = os.pathsep.join(path for path in sys.path if path)
        self.environment = {
            **{key: value for key, value in os.environ.items() if key != "PANO_PROFILE"},
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": paths,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, line: str, code: int = 0) -> str:
        """What a line prints, after it ended with `code`."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert done.returncode == code, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


def test_every_command_block_of_the_guide_runs_unchanged(tmp_path: Path) -> None:
    """Check 25: the guide literally. Check 20: the evaluation's folder, its rows whose checkpoint it is of."""
    folder = tmp_path / "guide"
    lay_out("panorama_vlm", folder, demo_data=True)
    shell = Shell(folder, tmp_path / "programs")
    shell.run("bash scripts/train_bimamba_overlap0.sh", code=2)
    shell.run("python scripts/train.py --config configs/default.yaml --preview")
    assert not (folder / "runs").exists()

    shell.run("python scripts/train.py --config configs/default.yaml")
    shell.run("python scripts/train.py --config configs/default.yaml --stage vision models.resampler_type=mlp")
    visions = [f"runs/{BIMAMBA}/vision/anyres-e2p_bimamba/best.ckpt", f"runs/{MLP}/vision/anyres-e2p_mlp/best.ckpt"]
    assert shell.run("ls runs/*/vision/*/best.ckpt").split() == visions

    shell.run("bash scripts/train_bimamba_overlap0.sh")
    resume = "python scripts/train.py --config configs/bimamba_overlap0.yaml --resume"
    again = shell.run(f"{resume} {visions[0]}")
    assert "0 made, 5 reused" in again
    assert parent_of(folder) == resolve(str(folder / visions[0])).digest

    result = shell.run(
        f"python scripts/eval.py --config runs/{OVERLAP0}/finetune/anyres-e2p_bimamba/config.yaml "
        "--csv-input data/quic360/test.csv"
    )
    (copied,) = [line for line in result.splitlines() if line.startswith("results/")]
    check_copy(folder, folder / copied)

    shell.run("rm runs/*_stage_state.json")
    assert "0 made, 6 reused" in shell.run("python scripts/train.py --config configs/default.yaml")
    state = json.loads((folder / f"runs/{BIMAMBA}_stage_state.json").read_text())
    assert {stage["status"] for stage in state["stages"].values()} == {"completed"}

    digests = {resolve(str(folder / f"runs/{run}/finetune")).digest for run in (BIMAMBA, OVERLAP0)}
    assert len(digests) == 2

    shell.run(f"{resume} {visions[1]}")
    assert parent_of(folder) == resolve(str(folder / visions[1])).digest


def parent_of(folder: Path) -> str:
    """Digest of the checkpoint that the resampler without overlap started from."""
    return resolve(str(folder / f"runs/{OVERLAP0}/resampler")).metadata.parents["default"].digest


def check_copy(folder: Path, copy: Path) -> None:
    """A copied evaluation holds a row per row of the CSV file, and names the checkpoint by its digest."""
    assert copy.parent == folder / "results/eval_results" / OVERLAP0
    with (copy / "predictions.csv").open(newline="") as file, (folder / "data/quic360/test.csv").open() as source:
        assert len(list(csv.DictReader(file))) == len(list(csv.DictReader(source)))
    said = json.loads((copy / "metrics.json").read_text())["checkpoint"]["digest"]
    assert said == resolve(str(folder / f"runs/{OVERLAP0}/finetune")).digest
