"""Work of other settings: what a run keeps of it, what frees it, and what is damaged or set aside."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stageline.checkpoint.identity import claim_run
from stageline.checkpoint.layout import CheckpointRef, StageDir, resolve
from stageline.checkpoint.lease import StageLease
from stageline.checkpoint.metadata import METADATA_NAME
from stageline.checkpoint.retention import prune_superseded, superseded, sweep
from stageline.checkpoint.steps import ASIDE_NAME, set_aside
from stageline.cli import main
from stageline.config import RetentionConfig, RunConfig
from stageline.errors import CheckpointError, DiskFullError
from stageline.store import Store, open_store
from tests.checkpoint.samples import measured, provenance, save, snapshot, writing

FEWEST = RetentionConfig(last=1, best=0)


def train(directory: StageDir, fingerprint: str, *steps: int, end: bool, best: int | None = None) -> None:
    """Saves of one fingerprint, the last of them final or not; the best at one of them."""
    with writing(directory, keep=FEWEST, prov=provenance(stage_fingerprint=fingerprint)) as writer:
        for step in steps:
            changes: dict[str, Any] = {"final": end and step == steps[-1]}
            if best is None:
                writer.save(snapshot(step, **changes))
            else:
                seen = best if step >= best else step
                writer.save(measured(step, 0.9 if step == best else 0.1, 0.9, seen, **changes))


def steps_of(directory: StageDir) -> list[tuple[str, int]]:
    return [(ref.metadata.stage_fingerprint, ref.metadata.step) for ref in directory.committed()]


@pytest.mark.parametrize("root", ["disk", "memory", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
def test_a_finished_training_keeps_what_it_hands_on_and_its_end(root: Store) -> None:
    """On S3 in the slow tests, for its many saves; surveys and deletions there are looked at below."""
    directory = StageDir(root, "a", "film")
    train(directory, "one", 10, 20, 30, end=True, best=20)
    train(directory, "two", 5, 15, end=False)
    train(directory, "three", 7, end=False)
    train(directory, "four", 8, 9, end=False)
    assert steps_of(directory) == [("one", 20), ("one", 30), ("three", 7), ("four", 9)]
    best, last = directory.handed_on("best", "one"), directory.handed_on("last", "one")
    assert best is not None
    assert last is not None
    assert (best.metadata.step, last.metadata.step) == (20, 30)
    assert directory.handed_on("best", "none") is None
    pointed = directory.pointer("last")
    assert pointed is not None
    assert pointed.metadata.stage_fingerprint == "four", "pointers name what was written last"


def test_superseded_work_is_listed_and_then_freed(directory: StageDir) -> None:
    train(directory, "one", 10, 20, end=True, best=10)
    train(directory, "two", 5, end=False)
    train(directory, "three", 7, end=False)
    rows = superseded(directory)
    assert [(row.fingerprint, row.finished, row.step, len(row.names)) for row in rows] == [
        ("one", True, 20, 2),
        ("two", False, 5, 1),
    ]
    held = sum(ref.metadata.files[name].bytes for ref in directory.committed()[:2] for name in ref.metadata.files)
    assert rows[0].bytes == held
    assert [row.fingerprint for row in superseded(directory, "one")] == ["two", "three"], "seen from other settings"
    before = steps_of(directory)
    assert {d.action for d in prune_superseded(directory, dry_run=True)} == {"delete"}
    assert steps_of(directory) == before
    kept = prune_superseded(directory, keep=["on"], dry_run=False)
    assert [d.action for d in kept] == ["keep", "keep", "delete"]
    assert steps_of(directory) == [("one", 10), ("one", 20), ("three", 7)]
    prune_superseded(directory, dry_run=False)
    assert steps_of(directory) == [("three", 7)]


def test_a_superseded_parent_is_never_freed(directory: StageDir) -> None:
    train(directory, "one", 10, end=True)
    (ref,) = directory.committed()
    assert directory.root is not None
    StageDir(directory.root, "b", "film").record_parents({"default": ref.reference})
    train(directory, "two", 5, end=False)
    (decision,) = prune_superseded(directory, dry_run=False)
    assert (decision.action, decision.name) == ("keep", ref.name)
    assert "a parent of" in decision.reason


def test_a_full_disk_names_the_command_that_frees_it(directory: StageDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with writing(directory) as writer:
        monkeypatch.setattr(Store, "free_bytes", lambda _self: 10)
        with pytest.raises(DiskFullError) as caught:
            writer.save(snapshot(1))
    assert f"stageline checkpoint prune --superseded {directory.uri}" in caught.value.remedy


@settings(max_examples=25)
@given(
    trainings=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=6),
    unfinished=st.integers(0, 2),
)
def test_nothing_finished_is_ever_deleted_by_a_run(trainings: list[tuple[str, bool]], unfinished: int) -> None:
    """Whatever is trained in whatever order: each fingerprint that was finished once can still be reused."""
    directory = StageDir(open_store(f"memory://{uuid.uuid4().hex}"), "a", "film")
    keep = RetentionConfig(last=1, best=0, unfinished=unfinished)
    finished: dict[str, str] = {}
    for position, (fingerprint, end) in enumerate(trainings):
        if fingerprint in finished:
            continue
        with writing(directory, keep=keep, prov=provenance(stage_fingerprint=fingerprint)) as writer:
            ref = writer.save(measured(position + 1, 0.5, 0.5, position + 1, final=end, ema=None))
        if end:
            finished[fingerprint] = ref.digest
        found = {name: directory.handed_on("best", name) for name in finished}
        assert {name: ref.digest for name, ref in found.items() if ref} == finished
    open_ones = {name for name, _ in steps_of(directory)} - set(finished)
    assert len(open_ones - {trainings[-1][0]}) <= max(unfinished, 0) + 1


@pytest.mark.parametrize("part", [METADATA_NAME, "model.safetensors", "training/state.json"])
def test_a_survey_tells_damaged_from_whole_and_readers_are_told_why(root: Store, part: str) -> None:
    directory = StageDir(root, "a", "film")
    first, second = save(directory, 1, 2)
    second.store.put(part, b"{")
    found = directory.survey()
    assert [ref.name for ref in found.refs] == [first.name]
    assert [damaged.name for damaged in found.damaged] == [second.name]
    with pytest.raises(CheckpointError, match="damaged") as caught:
        directory.committed()
    assert f"stageline checkpoint set-aside {second.uri}" in caught.value.remedy
    set_aside(second.store, found.damaged[0].reason, "a test")
    assert [ref.name for ref in directory.committed()] == [first.name]
    (aside,) = directory.survey().aside
    assert aside.name == second.name
    assert found.damaged[0].reason in aside.reason
    assert resolve(directory.uri, prefer="last").name == first.name
    with pytest.raises(CheckpointError, match="set aside"):
        resolve(second.uri)


def test_a_run_deletes_nothing_that_was_set_aside_and_pruning_does(root: Store) -> None:
    directory = StageDir(root, "a", "film")
    _, second = save(directory, 1, 2)
    set_aside(second.store, "damaged", "a test")
    with writing(directory, keep=FEWEST) as writer:
        again = writer.save(snapshot(2))
    assert again.name == "step-00000002-2"
    assert second.store.exists(ASIDE_NAME), "a run deletes nothing that was set aside"
    assert second.name in [d.name for d in prune_superseded(directory, dry_run=False)]
    assert not second.store.list()


def test_damage_stops_no_save_and_is_deleted_by_none(directory: StageDir) -> None:
    first, _ = save(directory, 1, 2)
    first.store.put(METADATA_NAME, b"{")
    with StageLease.acquire(directory, "x", keep_renewed=False) as lease:
        sweep(directory, FEWEST, lease)
    assert first.store.exists("model.safetensors")


def test_the_commands(directory: StageDir, capsys: pytest.CaptureFixture[str]) -> None:
    train(directory, "one", 10, end=True)
    train(directory, "two", 5, end=False)
    assert main(["checkpoint", "prune", directory.uri, "--superseded"]) == 0
    told = capsys.readouterr().out
    assert "finished training one" in told
    assert "nothing was deleted" in told
    damaged: CheckpointRef = directory.committed()[0]
    assert main(["checkpoint", "set-aside", damaged.uri]) == CheckpointError.exit_code
    damaged.store.put("model.safetensors", b"x")
    assert main(["checkpoint", "set-aside", damaged.uri]) == 0
    assert "model.safetensors: 1 bytes" in capsys.readouterr().out
    assert main(["checkpoint", "verify", damaged.uri]) == CheckpointError.exit_code
    assert main(["checkpoint", "prune", directory.uri, "--superseded", "--yes"]) == 0
    assert steps_of(directory) == [("two", 5)]


DAMAGES = ("whole", "no file", "short", "metadata", "aside")


@settings(max_examples=25)
@given(states=st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=6), finished=st.booleans())
def test_the_newest_intact_one_is_found_under_any_damage(states: list[str], finished: bool) -> None:
    directory = StageDir(open_store(f"memory://{uuid.uuid4().hex}"), "a", "film")
    with writing(directory, prov=provenance(facts={})) as writer:
        refs = [
            writer.save(snapshot(step + 1, tensors={}, ema=None, final=finished and step + 1 == len(states)))
            for step in range(len(states))
        ]
    for ref, state in zip(refs, states, strict=True):
        if state == "no file":
            ref.store.delete("training/state.json")
        elif state == "short":
            ref.store.put("model.safetensors", b"x")
        elif state == "metadata":
            ref.store.put(METADATA_NAME, ref.store.get(METADATA_NAME)[:-9])
        elif state == "aside":
            set_aside(ref.store, "a test", "a test")
    found, fingerprint = directory.survey(), refs[0].metadata.stage_fingerprint
    by_state = [
        [ref.name for ref, s in zip(refs, states, strict=True) if s in group]
        for group in (("whole",), ("no file", "short", "metadata"), ("aside",))
    ]
    assert [[item.name for item in part] for part in (found.refs, found.damaged, found.aside)] == by_state
    newest = found.to_continue(fingerprint)
    assert (newest.name if newest else None) == (by_state[0][-1] if by_state[0] else None)
    readable_end = finished and states[-1] in ("whole", "no file", "short")
    assert found.is_finished(fingerprint) == readable_end
    if readable_end and states[-1] != "whole":
        with pytest.raises(CheckpointError, match="would be handed on and is damaged"):
            directory.handed_on("last", fingerprint)
    elif readable_end:
        handed_on = directory.handed_on("last", fingerprint)
        assert handed_on is not None
        assert handed_on.digest == refs[-1].digest


def test_runs_show_tells_damaged_ones_and_variants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path)
    claim_run(root, RunConfig(family="film_flow", run="a"), stages={"film": "film"})
    wide, narrow = (StageDir(root, "a", "film", variant) for variant in ("wide", "narrow"))
    save(wide, 1, 2)[1].store.put("model.safetensors", b"x")
    save(narrow, 3)
    assert main(["runs", "show", "a", "--root", root, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(entry["stage"], entry["step"]) for entry in told["stages"]] == [("film/narrow", 3), ("film/wide", 1)]
    states = {(row["stage"], row["step"]): row["state"] for row in told["checkpoints"]}
    assert states["film/wide", 2].startswith("damaged: model.safetensors")
    assert states["film/narrow", 3] == "best, last"
