"""Prepared data: one wins, the other reuses; reuse goes by content; damage is found before use."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guards import HANG_SECONDS
from PIL import Image

from stageline.cli.configuration import raw_preset
from stageline.config import RunConfig
from stageline.data.prepared import MANIFEST, Prepared, materialise, read_manifest, refuse_damaged
from stageline.errors import DataError
from stageline.families import family_config, parse_config
from stageline.plan import make_plan
from stageline.store import Reference, open_store
from stageline.store.holder import this_process
from stageline.verbs.prepare import forecast_prepared, prepare_data, source_names


def tiny(root: Path | str, *overrides: str) -> RunConfig:
    small = ("data.num_train=2", "data.num_val=1")
    return parse_config(raw_preset("film_flow", "tiny"), [f"root={root}", *small, *overrides])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Prepared]:
    config = tiny(tmp_path_factory.mktemp("root"))
    return config, prepare_data(config)


def test_the_digest_is_the_manifests_and_the_second_time_reuses_it(made: tuple[RunConfig, Prepared]) -> None:
    config, prepared = made
    data = open_store(prepared.reference.uri).get(MANIFEST)
    assert hashlib.sha256(data).hexdigest() == prepared.reference.digest
    assert not prepared.reused
    again = prepare_data(config)
    assert again.reused
    assert again.reference == prepared.reference
    assert make_plan(config)["prepare_data"].action == "reuse"


def test_the_same_config_gives_the_same_data_elsewhere(made: tuple[RunConfig, Prepared], tmp_path: Path) -> None:
    other = prepare_data(tiny(tmp_path))
    assert other.reference.digest == made[1].reference.digest


def test_what_cannot_change_the_data_does_not(made: tuple[RunConfig, Prepared]) -> None:
    config, prepared = made
    changed = tiny(config.root, "run=other", "trainer.learning_rate=0.1", "evaluate.k=2")
    assert prepare_data(changed).reference == prepared.reference
    assert make_plan(tiny(config.root, "data.num_train=3", "run=o"))["prepare_data"].action == "run"


def test_one_of_two_preparers_wins_and_the_other_reuses(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    results: list[Prepared] = []
    threads = [threading.Thread(target=lambda: results.append(prepare_data(config))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
    assert len(results) == 2
    assert results[0].reference == results[1].reference
    assert sum(not result.reused for result in results) == 1
    materialise(results[0].reference, tmp_path / "scratch")


def test_a_preparer_that_died_leaves_nothing_in_the_way(made: tuple[RunConfig, Prepared], tmp_path: Path) -> None:
    name = made[1].reference.uri.rsplit("/", 1)[-1]
    store = open_store(tmp_path).child("cache/prepared", name)
    store.create("data/claim.json", b"{}")
    store.put("data/train-00000.safetensors", b"half of it")
    prepared = prepare_data(tiny(tmp_path))
    assert not prepared.reused
    assert read_manifest(prepared.reference)["folder"] == "data-2"
    materialise(prepared.reference, tmp_path / "scratch")


def test_what_dead_preparers_left_is_swept(made: tuple[RunConfig, Prepared], tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "prepared"
    store = open_store(cache).child(made[1].reference.uri.rsplit("/", 1)[-1])
    dead = {**this_process(), "born": "1"}
    store.create("data/claim.json", json.dumps(dead).encode())
    store.create("data-2/claim.json", json.dumps(this_process()).encode())
    left = cache / ".stageline-preparing-left"
    left.mkdir()
    os.utime(left, (1, 1))
    prepared = prepare_data(tiny(tmp_path))
    assert store.folders() == ["data-2", "data-3"], "the living one tidies up after itself"
    assert read_manifest(prepared.reference)["folder"] == "data-3"
    assert [path.name for path in cache.iterdir()] == [store.uri.rsplit("/", 1)[-1]]


def test_a_manifest_that_was_changed_is_refused(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    path = Path(prepare_data(config).reference.uri) / MANIFEST
    plain = json.loads(path.read_bytes())
    for changed in ({**plain, "folder": "data-2"}, {"schema": plain["schema"]}):
        path.write_text(json.dumps(changed))
        with pytest.raises(DataError, match="changed after it was written") as caught:
            prepare_data(config)
        assert "delete that folder" in caught.value.remedy


def test_an_object_store_is_copied_once_and_verified(made: tuple[RunConfig, Prepared], tmp_path: Path) -> None:
    local = made[1].reference
    remote = open_store("memory://prepared-test")
    source = open_store(local.uri)
    for info in source.list():
        remote.put(info.key, source.get(info.key))
    reference = Reference(remote.uri, local.digest)
    folder = materialise(reference, tmp_path)
    assert folder == tmp_path / local.digest
    manifest = read_manifest(reference)
    for name, record in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == record["sha256"]
    name = next(iter(manifest["files"]))
    (folder / name).write_bytes(b"damaged on the way")
    assert materialise(reference, tmp_path) == folder
    assert (folder / name).read_bytes() != b"damaged on the way"


def test_damaged_and_missing_files_are_all_named(tmp_path: Path) -> None:
    prepared = prepare_data(tiny(tmp_path))
    manifest = read_manifest(prepared.reference)
    folder = Path(prepared.reference.uri) / manifest["folder"]
    first, second = sorted(manifest["files"])[:2]
    data = bytearray((folder / first).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / first).write_bytes(data)
    (folder / second).unlink()
    for look in (lambda: materialise(prepared.reference, tmp_path / "s"), lambda: refuse_damaged(prepared.reference)):
        with pytest.raises(DataError) as caught:
            look()
        assert first in str(caught.value)
        assert second in str(caught.value)


def test_a_reference_to_other_data_is_refused(made: tuple[RunConfig, Prepared], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="others than those named"):
        materialise(Reference(made[1].reference.uri, "0" * 64), tmp_path)
    with pytest.raises(DataError, match="there are no prepared data"):
        materialise(Reference(str(tmp_path / "nowhere"), "0" * 64), tmp_path)


def write_folder(folder: Path, **levels: int) -> None:
    """Pairs of images and labels, 48 x 48."""
    for name, level in levels.items():
        for part in ("image", "label"):
            target = folder / part / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((48, 48), level, np.uint8)
            pixels[10:14] = 255
            Image.fromarray(pixels if part == "image" else (pixels == 255).astype(np.uint8) * 255).save(target)


def folder_config(root: Path, data: Path) -> RunConfig:
    overrides = ("data.name=folder", f"data.train_dir={data / 'train'}", f"data.val_dir={data / 'val'}")
    return tiny(root, *overrides, "model.vlm_film_config.prompt_template=vessels")


def test_reuse_of_folder_data_goes_by_bytes_not_by_time(tmp_path: Path) -> None:
    data, root = tmp_path / "data", tmp_path / "root"
    write_folder(data / "train", a=10, b=20)
    write_folder(data / "val", c=30)
    config = folder_config(root, data)
    store = open_store(root)
    assert forecast_prepared(config, store)[0] is None
    first = prepare_data(config)
    found, _ = forecast_prepared(config, store)
    assert found is not None
    assert found.reference == first.reference

    image = data / "train" / "image" / "a.png"
    image.touch()
    forecast, reason = forecast_prepared(config, store)
    assert forecast is None
    assert "source files changed: train/image/a.png" in reason
    assert prepare_data(config).reference == first.reference, "equal bytes are equal data"
    assert forecast_prepared(config, store)[0] is not None

    write_folder(data / "train", a=11)
    changed = prepare_data(config)
    assert not changed.reused
    assert changed.reference != first.reference


def test_every_bad_source_file_is_named_before_anything_is_written(tmp_path: Path) -> None:
    data, root = tmp_path / "data", tmp_path / "root"
    write_folder(data / "train", a=10, b=20, c=30)
    write_folder(data / "val", d=40)
    (data / "train" / "image" / "a.png").write_bytes(b"")
    (data / "train" / "label" / "b.png").unlink()
    whole = (data / "train" / "image" / "c.png").read_bytes()
    (data / "train" / "image" / "c.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((20, 48), np.uint8)).save(data / "val" / "label" / "d.png")
    with pytest.raises(DataError) as caught:
        prepare_data(folder_config(root, data))
    for name in ("a.png", "b.png", "c.png", "d.png"):
        assert name in str(caught.value)
    assert not list((root / "cache").rglob(MANIFEST))


def test_source_names_do_not_depend_on_where_the_data_lie(tmp_path: Path) -> None:
    names: list[Any] = []
    for place in ("one", "two/deeper"):
        write_folder(tmp_path / place / "train", a=1)
        write_folder(tmp_path / place / "val", a=1)
        config = folder_config(tmp_path, tmp_path / place)
        names.append(sorted(source_names(family_config("film_flow").source_files(config))))
    assert names[0] == names[1]
    assert names[0] == ["train/image/a.png", "train/label/a.png", "val/image/a.png", "val/label/a.png"]
