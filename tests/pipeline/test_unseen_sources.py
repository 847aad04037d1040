"""A launcher that can't see the sources of the data, only its jobs can: they hash them and say reused or made."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guards import HANG_SECONDS
from PIL import Image

from stageline.cli.configuration import raw_preset
from stageline.config import RunConfig
from stageline.errors import DataError
from stageline.families import parse_config
from stageline.pipeline import steps
from stageline.pipeline.items import DataMissingError, free_job, plain_config, resolved_job
from stageline.plan import make_plan
from stageline.store import open_store
from stageline.store.references import decode
from stageline.telemetry import read_events
from stageline.verbs.prepare import prepare_data
from stageline.work.answers import read_answer
from stageline.work.decision import decide_stage
from stageline.work.given import Given

MOUNT = """
import os, sys
if "prepare" in sys.orig_argv:
    os.chdir({mount!r})
"""
"""What a process reads as it starts: those that prepare work in another folder, where the paths of the config lead to
something; as a pod of the job has mounts that its launcher has not."""


@dataclass
class Shown:
    """An artifact of a step."""

    path: str
    metadata: dict[str, Any] = field(default_factory=dict)


def write_pictures(folder: Path, level: int) -> None:
    for split in ("train", "val"):
        for part in ("image", "label"):
            pixels = np.full((48, 48), level, np.uint8)
            pixels[10:14] = 255
            target = folder / "sets" / split / part / "a.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels if part == "image" else (pixels == 255).astype(np.uint8) * 255).save(target)


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that jobs alone work in, with pictures in it."""
    place = tmp_path / "mount"
    write_pictures(place, 10)
    start, here = tmp_path / "start", tmp_path / "here"
    for folder in (start, here):
        folder.mkdir()
    (start / "sitecustomize.py").write_text(MOUNT.format(mount=str(place)))
    monkeypatch.setenv("PYTHONPATH", f"{start}:{Path(__file__).parents[2] / 'src'}")
    monkeypatch.chdir(here)
    return place


def config_of(root: Path, *overrides: str) -> RunConfig:
    words = ("data.name=folder", "data.train_dir=sets/train", "data.val_dir=sets/val", "run=a", f"root={root}")
    steps = [f"stage_overrides.{stage}.trainer.max_steps=1" for stage in ("backbone", "film")]
    return parse_config(
        raw_preset("film_flow", "tiny"),
        [*words, *steps, "model.vlm_film_config.prompt_template=vessels", "trainer.use_ema=false", *overrides],
    )


def step(config: RunConfig, folder: Path) -> tuple[str, str]:
    """The pipeline's step that prepares, in this process: (its reference, the last state that it told)."""
    shown = Shown(str(folder / "artifact"))
    (told,) = steps.prepare_data(
        shown, family="film_flow", config=json.dumps(plain_config(config)), launcher="local", kfp_run=""
    )
    return decode(told), read_events(open_store(config.root).child("runs", "a"))[-1]["state"]


def test_the_job_hashes_says_reused_or_made_and_jobs_after_it_take_what_it_answered(
    mount: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path / "root")
    root = open_store(config.root)
    item = make_plan(config)["prepare_data"]
    assert item.action == "depends"
    assert "not to be seen from here: sets/train/image" in item.reasons[0]
    assert "the job that prepares reads the sources and says reused or run" in item.reasons[0]
    assert free_job(config, "prepare_data")[0].fingerprint == ""
    with pytest.raises(DataMissingError, match="not to be seen from here"):
        resolved_job(config, "backbone", root)
    prospect = resolved_job(config, "prepare_data", root)
    assert not prospect.result.finished()
    first, state = step(config, tmp_path)
    assert state == "done"
    assert prospect.result.finished(), "an answer that was not there when the job was made"
    assert not resolved_job(config, "prepare_data", root).result.finished(), "the next job has to answer anew"
    answer = read_answer(root, config)
    assert answer is not None
    assert answer.reference == first
    assert f"--data={first}" in resolved_job(config, "backbone", root, answer.reference).job.arguments
    assert read_answer(root, config_of(tmp_path / "root", "run=b")) is None
    again, state = step(config, tmp_path)
    assert (again, state) == (first, "reused")
    assert make_plan(config)["prepare_data"].action == "depends", "nobody here can tell what the sources hold now"
    work = decide_stage(config, "backbone", given=Given(first, {}))
    assert work.action == "run"
    assert work.fingerprint
    assert f"--data={first}" in work.arguments(), "the steps after it get the reference"
    stage = make_plan(config)["backbone"]
    assert any("the job that prepares reads the sources" in reason for reason in stage.reasons)


def test_who_prepares_must_see_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are not there for the preparer either, all that is missing is named at once."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path, 10)
    config = config_of(tmp_path / "root")
    assert make_plan(config)["prepare_data"].action == "run"
    shutil.rmtree(tmp_path / "sets" / "val")
    shutil.rmtree(tmp_path / "sets" / "train" / "label")
    assert make_plan(config)["prepare_data"].action == "depends"
    with pytest.raises(DataError) as caught:
        prepare_data(config)
    for words in ("sets/train/label", "sets/val"):
        assert words in str(caught.value)


@pytest.mark.slow
def test_a_whole_run_whose_sources_only_the_job_sees(mount: Path, tmp_path: Path) -> None:
    """`stageline run` twice: the second time every step is a reuse, although nothing here sees a source file.

    Then a picture changes: the job sees that and makes the data anew.
    """
    config = config_of(tmp_path / "root", "evaluate.weights=raw")
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(plain_config(config)))
    for expected in ("5 made, 0 reused", "0 made, 5 reused"):
        done = subprocess.run(
            [sys.executable, "-m", "stageline", "run", "-c", str(path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert expected in done.stdout
    before = read_answer(open_store(config.root), config)
    write_pictures(mount, 11)
    changed, state = step(config, tmp_path)
    assert state == "done"
    assert before is not None
    assert changed != before.reference
