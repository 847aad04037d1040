"""What stays and what goes: three numbers, and what they may never touch."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stageline.checkpoint.header import build_header
from stageline.checkpoint.layout import CheckpointRef, StageDir, open_checkpoint, step_name
from stageline.checkpoint.lease import StageLease
from stageline.checkpoint.metadata import (
    METADATA_NAME,
    BestRecord,
    CheckpointMetadata,
    FileRecord,
    ParentRecord,
    digest_of,
)
from stageline.checkpoint.retention import decide, prune, sweep, without_repeated
from stageline.config import RetentionConfig
from stageline.errors import BusyError, CheckpointError
from stageline.store import Store, open_store
from tests.checkpoint.samples import measured, provenance, save, writing

EMPTY = build_header({}, {})[0]


def put(
    directory: StageDir,
    step: int,
    sequence: int,
    *,
    value: float | None = None,
    fingerprint: str = "f",
    parents: tuple[CheckpointRef, ...] = (),
    validated: bool = True,
) -> CheckpointRef:
    """A committed checkpoint without tensors, as a writer would leave it."""
    store = directory.step_store(step_name(step, sequence + 1))
    store.put("model.safetensors", EMPTY)
    links = {
        f"p{i}": ParentRecord(
            uri=p.uri, digest=p.digest, content=p.content, stage="backbone", step=p.metadata.step, weights="raw"
        )
        for i, p in enumerate(parents)
    }
    metadata = CheckpointMetadata(
        **dict(provenance(stage_fingerprint=fingerprint, parents=links)),
        step=step,
        steps=100,
        final=False,
        files={"model.safetensors": FileRecord(bytes=len(EMPTY), sha256=digest_of(EMPTY))},
        tensors={"model": {}},
        metrics={"dice": value} if validated else {},
        best=BestRecord(metric="dice", direction="max", value=1.0, step=0),
        sequence=sequence,
        created="2026-01-01T00:00:00+00:00",
    )
    store.put(METADATA_NAME, metadata.to_bytes())
    return open_checkpoint(store)


def names(refs: list[CheckpointRef], keep: RetentionConfig, protected: dict[str, str] | None = None) -> list[int]:
    """Steps that stay."""
    kept = [d.name for d in decide(refs, keep, protected or {}) if d.action == "keep"]
    return [ref.metadata.step for ref in refs if ref.name in kept]


@pytest.fixture
def memory() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


def test_three_numbers(memory: Store) -> None:
    directory = StageDir(memory, "a", "film")
    values = [0.1, 0.9, 0.2, 0.8, None, 0.3]
    refs = [put(directory, 10 * (i + 1), i, value=value) for i, value in enumerate(values)]
    assert names(refs, RetentionConfig(last=1, best=0)) == [60]
    assert names(refs, RetentionConfig(last=3, best=0)) == [40, 50, 60]
    assert names(refs, RetentionConfig(last=1, best=2)) == [20, 40, 60]
    assert names(refs, RetentionConfig(last=1, best=99)) == [10, 20, 30, 40, 60]
    assert names(refs, RetentionConfig(last=1, best=0, every_steps=20)) == [20, 40, 60]
    assert names(refs, RetentionConfig(last=1, best=0), {refs[2].digest: "parent"}) == [30, 60]
    assert decide([], RetentionConfig(), {}) == []


def test_last_means_saved_last_and_not_the_highest_step(memory: Store) -> None:
    directory = StageDir(memory, "a", "film")
    refs = [put(directory, step, i, fingerprint=f) for i, (step, f) in enumerate([(900, "old"), (10, "f"), (20, "f")])]
    gone = RetentionConfig(last=2, best=0, unfinished=0)
    assert names(refs, gone) == [10, 20]
    assert names(refs, gone.model_copy(update={"best": 9})) == [10, 20], "other settings do not compete"


def test_a_writer_keeps_what_the_numbers_say(directory: StageDir) -> None:
    with writing(directory, keep=RetentionConfig(last=2, best=1)) as writer:
        for step, value in ((10, 0.9), (20, 0.1), (30, 0.2), (40, 0.3)):
            writer.save(measured(step, value, 0.9, 10))
        deleted = [d.name for d in writer.decisions if d.action == "delete"]
    assert directory.step_dirs() == ["step-00000010", "step-00000030", "step-00000040"]
    assert deleted == ["step-00000020"]
    best = directory.pointer("best")
    assert best is not None
    assert best.metadata.step == 10


def test_a_dry_run_deletes_nothing_and_gives_reasons(directory: StageDir) -> None:
    save(directory, 10, 20, 30)
    directory.store.put("checkpoints/step-00000040/claim.json", b"{}")
    decisions = {d.name: (d.action, d.reason) for d in prune(directory, RetentionConfig(last=1), dry_run=True)}
    assert decisions == {
        "step-00000010": ("delete", "nothing asks for it"),
        "step-00000020": ("delete", "nothing asks for it"),
        "step-00000030": ("keep", "last.ckpt names it"),
        "step-00000040": ("delete", "never committed"),
    }
    assert len(directory.step_dirs()) == 4
    prune(directory, RetentionConfig(last=1), dry_run=False)
    assert [ref.name for ref in directory.committed()] == ["step-00000030"]
    assert not directory.store.exists("checkpoints/step-00000040/claim.json")


def test_pruning_a_running_stage_is_refused_and_its_save_is_kept(directory: StageDir) -> None:
    save(directory, 10, 20)
    with writing(directory) as writer:
        running = writer.claim(30)
        with pytest.raises(BusyError):
            prune(directory, RetentionConfig(last=1), dry_run=False)
        decisions = {d.name: d for d in prune(directory, RetentionConfig(last=1), dry_run=True)}
        assert decisions[running].action == "keep"
        assert "test may be writing it" in decisions[running].reason
        sweep(directory, RetentionConfig(last=1), writer.lease, running=(running,))
        assert running in directory.step_dirs()
        sweep(directory, RetentionConfig(last=1), writer.lease)
        assert running not in directory.step_dirs()


def test_a_parent_recorded_before_its_child_saved_anything_stays(directory: StageDir) -> None:
    first, _, _ = save(directory, 10, 20, 30)
    other = StageDir(directory.root, "b", "film", "variant")  # type: ignore[arg-type]
    other.record_parents({"default": first.reference})
    prune(directory, RetentionConfig(last=1), dry_run=False)
    assert directory.step_dirs() == ["step-00000010", "step-00000030"]


def test_where_links_cannot_be_read_nothing_goes_and_nobody_dies(directory: StageDir) -> None:
    other = StageDir(directory.root, "b", "film")  # type: ignore[arg-type]
    other.store.put("parents.json", b"{damaged")
    with writing(directory, keep=RetentionConfig(last=1)) as writer:
        for step in (10, 20, 30):
            writer.save(measured(step, 0.1, 0.2, 5))
        assert all("links can't be read" in d.reason for d in writer.decisions)
    assert len(directory.step_dirs()) == 3
    with pytest.raises(CheckpointError, match=r"parents\.json"):
        prune(directory, RetentionConfig(last=1), dry_run=True)


def test_a_damaged_checkpoint_elsewhere_does_not_stop_pruning_where_its_links_are_on_record(
    directory: StageDir,
) -> None:
    other = StageDir(directory.root, "b", "film")  # type: ignore[arg-type]
    (ref,) = save(other, 1)
    ref.store.put(METADATA_NAME, b"damaged")
    save(directory, 10, 20)
    prune(directory, RetentionConfig(last=1), dry_run=False)
    assert directory.step_dirs() == ["step-00000020"]
    other.store.delete("parents.json")
    save(directory, 30)
    with pytest.raises(CheckpointError, match="damaged metadata"):
        prune(directory, RetentionConfig(last=1), dry_run=True)


def test_a_checkpoint_is_unreadable_from_the_first_moment_of_its_deletion(
    directory: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(directory, 10, 20, 30)
    seen: list[bool] = []
    delete_tree = Store.delete_tree

    def look(self: Store, prefix: str) -> None:
        seen.append(self.exists(f"{prefix}/{METADATA_NAME}"))
        delete_tree(self, prefix)

    monkeypatch.setattr(Store, "delete_tree", look)
    prune(directory, RetentionConfig(last=1), dry_run=False)
    assert seen == [False, False]


def test_a_save_before_a_validation_does_not_count_once_it_was_repeated_after() -> None:
    directory = StageDir(f"memory://{uuid.uuid4().hex}", "a", "film")
    saves = [(2, False), (4, False), (4, True), (6, False)]
    refs = [
        put(directory, step, number, value=0.5, validated=validated) for number, (step, validated) in enumerate(saves)
    ]
    assert without_repeated(refs) == [refs[0], refs[2], refs[3]]
    kept = {decision.name for decision in decide(refs, RetentionConfig(last=3), {}) if decision.action == "keep"}
    assert kept == {refs[0].name, refs[2].name, refs[3].name}


@settings(max_examples=60, deadline=None)
@given(
    saves=st.lists(
        st.tuples(st.integers(0, 40), st.none() | st.floats(0, 1), st.sampled_from("fg"), st.booleans()),
        min_size=1,
        max_size=8,
    ),
    keep=st.builds(RetentionConfig, last=st.integers(1, 4), best=st.integers(0, 3), every_steps=st.integers(0, 9)),
    data=st.data(),
)
def test_nothing_that_is_referred_to_is_ever_deleted(
    saves: list[tuple[int, float | None, str, bool]], keep: RetentionConfig, data: st.DataObject
) -> None:
    root = open_store(f"memory://{uuid.uuid4().hex}")
    directory = StageDir(root, "a", "film")
    refs = [
        put(directory, step, i, value=value, fingerprint=f, validated=validated)
        for i, (step, value, f, validated) in enumerate(saves)
    ]
    pick = st.sampled_from(refs)
    pointed = {name: data.draw(st.none() | pick, label=name) for name in ("best", "last")}
    for name, ref in pointed.items():
        if ref is not None:
            directory.set_pointer(name, ref)  # type: ignore[arg-type]
    committed_child = data.draw(st.lists(pick, max_size=2), label="parents of a committed child")
    if committed_child:
        put(StageDir(root, "b", "film", "variant"), 1, 0, parents=tuple(committed_child))
    starting_child = data.draw(st.lists(pick, max_size=2), label="parents of a child that starts")
    StageDir(root, "a", "next").record_parents({f"p{i}": ref.reference for i, ref in enumerate(starting_child)})
    running = "step-00000099"
    directory.store.put(f"checkpoints/{running}/claim.json", b"{}")
    with StageLease.acquire(directory, "x", keep_renewed=False) as lease:
        sweep(directory, keep, lease, running=(running,))
        left = set(directory.step_dirs())
        # Sweeping again changes nothing: the decision is a function of what is there.
        sweep(directory, keep, lease, running=(running,))
    assert set(directory.step_dirs()) == left
    referred = [ref for ref in (*pointed.values(), *committed_child, *starting_child) if ref is not None]
    assert {ref.name for ref in referred} | {running, refs[-1].name} <= left
    for ref in referred:
        assert open_checkpoint(ref.store, ref.digest).metadata == ref.metadata
    same = [ref for ref in refs if ref.metadata.stage_fingerprint == refs[-1].metadata.stage_fingerprint]
    newest = without_repeated(same)[-keep.last :]
    assert {ref.name for ref in newest} <= left
