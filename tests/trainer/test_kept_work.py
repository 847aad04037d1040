"""Finished work outlives a change of settings, and a damaged newest checkpoint costs the steps since the one before."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from stageline.checkpoint.layout import StageDir, resolve
from stageline.checkpoint.lineage import lineage
from stageline.checkpoint.retention import set_aside_step, superseded
from stageline.checkpoint.steps import ASIDE_NAME
from stageline.errors import CheckpointError, InterruptedRunError
from stageline.telemetry import read_events

OTHER = {"trainer.learning_rate": 0.01}


@pytest.fixture
def family() -> Any:
    from toy_family import family

    return family


def stop_at(step: int) -> Any:
    """SIGTERM in the loss of a step: it is finished and committed, then the stage ends."""

    def change(task: Any) -> None:
        def on_loss(summed: Any, context: Any) -> Any:
            if context.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return summed

        task.on_loss = on_loss

    return change


def test_a_finished_stage_is_still_there_after_another_was_begun_and_interrupted(train, tmp_path, family):
    first = train()
    family.CHANGE[:] = [stop_at(2)]
    with pytest.raises(InterruptedRunError):
        train(**OTHER)
    family.CHANGE.clear()
    directory = StageDir(str(tmp_path), "r", "base")
    assert [(row.finished, row.step) for row in superseded(directory)] == [(True, 10)]
    assert superseded(directory)[0].bytes > 0
    again = train()
    assert (again.action, again.reference) == ("reuse", first.reference)
    other = train(**OTHER)
    assert (other.action, other.step) == ("continue", 10)
    assert train().reference == first.reference


def damage(ref: Any, how: str) -> None:
    path = Path(ref.uri)
    if how == "metadata":
        (path / "checkpoint_metadata.json").write_bytes(b"{")
    elif how == "size":
        (path / "ema.safetensors").write_bytes(b"short")
    else:
        blob = bytearray((path / "model.safetensors").read_bytes())
        blob[-1] ^= 1
        (path / "model.safetensors").write_bytes(bytes(blob))


@pytest.mark.parametrize("how", ["metadata", "size", "bit"])
def test_the_newest_intact_one_is_continued_and_the_damaged_one_named(train, tmp_path, family, capsys, how):
    settings = {"trainer.checkpoint_every_steps": 2, "trainer.max_steps": 6}
    whole = train(run="whole", **settings)
    family.CHANGE[:] = [stop_at(3)]
    with pytest.raises(InterruptedRunError):
        train(**settings)
    family.CHANGE.clear()
    directory = StageDir(str(tmp_path), "r", "base")
    before, damaged = directory.committed()[-2:]
    damage(damaged, how)
    capsys.readouterr()
    ended = train(**settings)
    assert (ended.action, ended.step) == ("continue", 6)
    assert f"set aside, damaged: {damaged.uri}" in capsys.readouterr().out
    assert damaged.store.exists(ASIDE_NAME)
    told = [e for e in read_events(directory.store) if e["event"] in ("set_aside", "resumed")]
    assert [(e["event"], e.get("step")) for e in told[-2:]] == [("set_aside", None), ("resumed", before.metadata.step)]
    assert resolve(str(ended.reference)).content == resolve(str(whole.reference)).content
    with pytest.raises(CheckpointError, match="was set aside"):
        resolve(damaged.uri)


def test_a_damaged_one_that_is_handed_on_blocks_until_it_is_set_aside(train, tmp_path):
    settings = {"trainer.checkpoint_every_steps": 4}
    first = train(**settings)
    handed_on = resolve(str(first.reference))
    damage(handed_on, "size")
    with pytest.raises(CheckpointError, match="would be handed on and is damaged") as caught:
        train(**settings)
    assert f"stageline checkpoint set-aside {handed_on.uri}" in caught.value.remedy
    assert not handed_on.store.exists(ASIDE_NAME)
    assert "ema.safetensors" in set_aside_step(handed_on.store, "a person")
    again = train(**settings)
    assert again.step == 10
    assert resolve(str(again.reference)).content == handed_on.content


def test_a_whole_one_is_not_set_aside(train):
    ref = resolve(str(train().reference))
    with pytest.raises(CheckpointError, match="is whole"):
        set_aside_step(ref.store, "a person")


def test_a_moved_root_continues_and_the_old_one_is_untouched(train, tmp_path, family):
    settings = {"trainer.checkpoint_every_steps": 2}
    old, new = tmp_path / "old root", tmp_path / "new@root"
    train("base", root=str(old), **settings)
    family.CHANGE[:] = [stop_at(3)]
    with pytest.raises(InterruptedRunError):
        train("tune", root=str(old), **settings)
    family.CHANGE.clear()
    before = {path: path.read_bytes() for path in sorted(old.rglob("*")) if path.is_file()}
    shutil.copytree(old, new)
    tune = train("tune", root=str(new), **settings)
    assert (tune.action, tune.step) == ("continue", 6)
    assert {path: path.read_bytes() for path in sorted(old.rglob("*")) if path.is_file()} == before
    entries = lineage(f"{new}/runs/r/tune")
    assert [(e["stage"], e["status"]) for e in entries] == [("tune", "present"), ("base", "present")]
    assert all(str(e["uri"]).startswith(f"{new}/runs/") for e in entries)
    parent = resolve(str(tune.reference)).metadata.parents["default"]
    assert parent.uri.startswith("runs/r/base/checkpoints/step-")
    assert [str(r.uri) for r in StageDir(str(new), "r", "tune").recorded_parents()] == [f"{new}/{parent.uri}"]
