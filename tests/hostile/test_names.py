"""Names that an object says: checked before a file of theirs is opened, and trusted with the digest alone."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stageline.checkpoint.derived import show_best
from stageline.checkpoint.layout import StageDir
from stageline.checkpoint.metadata import METADATA_NAME, parse_metadata
from stageline.checkpoint.steps import absolute_uri, open_checkpoint
from stageline.cli import main
from stageline.config import seal
from stageline.data.pod_cache import StoredFiles
from stageline.data.splits import make_manifest, parse_manifest
from stageline.encoders.copies import lock_external, open_external
from stageline.encoders.external import External
from stageline.encoders.sources import find_source
from stageline.errors import CheckpointError, DataError, MissingPartError, StoreError
from stageline.families.sparse_structure.data.scene_files import mesh_sources
from stageline.pipeline.receipts import read_receipt, receipt_key
from stageline.store import Store, open_store
from stageline.store.keys import path_below
from stageline.verbs.report import build_report

from ..checkpoint.samples import save
from ..report.run_directory import HandMade

DATA = b"of ours" * 100
OWN = f"{hashlib.sha256(DATA).hexdigest()}.shard"
OUTSIDE = ["../../victim", "{}/victim", "a/../../../victim", "./victim", "a//victim", "..\\victim", "victim\0", ""]


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file outside of what the readers are given; it must be what it was."""
    path = tmp_path / "victim"
    path.write_bytes(b"precious")
    yield path
    assert path.read_bytes() == b"precious"
    assert [entry.name for entry in tmp_path.iterdir() if "partial" in entry.name or "victim." in entry.name] == []


@pytest.fixture
def remote(tmp_path: Path) -> Store:
    """A store whose files are fetched."""
    store = open_store(f"memory://{tmp_path.name}-{os.getpid()}/files")
    store.put(OWN, DATA)
    return store


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_outside_is_no_path(victim: Path, name: str) -> None:
    with pytest.raises(StoreError, match="is no key of a store"):
        path_below(victim.parent / "one" / "two", name.format(victim.parent))


@pytest.mark.parametrize("name", [*OUTSIDE, OWN.upper(), f"x{OWN}", f"{OWN}/../../../victim"])
def test_a_file_of_a_manifest_is_named_by_its_hash(tmp_path: Path, victim: Path, remote: Store, name: str) -> None:
    cache = tmp_path / "one" / "two"
    cache.mkdir(parents=True)
    files = StoredFiles(remote, cache)
    here = StoredFiles(open_store(cache), cache)
    name = name.format(tmp_path)
    for read in (
        lambda: files.open(name, 8),
        lambda: files.open_part(name, 8, OWN, 0),
        lambda: here.open(name, 8),
    ):
        with pytest.raises(DataError, match="no name of a file here"):
            read()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_of_a_split_names_its_own_files(victim: Path, name: str) -> None:
    name = name.format(victim.parent)
    about = {"split": "train", "family": "toy", "facts": {}, "folder": "data", "num_rows": 0, "numbers": {}}
    files = {name: 1, OWN: 1}
    data = make_manifest({**about, "files": files, "shards": [name], "rows_file": OWN, "lines_file": OWN})
    with pytest.raises(DataError, match="`files` is no mapping"):
        parse_manifest(data, "here")


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_download_opens_nothing_for_a_name_that_is_none(victim: Path, remote: Store, name: str) -> None:
    with pytest.raises(StoreError):
        remote.download(name.format(victim.parent), victim)


def test_a_download_that_fails_leaves_what_was_there(victim: Path, remote: Store) -> None:
    with pytest.raises(StoreError):
        remote.download("gone", victim)
    assert [entry.name for entry in victim.parent.iterdir()] == ["victim"]


def test_a_download_takes_the_place_of_a_file_whole(tmp_path: Path, remote: Store) -> None:
    path, kept = tmp_path / "file", tmp_path / "kept"
    path.write_bytes(b"before")
    kept.hardlink_to(path)
    remote.download(OWN, path)
    assert (path.read_bytes(), kept.read_bytes()) == (DATA, b"before")


