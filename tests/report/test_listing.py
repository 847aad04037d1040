"""The list of runs: what came out, how far each got, and in what they differ."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from stageline.checkpoint.identity import claim_run
from stageline.checkpoint.layout import CheckpointRef, StageDir
from stageline.checkpoint.lease import StageLease
from stageline.cli import main
from stageline.errors import TrainingError
from stageline.store import open_store
from stageline.telemetry import write_failure
from stageline.verbs.report.listing import RunSummary, list_runs

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.plan.conftest import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "root")


def train(lab: Lab, run: str, *overrides: str, value: float = 0.5) -> CheckpointRef:
    config = lab.config(f"run={run}", *overrides)
    claim_run(str(lab.root), config, stages={"backbone": "backbone", "film": "film"})
    backbone = lab.commit(config, "backbone")
    return lab.commit(config, "film", parents={"default": backbone}, value=value)


def listed(lab: Lab) -> dict[str, RunSummary]:
    return {run.run: run for run in list_runs(open_store(lab.root))}


def test_an_empty_root_has_no_runs(lab: Lab) -> None:
    assert list_runs(open_store(lab.root)) == []


def test_what_came_out_and_in_what_runs_differ(lab: Lab) -> None:
    train(lab, "one", value=0.25)
    train(lab, "two", "stage_overrides.film.trainer.max_steps=99", "seed=4", value=0.75)
    runs = listed(lab)
    assert [(run.metric, run.value, run.state) for run in runs.values()] == [
        ("dice", 0.25, "trained"),
        ("dice", 0.75, "trained"),
    ]
    assert runs["one"].seconds is None, "nothing recorded how long it took"
    assert runs["two"].differs == {"film: trainer.max_steps": 99, "seed": 4}
    assert set(runs["one"].differs) == {"film: trainer.max_steps", "seed"}
    assert runs["one"].differs["seed"] == 0


def test_a_run_alone_differs_from_nothing(lab: Lab) -> None:
    train(lab, "one")
    assert listed(lab)["one"].differs == {}


def test_how_far_each_got(lab: Lab) -> None:
    """Stopped, failed, running, never started, damaged: each says so, and none hides another."""
    store = open_store(lab.root)
    train(lab, "done")
    config = lab.config("run=stopped")
    claim_run(str(lab.root), config, stages={"backbone": "backbone", "film": "film"})
    lab.commit(config, "backbone", step=4, final=False)
    claim_run(str(lab.root), lab.config("run=failed"), stages={"backbone": "backbone", "film": "film"})
    write_failure(
        StageDir(store, "failed", "backbone").store, TrainingError("the loss is not finite", remedy="smaller")
    )
    claim_run(str(lab.root), lab.config("run=fresh"), stages={"backbone": "backbone", "film": "film"})
    train(lab, "broken")
    newest = StageDir(store, "broken", "film").newest()
    assert newest is not None
    (Path(newest.uri) / "checkpoint_metadata.json").write_bytes(b"{")
    with StageLease.acquire(StageDir(store, "stopped", "backbone"), "somebody", keep_renewed=False):
        assert listed(lab)["stopped"].state == "running"
    states = {name: run.state for name, run in listed(lab).items()}
    assert states.pop("broken").endswith("damaged")
    assert states == {"done": "trained", "failed": "failed", "fresh": "not started", "stopped": "not finished"}


def test_folders_that_were_copied_damaged_or_are_none_hide_nothing(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    train(lab, "one", value=0.25)
    runs = lab.root / "runs"
    shutil.copytree(runs / "one", runs / "backup")
    shutil.copytree(runs / "one", runs / "0x10")
    for path in (runs / "backup").rglob("checkpoint_metadata.json"):
        path.write_bytes(b"{")
    (runs / "0x10" / "run.json").write_bytes(b"\xff\xfe\0")
    (runs / "foreign" / "version_0").mkdir(parents=True)
    (runs / "notes.txt").write_text("nothing")
    (runs / "link").symlink_to(lab.root / "nowhere")
    states = {name: run.state for name, run in listed(lab).items()}
    assert states.pop("backup").endswith(", copy of one, damaged")
    assert states == {"0x10": "trained, damaged", "one": "trained"}
    assert main(["runs", "list", "--root", str(lab.root)]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "tells more" in line]
    assert ["runs show backup" in line for line in told] == [False, True]
    assert "(and 5 more)" in told[1]
    assert told[1].count("damaged metadata") == told[1].count("backup/backbone/checkpoints") == 1


def test_the_command_shows_a_row_per_run(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    train(lab, "one", value=0.25)
    train(lab, "two", "seed=4", value=0.75)
    assert main(["runs", "list", "--root", str(lab.root)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["run", "one", "two"]
    assert all(word in rows[2] for word in ("trained", "film 10/10", "dice 0.750", "seed=4"))
