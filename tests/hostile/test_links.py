"""Links, pipes and devices that others put below a root: nothing outside is read, written or removed, nothing hangs.

What a hard link is cannot be told from the file itself and is no way out of a root: it needs the right to write where
the file lies, on the same file system.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from guards import HANG_SECONDS

import stageline
from stageline.checkpoint.commit import CheckpointWriter
from stageline.checkpoint.index import INDEX, finished_elsewhere
from stageline.checkpoint.layout import CHECKPOINTS, CheckpointRef, StageDir, resolve
from stageline.checkpoint.lease import StageLease
from stageline.checkpoint.legacy import load_torch_file
from stageline.checkpoint.retention import prune, sweep
from stageline.checkpoint.sharded import load_sharded, save_sharded
from stageline.checkpoint.steps import Damaged, look
from stageline.checkpoint.tensors import read_tensors
from stageline.config import RetentionConfig
from stageline.config.variables import env_fault
from stageline.data.features import FeatureStore
from stageline.data.pictures import read_file
from stageline.data.pod_cache import StoredFiles
from stageline.data.prepared import read_prepared
from stageline.encoders.copies import lock_external, open_external
from stageline.encoders.external import External
from stageline.encoders.frozen import read_weights
from stageline.encoders.lock import EXTERNALS
from stageline.errors import StagelineError, StoreError
from stageline.families.film_flow.data.folder import read_prompts
from stageline.families.panorama_vlm.data.rows import read_rows
from stageline.jobs.cluster.render.pytorchjob import stamp
from stageline.jobs.environment import carried_environment
from stageline.store import Store, open_below, open_store
from stageline.store.below import FOLLOW_VARIABLE, Below, LinkError
from stageline.store.keys import NO_FILE
from stageline.store.locks import hold_lock
from stageline.telemetry import EventLog, clear_failures, read_failure
from stageline.trainer.recorder import open_tensorboard
from stageline.verbs.report import build_report
from stageline.verbs.report.listing import list_runs

from ..checkpoint.samples import save, snapshot, tensors, writing
from ..report.run_directory import HandMade

SECRET = b"eyJhbGciOiJSUzI1NiJ9.the-launchers-own-token"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder outside of the root with files that nobody here may touch, in folders named as ours are."""
    folder = tmp_path / "outside"
    for name in ("token", "a/token", "film/token", "checkpoints/step-00000001/token"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(SECRET)
    yield folder
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert left == ["a/token", "checkpoints/step-00000001/token", "film/token", "token"]
    assert all((folder / name).read_bytes() == SECRET for name in left)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def refused(action: Callable[[], object], *words: object) -> StoreError:
    """The refusal of a link; it names it and what it leads to."""
    with pytest.raises(LinkError, match="is a link to") as caught:
        action()
    assert all(str(word) in str(caught.value) for word in words), str(caught.value)
    return caught.value


VERBS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("x/token"),
    "stream": lambda store: list(store.stream("x/token")),
    "stat": lambda store: store.stat("x/token"),
    "put": lambda store: store.put("x/token", b"new"),
    "put-new": lambda store: store.put("x/new/file", b"new"),
    "create": lambda store: store.create("x/claim", b"new"),
    "replace": lambda store: store.replace("x/token", b"new", f"sha256-{hashlib.sha256(SECRET).hexdigest()}"),
    "copy-from": lambda store: store.copy("x/token", "mine"),
    "copy-to": lambda store: store.copy("own", "x/token"),
    "delete": lambda store: store.delete("x/token"),
    "delete-tree": lambda store: store.delete_tree("x"),
    "delete-tree-below": lambda store: store.delete_tree("x/a"),
    "list": lambda store: store.list("x"),
    "files": lambda store: store.files("x"),
    "folders": lambda store: store.folders("x"),
    "tidy": lambda store: store.child("x").tidy(),
    "room": lambda store: store.child("x").free_bytes(),
    "append": lambda store: store.local and store.local.append("x/token", b"more"),
    "open": lambda store: store.local and store.local.open("x/token"),
    "note": lambda store: store.child("x").local.note("checked", "text"),  # type: ignore[union-attr]
    "link": lambda store: store.local and store.local.link(Path(__file__), "x/file"),
    "checked": lambda store: store.local and store.local.checked("x/wandb"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("dangling", [False, True], ids=["", "dangling"])
def test_no_verb_goes_through_a_linked_folder(root: Path, outside: Path, verb: str, dangling: bool) -> None:
    store = open_store(root)
    store.put("own", b"ours")
    (root / "x").symlink_to(outside / ("nowhere" if dangling else "."))
    refused(lambda: VERBS[verb](store), root / "x", "outside", "expected a folder", "remove it")
    assert sorted(path.name for path in root.iterdir()) == ["own", "x"]
    assert not (outside / "nowhere").exists()


@pytest.mark.parametrize("target", ["token", "nowhere", "/dev/zero", "."])
def test_no_file_is_read_through_a_link(root: Path, outside: Path, target: str) -> None:
    store = open_store(root)
    (root / "log.txt").symlink_to(outside / target)
    for action in (
        lambda: store.get("log.txt"),
        lambda: list(store.stream("log.txt")),
        lambda: store.exists("log.txt"),
        lambda: store.copy("log.txt", "mine"),
        lambda: store.replace("log.txt", b"new", "token"),
        lambda: EventLog(store, "").close() or store.local.append("log.txt", b"more"),  # type: ignore[union-attr,func-returns-value]
    ):
        refused(action, root / "log.txt", target, "expected a regular file")
    assert [(info.key, info.size) for info in store.list()] == [("log.txt", NO_FILE)], "named, and opened by nobody"


def test_what_is_written_takes_a_links_place_and_what_is_deleted_is_the_link(root: Path, outside: Path) -> None:
    store = open_store(root)
    store.put("own", b"ours")
    for write in (lambda: store.put("f", b"ours"), lambda: store.copy("own", "f")):
        (root / "f").symlink_to(outside / "token")
        assert not store.create("f", b"theirs"), "taken"
        write()
        assert not (root / "f").is_symlink()
        assert store.get("f") == b"ours"
        (root / "f").unlink()
    (root / "f").symlink_to(outside / "token")
    store.delete("f")
    (root / "t/deep").mkdir(parents=True)
    (root / "t/deep/link").symlink_to(outside)
    (root / "t/file").symlink_to(outside / "token")
    store.delete_tree("t")
    assert [path.name for path in root.iterdir()] == ["own"]


def test_a_hard_link_is_a_file(root: Path, outside: Path) -> None:
    (root / "file").hardlink_to(outside / "token")
    store = open_store(root)
    assert store.get("file") == SECRET
    store.put("file", b"ours")  # takes its place, and writes into nothing


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)  # a socket's path may be short only
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        pytest.skip("devices are made by root alone")


@pytest.mark.parametrize(("make", "word"), [(pipe, "a pipe"), (bound, "a socket"), (device, "a device")])
def test_what_is_no_file_is_refused_and_hangs_nobody(root: Path, make: Callable[[Path], None], word: str) -> None:
    store = open_store(root)
    make(root / "events.jsonl")
    found: list[str] = []

    def use() -> None:
        for action in (
            lambda: store.get("events.jsonl"),
            lambda: list(store.stream("events.jsonl")),
            lambda: store.stat("events.jsonl"),
            lambda: store.copy("events.jsonl", "mine"),
            lambda: store.local.append("events.jsonl", b"x"),  # type: ignore[union-attr]
            lambda: EventLog(store),
        ):
            with pytest.raises(StoreError, match=f"events.jsonl' is {word}, expected a regular file"):
                action()
            found.append("refused")

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(HANG_SECONDS)
    assert len(found) == 6
    assert [info.size for info in store.files()] == [NO_FILE]
    store.put("events.jsonl", b"")
    assert store.get("events.jsonl") == b""


def test_a_lock_that_is_a_link_or_a_pipe_locks_nothing_else(root: Path, outside: Path) -> None:
    store = open_store(root)
    store.put("lease", b"one")
    lock = root / ".stageline-lock"
    token = store.get_with_token("lease")[1]
    lock.symlink_to(outside / "new")
    refused(lambda: store.replace("lease", b"two", token), lock)
    lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(StoreError, match="is a pipe"):
        store.replace("lease", b"two", token)
    lock.unlink()
    assert store.replace("lease", b"two", token)
    (root / "node.lock").symlink_to(outside / "new")
    with pytest.raises(StoreError, match="is a link, expected a regular file"), hold_lock(root / "node.lock"):
        pass


def test_a_link_put_there_between_look_and_use_is_not_followed(
    root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the worst moments: a folder becomes a link once it was entered, a file once its folder was."""
    store = open_store(root)
    store.put("a/token", b"ours")
    enter = Below.enter

    def exchanged(self: Below, handle: int, name: str, key: str, flags: int, *, make: bool = False) -> int:
        found = enter(self, handle, name, key, flags, make=make)
        if key == "a" and not (root / "a").is_symlink():
            shutil.move(root / "a", root / "before")
            (root / "a").symlink_to(outside / "a")
        return found

    for action in (
        lambda: store.get("a/token"),
        lambda: store.put("a/token", b"ours"),
        lambda: store.create("a/claim", b"ours"),
        lambda: store.copy("a/token", "a/other"),
        lambda: store.list("a"),
        lambda: store.delete("a/token"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(Below, "enter", exchanged)
            try:
                result = action()
            except LinkError:  # a verb that walks twice meets the link
                result = None
            assert result in (None, True, b"ours") or all(info.size != len(SECRET) for info in result)  # type: ignore[attr-defined]
        (root / "a").unlink()
        shutil.move(root / "before", root / "a")


def test_neither_a_threads_links_nor_its_folders_lead_a_deletion_outside(root: Path, outside: Path) -> None:
    """A neighbour exchanges a folder and a link all the time while the tree is removed and written again."""
    store, ended, spare = open_store(root), threading.Event(), root.parent / "spare"
    spare.symlink_to(outside)

    def exchange() -> None:
        while not ended.is_set():
            for one, other in ((root / "t/a", root / "t/b"), (spare, root / "t/a"), (root / "t/a", spare)):
                try:
                    os.rename(one, other)  # noqa: PTH104
                except OSError:
                    continue

    thread = threading.Thread(target=exchange, daemon=True)
    thread.start()
    try:
        for _ in range(25):
            for action in (lambda: store.put("t/a/token", b"x"), lambda: store.delete_tree("t")):
                try:
                    action()
                except StagelineError:
                    continue
    finally:
        ended.set()
        thread.join(HANG_SECONDS)


def test_the_report_shows_nothing_of_what_links_lead_to_and_names_them(
    root: Path, outside: Path, tmp_path: Path
) -> None:
    """The launcher's token, by way of every file that a report reads."""
    run = open_store(root).child("runs", "trees")
    HandMade(run).claim()
    save(StageDir(open_store(root), "trees", "film"), 1)
    planted = ["pipeline/log.txt", "plan.json", "backbone/events.jsonl", "film/failure.json", "film/config.yaml"]
    planted += ["evaluations/abc/metrics.json", "quarantine/train.csv", "report.html"]
    for name in planted:
        path = root / "runs/trees" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(outside / "token")
    for name in ("comparisons", "jobs", "evaluations/def", "head"):
        (root / "runs/trees" / name).symlink_to(outside)
    uri = build_report(run.uri)
    page = Path(uri).read_text()
    assert SECRET.decode() not in page
    assert not Path(uri).is_symlink(), "it was a link, and took its place"
    for name in ("plan.json", "film/failure.json", "film/config.yaml", "quarantine/train.csv", "comparisons", "head"):
        assert f"{name}&#x27; is a link to" in page or f"{name}' is a link to" in page, name


def test_a_run_that_is_a_link_is_named_in_the_list_and_written_into_by_nobody(root: Path, outside: Path) -> None:
    store = open_store(root)
    HandMade(store.child("runs", "trees")).claim()
    (root / "runs/planted").symlink_to(outside)
    runs = {run.run: run for run in list_runs(store)}
    assert runs.keys() == {"trees", "planted"}
    assert "runs/planted' is a link to" in runs["planted"].sentence
    refused(lambda: build_report(f"{root}/runs/planted"), FOLLOW_VARIABLE, "=runs/planted")
    refused(lambda: StageDir(store, "planted", "film").store.put("config.yaml", b"x"))
    refused(lambda: prune(StageDir.at(open_below(f"{root}/runs/planted/film")), RetentionConfig(), dry_run=False))
    refused(lambda: resolve(f"{root}/runs/planted/film/checkpoints/step-00000001"))


@pytest.mark.parametrize(
    "planted",
    ["runs/x", "runs/b/x", "runs/b/film/parents.json", "runs/a\nb", "runs/b/\udcff"],
    ids=["run", "stage", "file", "line-end", "no-text"],
)
def test_what_lies_in_another_run_ends_no_training(root: Path, outside: Path, planted: str) -> None:
    """Retention asks every run for its parents: it deletes nothing then, and the stage goes on."""
    store = open_store(root)
    save(StageDir(store, "b", "film"), 1)
    directory = StageDir(store, "a", "film")
    save(directory, 1, 2)
    if planted.isprintable():
        (root / planted).unlink(missing_ok=True)
        (root / planted).symlink_to(outside)
    else:
        (root / planted / CHECKPOINTS / "x").mkdir(parents=True)
        (root / planted / CHECKPOINTS / "x" / "file").touch()
    with StageLease.acquire(directory, "test", keep_renewed=False) as lease:
        decisions = sweep(directory, RetentionConfig(last=1, best=0), lease)
    assert {decision.action for decision in decisions} == {"keep"}
    assert "links can't be read" in decisions[0].reason
    assert len(directory.committed()) == 2


def test_an_entry_of_the_index_that_is_a_link_is_nobodys(root: Path, outside: Path) -> None:
    store = open_store(root)
    folder = root / INDEX / ("0" * 64)
    folder.mkdir(parents=True)
    (folder / "b.json").symlink_to(outside / "token")
    assert finished_elsewhere(store, "0" * 64, "film", "a") == []


def test_links_in_a_checkpoint_are_damage_and_are_not_read(root: Path, outside: Path) -> None:
    directory = StageDir(open_store(root), "a", "film")
    one, two = save(directory, 1, 2)
    weights = root / "runs/a/film/checkpoints" / one.name / "model.safetensors"
    kept = outside.parent / "kept.safetensors"
    shutil.move(weights, kept)
    weights.symlink_to(kept)  # with the very bytes that are expected
    refused(lambda: read_tensors(one), weights)
    found = look(one.store)
    assert isinstance(found, Damaged)
    assert "model.safetensors: a link, a pipe or the like" in found.reason
    step = root / "runs/a/film/checkpoints" / two.name
    shutil.move(step, outside.parent / "moved")
    step.symlink_to(outside.parent / "moved")
    refused(lambda: resolve(two.uri), step)
    pointer = root / "runs/a/film/last.ckpt"
    pointer.unlink()
    pointer.symlink_to(outside / "token")
    refused(lambda: resolve(str(pointer)), pointer)
    shutil.rmtree(outside.parent / "moved")


def test_a_step_directory_that_is_a_link_is_not_pruned_by_its_target(root: Path, outside: Path) -> None:
    directory = StageDir(open_store(root), "a", "film")
    save(directory, *range(1, 5))
    checkpoints = root / "runs/a/film/checkpoints"
    shutil.rmtree(checkpoints)
    checkpoints.symlink_to(outside / "checkpoints")
    refused(lambda: prune(directory, RetentionConfig(last=1), dry_run=False), checkpoints)


def test_shards_are_written_and_read_past_links(root: Path, outside: Path) -> None:
    """The distributed writer takes a path, and would write through a link of the name that it is about to use."""
    directory = StageDir(open_store(root), "a", "film")
    state = {name: tensor.contiguous() for name, tensor in tensors(1).items()}

    def saved(step: int) -> CheckpointRef:
        with writing(directory) as writer:
            return save_sharded(
                directory,
                writer,
                snapshot(step, tensors={}, ema=None, training_tensors={}),
                {"model": state},
            )

    ref = saved(1)
    shard = next(name for name in ref.metadata.files if name.startswith("model/"))
    place = root / "runs/a/film/checkpoints/step-00000001"
    own = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    load_sharded(ref, "model", own)
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())
    shutil.move(place / shard, root.parent / "kept")
    (place / shard).symlink_to(root.parent / "kept")
    refused(lambda: load_sharded(ref, "model", own), place / shard)

    claim = CheckpointWriter.claim

    def planted(self: CheckpointWriter, step: int) -> str:
        name = claim(self, step)
        folder = root / "runs/a/film/checkpoints" / name / "model"
        folder.mkdir(parents=True)
        (folder / Path(shard).name).symlink_to(outside / "token")
        return name

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CheckpointWriter, "claim", planted)
        again = saved(2)
    written = root / "runs/a/film/checkpoints" / again.name / shard
    assert not written.is_symlink()
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_prepared_data_features_and_externals_are_read_past_links(
    root: Path, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"of ours" * 100
    name = f"{hashlib.sha256(data).hexdigest()}.shard"
    store = open_store(root)
    files = store.child("cache", "prepared", "data")
    files.put(name, data)
    path = root / "cache/prepared/data" / name
    StoredFiles(files, tmp_path).open(name, len(data)).close()  # and it is noted as checked
    shutil.move(path, tmp_path / "kept")
    path.symlink_to(tmp_path / "kept")
    refused(lambda: StoredFiles(files, tmp_path).open(name, len(data)), path)
    path.unlink()
    shutil.move(tmp_path / "kept", path)
    marker = path.with_name(f".stageline-checked-{name}")
    marker.unlink()
    marker.symlink_to(outside / "marker")
    refused(lambda: StoredFiles(files, tmp_path).open(name, len(data)), marker)
    assert not (outside / "marker").exists()

    features = FeatureStore.open(store, {"encoder": "e"})
    key = root / "cache/features" / features.key
    key.parent.mkdir(parents=True)
    key.symlink_to(outside)
    with pytest.raises(LinkError), features.writer() as writer:
        writer.add("0" * 64, np.zeros(3, np.float32))

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = tmp_path / "hub"
    source.mkdir()
    (source / "blob").write_text("of ours")
    (source / "words.txt").symlink_to("blob")  # of a hub cache: followed
    external = External("encoder", str(source), files=("*.txt",))
    lock_external(store, external, lambda *_: None)
    copy = open_external(store, external)
    assert (copy / "words.txt").read_text() == "of ours"
    assert copy.parent == root / EXTERNALS
    (copy / "words.txt").unlink()
    (copy / "words.txt").symlink_to(source / "blob")
    shutil.rmtree(source)
    with pytest.raises(StagelineError, match="the root has no whole copy"):
        open_external(store, external)

    (root / "cache/prepared/sets").symlink_to(outside)
    refused(lambda: read_prepared(f"{root}/cache/prepared/sets/a@sha256:{'0' * 64}"), "cache/prepared/sets")


def test_records_and_tensorboard_stay_in_their_stage(root: Path, outside: Path) -> None:
    stage = open_store(root).child("runs", "a", "film")
    stage.put("config.yaml", b"")
    (root / "runs/a/film/events.jsonl").symlink_to(outside / "token")
    refused(lambda: EventLog(stage), "events.jsonl")
    (root / "runs/a/film/failure.json").symlink_to(outside / "token")
    refused(lambda: read_failure(stage), "failure.json")
    clear_failures(stage)
    assert not (root / "runs/a/film/failure.json").is_symlink()
    assert stage.local is not None
    (root / "runs/a/film/tensorboard").symlink_to(outside / "a")
    with pytest.raises(LinkError), stage.local.reached("tensorboard"):
        pass
    (root / "runs/a/film/tensorboard").unlink()
    with stage.local.reached("tensorboard") as folder:
        writer = open_tensorboard(folder, 0)
        shutil.move(root / "runs/a/film/tensorboard", root / "moved")
        (root / "runs/a/film/tensorboard").symlink_to(outside / "a")
        writer.add_scalar("loss", 1.0, 1)
        writer.close()
    assert [path.name.split(".")[1] for path in (root / "moved").iterdir()] == ["out"]


def test_scratch_below_a_root_is_the_folder_that_was_made(root: Path, outside: Path) -> None:
    """Invented: the scratch folder of a preparer is exchanged for a link while it writes there."""
    local = open_store(root).child("cache", "prepared").local
    assert local is not None
    with local.scratch("preparing") as folder:
        (made,) = (root / "cache/prepared").iterdir()
        shutil.move(made, root / "moved")
        made.symlink_to(outside)
        (folder / "shard").write_bytes(b"ours")
        (folder / "other").symlink_to(outside / "token")
        with pytest.raises(StoreError, match="is a link"):
            open_store(root).put("copy", folder / "other")
        local.adopt(folder / "shard", "data/shard")
    assert (root / "cache/prepared/data/shard").read_bytes() == b"ours"


def test_a_root_may_be_a_link_itself(root: Path, tmp_path: Path) -> None:
    link = tmp_path / "runs"  # a name that a folder below a root has, too
    link.symlink_to(root)
    store = open_store(link)
    store.put("runs/a/film/x", b"1")
    assert open_below(f"{link}/runs/a/film").get("x") == b"1"
    store.put("runs/a/run.json", b"{}")
    assert open_below(f"{link}/runs/a").get("run.json") == b"{}"
    assert store.folders("runs/a") == ["film"]
    store.delete_tree("runs/a")
    assert store.list() == []


@pytest.mark.parametrize("name", ["runs", "cache", "runs/big"])
def test_a_linked_folder_is_followed_where_the_readers_environment_says_so(
    root: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, store, key = tmp_path / "disk", open_store(root), f"{name}/film" if name != "runs" else "runs/big/film"
    disk.mkdir()
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).symlink_to(disk)
    words = (f"{FOLLOW_VARIABLE}={name}", "if you made this one", "else remove it")
    for action in (
        lambda: store.put(f"{key}/x", b"1"),
        lambda: store.list(name),
        lambda: open_below(f"{root}/{key}").exists("x"),
    ):
        refused(action, *words)
    monkeypatch.setenv(FOLLOW_VARIABLE, f"runs/other, {name}")
    store.put(f"{key}/x", b"1")
    store.put("own", b"2")
    store.copy("own", f"{key}/y")
    assert open_below(f"{root}/{key}").get("y") == b"2"
    assert [info.key for info in store.list()] == sorted([f"{key}/x", f"{key}/y", "own"])
    assert store.folders(key.rpartition("/")[0]) == ["film"]
    (disk / "loop").symlink_to(root)
    assert ("own", 1) not in [(info.key.rpartition("/")[2], info.size) for info in store.list(name)]
    store.delete_tree(key)
    assert [path.name for path in disk.rglob("x")] == []


@pytest.mark.parametrize("names", ["runs/a/film", "/", "..", "runs/..", "log.txt", "runs cache", "*"])
def test_no_other_link_can_be_allowed(root: Path, names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLLOW_VARIABLE, names)
    with pytest.raises(StoreError, match=f"{FOLLOW_VARIABLE} names"):
        open_store(root)


def test_what_is_followed_comes_from_the_environment_and_travels_to_pods_never_from_a_config() -> None:
    assert "is set by stageline" in env_fault(FOLLOW_VARIABLE, "runs")
    assert carried_environment({FOLLOW_VARIABLE: "runs", "HOME": "/"}) == {FOLLOW_VARIABLE: "runs"}
    assert carried_environment({FOLLOW_VARIABLE: ""}) == {}
    container = {"env": [{"name": "A", "value": "1"}]}
    job = {"spec": {"pytorchReplicaSpecs": {"Worker": {"template": {"spec": {"containers": [container]}}}}}}
    job |= {"metadata": {"annotations": {}}}
    sent = stamp(job, owner=None, deadline=None, carried={FOLLOW_VARIABLE: "runs"})
    worker = json.loads(json.dumps(sent))["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert worker["template"]["spec"]["containers"][0]["env"][1:] == [{"name": FOLLOW_VARIABLE, "value": "runs"}]


PATHS = {"checkpoint/layout.py", "store/door.py"}
"""What people type is compared with where it lies; opening is the store's."""


def test_nothing_else_asks_where_something_lies() -> None:
    """A path of what lies below a root is for messages and names alone."""
    package = Path(stageline.__file__).parent
    asking = {
        path.relative_to(package).as_posix() for path in package.rglob("*.py") if ".local_path(" in path.read_text()
    }
    assert asking <= PATHS


FILES_OF_A_USER: dict[str, Callable[[Path], object]] = {
    "weights.safetensors": read_weights,
    "weights.pt": read_weights,
    "other.pt": load_torch_file,
    "prompts.json": lambda path: read_prompts(path, {"a"}),
    "rows.csv": lambda path: read_rows([path], lambda *_: None),
    "picture.png": read_file,
}


@pytest.mark.parametrize("name", FILES_OF_A_USER)
def test_a_pipe_among_the_files_of_a_user_is_refused_without_waiting(tmp_path: Path, name: str) -> None:
    """An archive can hold one. Links among them are followed, as they lead to what the user meant."""
    os.mkfifo(tmp_path / name)
    (tmp_path / f"link-{name}").symlink_to(tmp_path / name)
    told: list[StagelineError] = []

    def read() -> None:
        for path in (tmp_path / name, tmp_path / f"link-{name}"):
            try:
                FILES_OF_A_USER[name](path)
            except StagelineError as error:
                told.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(HANG_SECONDS)
    assert [name in str(error) for error in told] == [True, True]
