"""A pod that finds its work committed ends at once; one whose job was edited says so; neither starts a rank."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stageline.checkpoint.identity import claim_run
from stageline.checkpoint.layout import StageDir
from stageline.families import parse_config
from stageline.work.decision import decide_stage
from stageline.work.given import Given

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
from pods import PodEnd, run_pod

from tests.checkpoint.samples import provenance, snapshot, writing
from tests.empty_splits import commit_empty_splits


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Reference of prepared data without a row."""
    return str(commit_empty_splits(parse_config(raw(tmp_path))).reference)


def raw(root: Path, **trainer: Any) -> dict[str, Any]:
    return {"family": "film_flow", "run": "a", "root": str(root / "root"), "trainer": {"processes": 2, **trainer}}


def start(folder: Path, config: dict[str, Any], data: str, **environment: str) -> PodEnd:
    return run_pod(
        folder / "pod",
        "print('a rank began')",
        arguments=("train", "backbone", f"--data={data}"),
        environment={"STAGELINE_CONFIG": yaml.safe_dump(config), "STAGELINE_ITEM": "backbone", **environment},
    )


def commit(root: Path, fingerprint: str, *, final: bool) -> None:
    directory = StageDir(str(root / "root"), "a", "backbone")
    prov = provenance(stage="backbone", stage_fingerprint=fingerprint)
    with writing(directory, prov=prov) as writer:
        writer.save(snapshot(100, final=final))


@pytest.mark.parametrize("final", [True, False])
def test_a_worker_started_alone_after_the_final_commit_ends_at_once(tmp_path: Path, data: str, final: bool) -> None:
    config = raw(tmp_path)
    fingerprint = decide_stage(parse_config(config), "backbone", given=Given(data)).fingerprint
    commit(tmp_path, fingerprint, final=final)
    end = start(tmp_path, config, data, STAGELINE_FINGERPRINT=fingerprint)
    assert end.code == 0, end.output
    assert ("committed already" in end.output) == final
    assert ("a rank began" in end.output) == (not final)


def test_a_job_that_was_edited_is_refused(tmp_path: Path, data: str) -> None:
    fingerprint = decide_stage(parse_config(raw(tmp_path)), "backbone", given=Given(data)).fingerprint
    end = start(tmp_path, raw(tmp_path, learning_rate=0.5), data, STAGELINE_FINGERPRINT=fingerprint)
    assert end.code == 6, end.output
    assert fingerprint[:12] in end.message["sentence"]
    assert "edited" in end.message["remedy"]
    assert "a rank began" not in end.output


def test_a_job_that_was_edited_into_another_run_is_refused(tmp_path: Path, data: str) -> None:
    """The run is that of the job as it was made; the remedy is not to rename it."""
    config = parse_config(raw(tmp_path))
    claim_run(config.root, config)
    fingerprint = decide_stage(config, "backbone", given=Given(data)).fingerprint
    end = start(tmp_path, {**raw(tmp_path), "seed": 99}, data, STAGELINE_FINGERPRINT=fingerprint)
    assert end.code == 6, end.output
    assert "seed: 0 -> 99" in end.message["sentence"]
    assert "edited" in end.message["remedy"]
    assert "a rank began" not in end.output


def test_the_spread_over_nodes_does_not_make_it_another_job(tmp_path: Path, data: str) -> None:
    fingerprint = decide_stage(parse_config(raw(tmp_path)), "backbone", given=Given(data)).fingerprint
    end = start(tmp_path, raw(tmp_path, nodes=2, processes=1), data, STAGELINE_FINGERPRINT=fingerprint, PET_NNODES="2",
                PET_NPROC_PER_NODE="1")  # fmt: skip
    assert end.code == 0, end.output
    assert "a rank began" in end.output


def test_data_that_are_gone_are_told_before_anything_starts(tmp_path: Path, data: str) -> None:
    shutil.rmtree(tmp_path / "root" / "cache")
    end = start(tmp_path, raw(tmp_path), data)
    assert end.code == 3, end.output
    assert "a rank began" not in end.output
