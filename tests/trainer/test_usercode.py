"""The user's own files of stages and of data: executed where they are needed, part of what depends on them, kept."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stageline.checkpoint.layout import resolve
from stageline.checkpoint.usercode import keep_code
from stageline.config import RunConfig
from stageline.data.prepared import PreparedData
from stageline.families import parse_config
from stageline.jobs.cluster.render.pytorchjob import render_job
from stageline.jobs.environment import read_environment
from stageline.pipeline.items import resolved_job
from stageline.plan import make_plan
from stageline.store import open_store
from stageline.verbs.prepare import prepare_data


def test_a_stage_executes_keeps_and_depends_on_its_users_files(train: Callable[..., Any], tmp_path: Path) -> None:
    plain = train(**{"trainer.max_steps": 2})
    own = tmp_path / "own.py"
    own.write_text("SEEN = True\n")
    first = train(run="own", **{"trainer.max_steps": 2, "code": [str(own)]})
    metadata = resolve(str(first.reference)).metadata
    assert metadata.stage_fingerprint != resolve(str(plain.reference)).metadata.stage_fingerprint
    (digest,) = metadata.code.values()
    assert (tmp_path / "runs" / "own" / "code" / f"{digest}.py").read_bytes() == own.read_bytes()
    assert sys.modules[f"stageline_user_{digest[:16]}"].SEEN  # type: ignore[attr-defined]
    assert f"own.py@sha256:{digest}" in resolve(str(first.reference)).store.get("config.yaml").decode()

    moved = tmp_path / "moved" / "own.py"
    moved.parent.mkdir()
    own.rename(moved)
    assert train(run="own", **{"trainer.max_steps": 2, "code": [str(moved)]}).action == "reuse"
    kept = [f"own.py@sha256:{digest}"]
    assert train(run="own", **{"trainer.max_steps": 2, "code": kept}).action == "reuse"
    moved.write_text("SEEN = False\n")
    assert train(run="own", **{"trainer.max_steps": 2, "code": [str(moved)]}).action == "run"


OWN = """
import torch
from toy_family.data import ROW_MAKERS
ROW_MAKERS["train"] = lambda index: torch.full((4,), {level})
"""


def write_own(path: Path, level: float) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(OWN.format(level=level))
    return path


def toy_config(root: Path, *code: Path) -> RunConfig:
    storage = {"claim": "runs", "mount_path": str(root)}
    return parse_config(
        {
            "family": "toy",
            "run": "r",
            "root": str(root),
            "data": {"code": [str(path) for path in code]},
            "cluster": {"image": "registry/trainer:1", "storage": storage},
        }
    )


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The toy's makers of rows, as they were after each test."""
    from toy_family import data

    monkeypatch.setattr(data, "ROW_MAKERS", {})
    return data.ROW_MAKERS


def test_files_that_make_data_count_in_the_splits_they_serve_alone(tmp_path: Path, makers: dict[str, Any]) -> None:
    root, path = tmp_path / "root", write_own(tmp_path / "user" / "own.py", 0.5)
    plain = prepare_data(toy_config(root))
    own = prepare_data(toy_config(root, path))
    assert {name for name in own.splits if own.splits[name] != plain.splits[name]} == {"train", "val"}
    assert PreparedData(own).split("train").array(3, "x").tolist() == [0.5] * 4
    write_own(path, 0.25)
    made = prepare_data(toy_config(root, path))
    assert own.splits["test"] == made.splits["test"] == plain.splits["test"]
    assert made.splits["train"].digest != own.splits["train"].digest
    assert PreparedData(made).split("train").array(3, "x").tolist() == [0.25] * 4
    assert makers
    texts = {hashlib.sha256(OWN.format(level=level).encode()).hexdigest() for level in (0.5, 0.25)}
    assert {text.stem for text in (root / "runs" / "r" / "code").iterdir()} == texts


def test_what_they_do_not_serve_is_made_without_executing_them(tmp_path: Path, makers: dict[str, Any]) -> None:
    path = write_own(tmp_path / "own.py", 0.75)
    made = prepare_data(toy_config(tmp_path, path))
    makers.clear()
    shutil.rmtree(tmp_path / "cache" / "prepared" / made.splits["test"].fingerprint)
    del sys.modules[f"stageline_user_{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"]
    again = prepare_data(toy_config(tmp_path, path))
    assert not again.reused
    assert again.splits == made.splits
    assert not makers


def test_a_pod_makes_the_data_with_the_text_that_was_kept(tmp_path: Path, makers: dict[str, Any]) -> None:
    """By what its environment says alone: the user's file is on another machine."""
    path = write_own(tmp_path / "user" / "own.py", 0.125)
    root = tmp_path / "root"
    here = toy_config(root, path)
    prospect = resolved_job(keep_code(here), "prepare_data", open_store(root))
    manifest = render_job(prospect.job, prospect.cluster)
    shutil.rmtree(path.parent)
    (container,) = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    told = read_environment({entry["name"]: entry["value"] for entry in container["env"] if "value" in entry})
    there = parse_config(dict(told.config))
    assert there.data.code == (f"own.py@sha256:{hashlib.sha256(OWN.format(level=0.125).encode()).hexdigest()}",)
    assert make_plan(there)["prepare_data"].action == "run"
    made = prepare_data(there)
    assert makers
    assert PreparedData(made).split("train").array(0, "x").tolist() == [0.125] * 4
    assert make_plan(there)["prepare_data"].action == "reuse"
