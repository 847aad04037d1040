"""The pipeline's branch `overlap0`: from the same vision stage, without overlap, and the comparison of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from guards import HANG_SECONDS
from runs import SMALL, small

from stageline.checkpoint.layout import resolve
from stageline.families.panorama_vlm.naming import run_name
from stageline.pipeline.compiled import compile_pipeline, compiled_pipeline
from stageline.plan import plan_branch
from stageline.verbs.report.html import escape

COMMAND = (sys.executable, "-m", "stageline", "run", "--family", "panorama_vlm", "--preset", "tiny")


@pytest.mark.slow
def test_the_installed_pipeline_is_what_compiling_gives(tmp_path: Path) -> None:
    # On a thread: kfp looks at every frame of the stack whenever a step is set, and pytest's is deep.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(compile_pipeline, "panorama_vlm", tmp_path / "again.yaml", branch="overlap0").result()
    assert (tmp_path / "again.yaml").read_text() == compiled_pipeline("panorama_vlm", branch="overlap0").read_text()


def test_it_is_another_run_of_the_guides_name(tmp_path: Path) -> None:
    """Where nobody named the run; both stages after vision are trained anew."""
    named = small(tmp_path, run="mine")
    config = named.model_copy(update={"run": run_name(named)})
    own, _ = plan_branch(config, "overlap0")
    assert own.run == f"{config.run}__ov000" == "siglip2-so400m_Qwen3_mlp_anyres-e2p_PE__ov000"
    assert own.stages == ("resampler", "finetune")
    assert plan_branch(named, "overlap0")[0].run == "mine__overlap0"


@pytest.mark.slow
def test_one_command_trains_both_and_compares_them(tmp_path: Path) -> None:
    keys = [key for key in SMALL if not key.startswith("trainer.max_steps")]
    command = [*COMMAND, "--branch", "overlap0", f"root={tmp_path}", "run=both", "trainer.max_steps=2", *keys]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=HANG_SECONDS, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    vision = resolve(str(tmp_path / "runs/both/vision"))
    for run in ("both", "both__overlap0"):
        assert resolve(str(tmp_path / "runs" / run / "resampler")).metadata.parents["default"].digest == vision.digest
    assert not (tmp_path / "runs/both__overlap0/vision").exists()
    (file,) = (tmp_path / "runs/both/comparisons").glob("*/comparison.json")
    told = json.loads(file.read_text())
    assert [told[side]["about"]["views"] for side in ("a", "b")] == [9, 5]
    page = (tmp_path / "runs/both/report.html").read_text()
    assert escape(told["b"]["about"]["plan"]) in page
    assert (tmp_path / "runs/both__overlap0/report.html").is_file()
