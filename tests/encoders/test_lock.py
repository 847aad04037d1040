"""The lock and the copies of a root: written by prepare, read by everybody else."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest

from stageline.config import RunConfig
from stageline.data.splits import silent
from stageline.encoders.copies import external_digest, external_folder, lock_external
from stageline.encoders.external import External
from stageline.encoders.lock import EXTERNALS, LOCK_NAME, external_digests, read_lock
from stageline.errors import DataError, MissingPartError
from stageline.store import Store, open_store

from .conftest import write_folder


def at(root: Store) -> RunConfig:
    return RunConfig(family="none", root=root.uri, run="x")


def test_a_reader_needs_the_root_alone(root: Store, folder: Path, tmp_path: Path) -> None:
    """The source is gone after prepare; what is fetched from an object store is fetched once."""
    external = External("clip", str(folder), revision="r1")
    whole = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}
    made = lock_external(root, external, silent)
    shutil.rmtree(folder)
    found = external_folder(at(root), external)
    assert {path.name: path.read_bytes() for path in found.iterdir() if not path.name.startswith(".")} == whole
    assert lock_external(root, external, silent).digest == made.digest == external_digest(root, external)
    if root.local_path() is None:
        assert found.is_relative_to(tmp_path / "pod")
        root.delete(f"{EXTERNALS}/{made.digest}/model.safetensors")
        assert external_folder(at(root), external) == found, "nothing is fetched twice"
        shutil.rmtree(found)
        with pytest.raises(MissingPartError, match="the root has no whole copy"):
            external_folder(at(root), external)


def test_a_copy_on_one_file_system_is_a_link(folder: Path, tmp_path: Path) -> None:
    root = open_store(tmp_path / "root")
    external = External("clip", str(folder))
    made = lock_external(root, external, silent)
    copy = external_folder(at(root), external) / "model.safetensors"
    assert copy == tmp_path / "root" / EXTERNALS / made.digest / "model.safetensors"
    assert copy.stat().st_ino == (folder / "model.safetensors").stat().st_ino


def test_a_copy_is_verified_before_it_is_used(root: Store, folder: Path) -> None:
    """One byte more, one byte other."""
    external = External("clip", str(folder))
    made = lock_external(root, external, silent)
    key = f"{EXTERNALS}/{made.digest}/model.safetensors"
    whole = root.get(key)
    root.put(key, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="hash differs"):
        external_folder(at(root), external)
    root.put(key, whole)
    assert external_folder(at(root), external)
    if root.local_path() is not None:
        (folder / "model.safetensors").write_bytes(whole)  # a new file: the copy keeps the old one
        root.put(key, b"0" * len(whole))
        with pytest.raises(DataError, match="is not what was locked"):
            external_folder(at(root), external)


def test_without_a_copy_the_source_must_be_what_was_locked(root: Store, folder: Path) -> None:
    external = External("clip", str(folder))
    made = lock_external(root, external, silent)
    root.delete_tree(f"{EXTERNALS}/{made.digest}")
    assert external_folder(at(root), external) == folder
    (folder / "config.json").write_text('{"model_type": "else"}')
    with pytest.raises(DataError, match=r"is not what was locked[\s\S]*config.json: its hash differs"):
        external_folder(at(root), external)


def test_another_content_behind_a_name_is_seen_and_locked_anew(folder: Path, tmp_path: Path) -> None:
    root = open_store(tmp_path / "root")
    external = External("clip", str(folder))
    first = lock_external(root, external, silent)
    assert lock_external(root, external, silent).before == first.digest
    shutil.rmtree(folder)
    write_folder(folder, 0.75)
    found = external_digests(read_lock(root), [external], compare=True)
    assert not found.known
    assert "changed since it was locked (config.json, model.safetensors)" in found.unknown[0]
    assert external_digests(read_lock(root), [external]).known == {"clip": first.digest}, "whoever has a lock reads it"
    second = lock_external(root, external, silent)
    assert (second.before, second.digest != first.digest) == (first.digest, True)
    assert f"was {first.digest[:12]}" in str(second)
    assert external_digests(read_lock(root), [external], compare=True).known == {"clip": second.digest}
    assert root.exists(f"{EXTERNALS}/{first.digest}/model.safetensors"), "what a checkpoint may name is kept"


def test_a_generated_external_has_no_files(root: Store) -> None:
    one, other = (External("tower", f"seed {n}", generated=True) for n in (1, 2))
    digests = {lock_external(root, external, silent).digest for external in (one, other)}
    assert len(digests) == 2
    assert external_digests({}, [one]).known == {"tower": external_digest(root, one)}
    assert not root.list()


def lock_many(uri: str, folders: list[str]) -> None:
    for folder in folders:
        lock_external(open_store(uri), External(folder, folder), silent)


def test_two_prepares_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each process locks its own six and one that both have; the lock then holds thirteen."""
    shared = str(write_folder(tmp_path / "shared"))
    own = [[str(write_folder(tmp_path / f"{side}{n}", n)) for n in range(6)] for side in "ab"]
    context = multiprocessing.get_context("fork")
    uri = str(tmp_path / "root")
    processes = [context.Process(target=lock_many, args=(uri, [*names, shared])) for names in own]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    lock = read_lock(open_store(uri))
    assert len(lock) == 13
    for name in (*own[0], *own[1], shared):
        assert external_folder(at(open_store(uri)), External("x", name)).parent == Path(uri) / EXTERNALS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda plain: plain.update(schema="stageline-externals/9"), "is no stageline-externals/1"),
        (lambda plain: plain["externals"][0].update(digest="0" * 64), "seal broken"),
    ],
)
def test_a_changed_lock_is_refused(folder: Path, tmp_path: Path, change: Any, says: str) -> None:
    root = open_store(tmp_path / "root")
    lock_external(root, External("clip", str(folder)), silent)
    plain = json.loads(root.get(f"{EXTERNALS}/{LOCK_NAME}"))
    change(plain)
    root.put(f"{EXTERNALS}/{LOCK_NAME}", json.dumps(plain).encode())
    with pytest.raises(DataError, match=says):
        read_lock(root)


@pytest.mark.parametrize("name", ["../x.json", "/x.json", "a//b"])
def test_a_lock_names_no_file_outside_its_folder(folder: Path, tmp_path: Path, name: str) -> None:
    from stageline.config import seal

    root = open_store(tmp_path / "root")
    lock_external(root, External("clip", str(folder)), silent)
    plain = json.loads(root.get(f"{EXTERNALS}/{LOCK_NAME}"))
    plain["externals"][0]["files"][0]["name"] = name
    root.put(f"{EXTERNALS}/{LOCK_NAME}", json.dumps(seal({k: v for k, v in plain.items() if k != "seal"})).encode())
    with pytest.raises(DataError, match="is no key"):
        read_lock(root)
