"""A stage that another run finished under the same fingerprint is offered, taken or left, as the config says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stageline.checkpoint.index import finished_elsewhere
from stageline.config import fingerprint, identity
from stageline.errors import CheckpointError
from stageline.stage import stage_settings
from stageline.store import open_store
from stageline.work.decision import decide, decide_stage
from stageline.work.work import StageWork, refuse_blocked

if TYPE_CHECKING:
    from tests.plan.conftest import Lab

TAKE = "reuse.across_runs=on"


def stage(lab: Lab, name: str, *overrides: str) -> StageWork:
    return decide_stage(lab.config("run=second", *overrides), name)


def entries(lab: Lab) -> list[Path]:
    return sorted((lab.root / "index").rglob("*.json"))


def test_it_is_offered_and_trained_by_default(lab: Lab) -> None:
    lab.commit(lab.config("run=first"), "backbone")
    work = stage(lab, "backbone")
    assert (work.action, work.reference) == ("run", "")
    offers = [reason for reason in work.reasons if "run 'first'" in reason]
    assert len(offers) == 1
    assert TAKE in offers[0]
    assert "equal settings, data and parents" in offers[0]
    assert "(stageline " in offers[0]
    silent = stage(lab, "backbone", "reuse.across_runs=off")
    assert (silent.action, [reason for reason in silent.reasons if "first" in reason]) == ("run", [])


def test_it_is_taken_where_the_config_says_so_and_feeds_the_next_stage(lab: Lab) -> None:
    ref = lab.commit(lab.config("run=first"), "backbone")
    work = stage(lab, "backbone", TAKE)
    assert (work.action, work.reference) == ("reuse", str(ref.reference))
    assert "run 'first'" in work.reasons[0]
    film = decide(lab.config("run=second", TAKE), "film")
    assert film.action == "run"
    assert f"--parent=default={ref.reference}" in film.arguments()
    alone = decide_stage(lab.config("run=second", TAKE, "stages=[film]"), "film")
    assert {role: str(parent.reference) for role, parent in alone.sources.items()} == {"default": str(ref.reference)}


def test_own_work_comes_first(lab: Lab) -> None:
    lab.commit(lab.config("run=first"), "backbone")
    own = lab.commit(lab.config("run=second"), "backbone", value=0.7)
    assert stage(lab, "backbone", TAKE).reference == str(own.reference)


def test_a_stopped_training_gives_way_to_a_finished_one(lab: Lab) -> None:
    ref = lab.commit(lab.config("run=first"), "backbone")
    lab.commit(lab.config("run=second"), "backbone", step=4, final=False)
    assert stage(lab, "backbone").action == "continue"
    work = stage(lab, "backbone", TAKE)
    assert (work.action, work.reference, work.from_step) == ("reuse", str(ref.reference), 0)


@pytest.mark.parametrize("change", ["trainer.learning_rate=1e-3", "seed=5"])
def test_other_settings_are_no_candidate(lab: Lab, change: str) -> None:
    lab.commit(lab.config("run=first"), "backbone")
    assert stage(lab, "backbone", TAKE, change).action == "run"


def test_unfinished_work_of_another_run_is_no_candidate(lab: Lab) -> None:
    lab.commit(lab.config("run=first"), "backbone", step=4, final=False)
    assert entries(lab) == []
    assert stage(lab, "backbone", TAKE).action == "run"


def test_a_damaged_candidate_is_told_and_the_next_one_taken(lab: Lab) -> None:
    damaged = lab.commit(lab.config("run=first"), "backbone")
    whole = lab.commit(lab.config("run=other"), "backbone")
    (Path(damaged.uri) / "model.safetensors").write_bytes(b"short")
    work = stage(lab, "backbone", TAKE)
    assert (work.action, work.reference) == ("reuse", str(whole.reference))
    assert any("run 'first'" in note and "damaged" in note for note in work.notes)


def test_a_parent_that_vanished_is_named(lab: Lab) -> None:
    """A run that took a stage from another one is not trained anew behind its user's back."""
    ref = lab.commit(lab.config("run=first"), "backbone")
    lab.commit(lab.config("run=second"), "film", parents={"default": ref})
    taken = stage(lab, "film", TAKE)
    assert taken.action == "reuse"
    shutil.rmtree(lab.root / "runs" / "first")
    work = stage(lab, "backbone", TAKE)
    assert work.action == "blocked"
    with pytest.raises(CheckpointError, match="'backbone' was taken from run 'first'") as one:
        refuse_blocked(work)
    assert "'runs/first/backbone' is no longer there" in one.value.message
    assert "reuse.across_runs=off" in one.value.remedy
    assert stage(lab, "backbone", "reuse.across_runs=off").action == "run"


def test_what_vanished_and_was_never_taken_is_no_matter(lab: Lab) -> None:
    lab.commit(lab.config("run=first"), "backbone")
    shutil.rmtree(lab.root / "runs" / "first")
    assert stage(lab, "backbone", TAKE).action == "run"


@pytest.mark.parametrize(
    "change",
    [
        {"place": "runs/first/../../elsewhere"},
        {"place": "/tmp/backbone"},
        {"place": "runs/second/backbone"},
        {"place": "runs/first/film"},
        {"place": "runs/first/backbone/a/b"},
        {"place": 3},
        {"run": "other"},
        {"schema": "stageline-index/9"},
        {"version": "\x1b[31m"},
    ],
)
def test_what_an_entry_says_is_checked_before_anything_is_opened(lab: Lab, change: dict[str, object]) -> None:
    ref = lab.commit(lab.config("run=first"), "backbone")
    (path,) = entries(lab)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    found = finished_elsewhere(open_store(lab.root), ref.metadata.stage_fingerprint, "backbone", "second")
    if "version" in change:
        assert [(entry.run, entry.version) for entry in found] == [("first", "")]
    else:
        assert found == []


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 5000, "x" * 20_000])
def test_what_is_no_entry_is_nobodys(lab: Lab, text: str) -> None:
    lab.commit(lab.config("run=first"), "backbone")
    (path,) = entries(lab)
    path.write_text(text)
    assert stage(lab, "backbone", TAKE).action == "run"


def test_the_wish_is_part_of_no_fingerprint(lab: Lab) -> None:
    plain, wish = lab.config(), lab.config(TAKE)
    assert fingerprint(identity(plain)) == fingerprint(identity(wish))
    assert stage_settings(plain) == stage_settings(wish)