def read_own(files: StoredFiles) -> bytes:
    with files.open(OWN, len(DATA)) as file:
        return file.read()


def test_what_lies_in_the_cache_is_what_its_name_says(tmp_path: Path, remote: Store) -> None:
    """Whoever got there first, with the right size: planted before it was fetched, or changed afterwards."""
    (tmp_path / OWN).write_bytes(b"x" * len(DATA))
    assert read_own(StoredFiles(remote, tmp_path)) == DATA
    files, path = StoredFiles(remote, tmp_path), tmp_path / OWN
    assert read_own(files) == DATA
    path.write_bytes(b"y" * len(DATA))
    os.utime(path, ns=(1, 1))
    assert read_own(files) == DATA
    path.write_bytes(DATA)
    os.utime(path, ns=(2, 2))
    remote.delete(OWN)  # what is sound is not fetched again
    assert read_own(StoredFiles(remote, tmp_path)) == DATA


def test_a_fetched_external_is_what_was_locked(tmp_path: Path, remote: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = tmp_path / "source"
    source.mkdir()
    (source / "words.txt").write_text("of ours")
    external = External("encoder", str(source), files=("*.txt",))
    lock_external(remote, external, lambda *_: None)
    file = open_external(remote, external) / "words.txt"
    assert open_external(remote, external) == file.parent != source
    file.write_text("changed")
    with pytest.raises(DataError, match="its hash differs"):
        open_external(remote, external)


def changed(directory: StageDir, change: Callable[[dict[str, Any]], object]) -> Store:
    """The store of a committed checkpoint whose metadata were changed and sealed anew."""
    (ref,) = save(directory, 1)
    plain = json.loads(ref.store.get(METADATA_NAME))
    change(plain)
    ref.store.put(METADATA_NAME, json.dumps(seal(plain)).encode())
    return ref.store


@pytest.mark.parametrize("name", OUTSIDE)
def test_metadata_name_files_of_their_own_directory(tmp_path: Path, victim: Path, name: str) -> None:
    record = {"bytes": 8, "sha256": hashlib.sha256(b"precious").hexdigest(), "kind": "derived"}
    directory = StageDir.at(open_store(tmp_path / "runs" / "a" / "film"))
    store = changed(directory, lambda plain: plain["files"].update({name.format(tmp_path): record}))
    with pytest.raises(CheckpointError, match="is no key of a store"):
        open_checkpoint(store)


@pytest.mark.parametrize("name", ["checkpoints/step-00000001/model.safetensors", "lease.json", "events.jsonl"])
def test_no_file_of_ours_is_removed_as_a_derived_one(tmp_path: Path, name: str) -> None:
    """The stage's directory shows the derived files of its best checkpoint, and removes those shown before."""
    directory = StageDir.at(open_store(tmp_path / "runs" / "a" / "film"))
    first, second = save(directory, 1, 2)
    directory.store.put("events.jsonl", b"{}\n")
    before = {info.key for info in directory.store.list()}
    record = first.metadata.files["model.safetensors"].as_kind("derived")
    forged = first.metadata.model_copy(update={"export_of": first.digest, "files": {name: record}})
    with pytest.raises(CheckpointError, match="is a name of ours"):
        parse_metadata(forged.to_bytes(), "here")
    directory.store.put(METADATA_NAME, forged.to_bytes())
    show_best(directory, second)
    assert before <= {info.key for info in directory.store.list()}


@pytest.mark.parametrize("uri", ["../../victim", "runs/../../victim", "a//b"])
def test_a_recorded_parent_lies_below_its_root(tmp_path: Path, uri: str) -> None:
    with pytest.raises(CheckpointError, match="outside of its root"):
        absolute_uri(uri, open_store(tmp_path), "parents.json")


def test_a_receipt_that_rests_on_files_elsewhere_is_none(tmp_path: Path, victim: Path) -> None:
    root = open_store(tmp_path / "root")
    plain = {"question": "q", "answer": {}, "hashes": {"../victim": hashlib.sha256(b"precious").hexdigest()}}
    root.put(receipt_key("a", "film"), json.dumps(seal(plain)).encode())
    assert read_receipt(root, "a", "film", "q") is None


def test_a_commit_of_a_hub_cache_is_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    (repository / "refs" / "main").write_text("..", encoding="utf-8")
    (repository / "model.safetensors").write_bytes(b"")
    with pytest.raises(MissingPartError, match="lacks revision 'main'"):
        find_source(External("encoder", "org/name"))


def test_buffers_of_a_mesh_are_looked_for_beside_it(tmp_path: Path, victim: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "own.bin").write_bytes(b"1")
    (folder / "link.bin").symlink_to(victim)
    names = ["own.bin", "link.bin", "../victim", str(victim), "x" * 9999, "\0", "data:,a", 7]
    mesh = folder / "a.gltf"
    mesh.write_text(json.dumps({"buffers": [{"uri": name} for name in names]}), encoding="utf-8")
    assert mesh_sources(mesh) == [mesh, folder / "own.bin"]


FOLDERS = ["a\nb", "a\x1b[31m", "\u202ea", "\udcff", "back\\slash", "\xa0", ".."]
"""Names of folders that others made, none of which is a key of a store; the last stays out by itself."""


@pytest.mark.parametrize("name", FOLDERS, ids=range(len(FOLDERS)))
def test_a_folder_whose_name_is_no_key_hides_no_run(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told, and the others are listed."""
    HandMade(open_store(tmp_path).child("runs", "good")).claim()
    (tmp_path / "runs" / name / "film").mkdir(parents=True, exist_ok=True)
    (tmp_path / "runs" / name / "run.json").write_text("{}")
    assert main(["runs", "list", "--json", "--root", str(tmp_path)]) == 0
    shown = {run["run"]: run for run in json.loads(capsys.readouterr().out)}
    assert "good" in shown
    others = [run for run in shown.values() if run["run"] != "good"]
    assert len(others) == (name != "..")
    assert all("is no key of a store" in run["sentence"] and "damaged" in run["state"] for run in others)
    assert main(["runs", "list", "--root", str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_folder_of_a_run_whose_name_is_no_key_is_told_in_its_report(tmp_path: Path) -> None:
    run = open_store(tmp_path).child("runs", "good")
    HandMade(run).claim()
    for folder in ("", "evaluations/", "comparisons/", "quarantine/"):
        (tmp_path / "runs/good" / f"{folder}a\nb").mkdir(parents=True)
        (tmp_path / "runs/good" / f"{folder}a\nb" / "metrics.json").write_text("{}")
    page = Path(build_report(run.uri)).read_text()
    assert page.count("is no key of a store") >= 4


class Lists:
    """An object store that lists what it likes."""

    def __init__(self, *keys: str) -> None:
        self.metas = [{"path": key, "size": 1, "e_tag": "x"} for key in keys]
        self.prefixes = [key.rpartition("/")[0] for key in keys if key != "root/runs"]

    def collect(self) -> list[dict[str, Any]]:
        return self.metas

    def __getitem__(self, name: str) -> Any:
        return {"objects": self.metas, "common_prefixes": self.prefixes}[name]


@pytest.mark.parametrize("key", ["victim/x", "root/run/s/x", "rootevil/runs/x", "root", "root/runsx/x"])
@pytest.mark.parametrize("verb", ["list", "files", "folders", "delete_tree"])
def test_what_a_server_lists_lies_where_it_was_asked(
    remote: Store, monkeypatch: pytest.MonkeyPatch, key: str, verb: str
) -> None:
    deleted: list[Any] = []
    for name in ("list", "list_with_delimiter"):
        monkeypatch.setattr(f"obstore.{name}", lambda *_: Lists("root/runs/a/x", key))
    monkeypatch.setattr("obstore.delete", lambda _, keys: deleted.append(keys))
    store = open_store("memory://lists/root")
    with pytest.raises(StoreError, match="which does not lie there"):
        getattr(store, verb)("runs")
    assert deleted == []
    for name in ("list", "list_with_delimiter"):
        monkeypatch.setattr(f"obstore.{name}", lambda *_: Lists("root/runs/a/x", "root/runs"))
    assert getattr(store, verb)("runs") in ([], ["a"], None) or getattr(store, verb)("runs")[0].key == "runs/a/x"
