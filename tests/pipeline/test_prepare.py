"""Prepared data: one wins, the other reuses; reuse goes by content; damage is found before use."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guards import HANG_SECONDS
from PIL import Image

from stageline.cli.configuration import raw_preset
from stageline.config import RunConfig, seal
from stageline.data.prepared import SET_NAME, Prepared, open_prepared, read_prepared
from stageline.data.splits import MANIFEST, parse_manifest
from stageline.errors import DataError
from stageline.families import family_config, parse_config
from stageline.plan import make_plan
from stageline.store import Reference, open_store
from stageline.store.holder import this_process
from stageline.verbs.prepare import prepare_data
from stageline.work.data import run_splits, source_names
from stageline.work.decision import decide_data, decide_evaluation, decide_stage
from stageline.work.given import Given


def tiny(root: Path | str, *overrides: str) -> RunConfig:
    small = ("data.num_train=2", "data.num_val=1")
    return parse_config(raw_preset("film_flow", "tiny"), [f"root={root}", *small, *overrides])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Prepared]:
    config = tiny(tmp_path_factory.mktemp("root"))
    return config, prepare_data(config)


def read_all(prepared: Prepared) -> None:
    """Every array of every row."""
    data = open_prepared(prepared.reference)
    for name in data.names:
        split = data.split(name)
        for row in range(len(split)):
            split.arrays(row)


def test_the_digest_is_the_sets_and_the_second_time_reuses_it(made: tuple[RunConfig, Prepared]) -> None:
    config, prepared = made
    data = open_store(prepared.reference.uri).get(SET_NAME)
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


def test_of_two_preparers_each_split_is_made_by_one_and_reused_by_the_other(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    results: list[Prepared] = []
    threads = [threading.Thread(target=lambda: results.append(prepare_data(config))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
    assert len(results) == 2
    assert results[0].reference == results[1].reference
    assert not all(result.reused for result in results)
    for split in results[0].splits.values():
        left = open_store(tmp_path).child("cache/prepared", split.fingerprint).folders()
        assert left == [split.folder], "of each split one preparer's files stay, and nothing of the other"
    read_all(results[0])


def test_a_preparer_that_died_leaves_nothing_in_the_way(made: tuple[RunConfig, Prepared], tmp_path: Path) -> None:
    store = open_store(tmp_path).child("cache/prepared", made[1].splits["train"].fingerprint)
    store.create("data/claim.json", b"{}")
    store.put(f"data/{'0' * 64}.shard", b"half of it")
    prepared = prepare_data(tiny(tmp_path))
    assert not prepared.reused
    assert prepared.splits["train"].folder == "data-2"
    read_all(prepared)


def test_what_dead_preparers_left_is_swept(made: tuple[RunConfig, Prepared], tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "prepared"
    store = open_store(cache).child(made[1].splits["train"].fingerprint)
    dead = {**this_process(), "born": "1"}
    store.create("data/claim.json", json.dumps(dead).encode())
    store.create("data-2/claim.json", json.dumps(this_process()).encode())
    left = cache / ".stageline-preparing-left"
    left.mkdir()
    os.utime(left, (1, 1))
    prepared = prepare_data(tiny(tmp_path))
    assert store.folders() == ["data-2", "data-3"], "the living one tidies up after itself"
    assert prepared.splits["train"].folder == "data-3"
    assert {path.name for path in cache.iterdir()} == {"sets", *(s.fingerprint for s in prepared.splits.values())}


def test_a_manifest_that_was_changed_is_refused(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    train = prepare_data(config).splits["train"]
    path = tmp_path / "cache" / "prepared" / train.fingerprint / MANIFEST
    plain = json.loads(path.read_bytes())
    for changed in ({**plain, "folder": "data-2"}, {"schema": plain["schema"]}):
        path.write_text(json.dumps(changed))
        with pytest.raises(DataError, match="changed after it was written") as caught:
            prepare_data(config)
        assert "delete that folder" in caught.value.remedy


@pytest.mark.parametrize(
    "change",
    [
        {"folder": "../elsewhere"},
        {"split": "a/b"},
        {"num_rows": -1},
        {"numbers": {"height": "|O8"}},
        {"files": {"passwd": 1}},
        {"shards": ["0" * 64 + ".shard"]},
        {"facts": []},
    ],
)
def test_a_manifest_is_hostile_until_it_was_checked(made: tuple[RunConfig, Prepared], change: dict[str, Any]) -> None:
    root, train = open_store(made[0].root), made[1].splits["train"]
    plain = json.loads(root.get(f"cache/prepared/{train.fingerprint}/{MANIFEST}"))
    sealed = seal({key: value for key, value in {**plain, **change}.items() if key != "seal"})
    with pytest.raises(DataError, match="fault"):
        parse_manifest(json.dumps(sealed).encode(), "somewhere/abc")


def test_an_incomplete_split_is_refused_at_once_with_all_its_files(tmp_path: Path) -> None:
    prepared = prepare_data(tiny(tmp_path))
    train, val = prepared.splits["train"], prepared.splits["val"]
    cache = tmp_path / "cache" / "prepared"
    (cache / train.fingerprint / train.folder / train.shards[0]).unlink()
    longer = cache / val.fingerprint / val.folder / val.shards[0]
    longer.write_bytes(longer.read_bytes() + b"x")
    with pytest.raises(DataError) as caught:
        open_prepared(prepared.reference)
    assert f"{train.shards[0]}: missing" in str(caught.value)
    assert f"{val.shards[0]}: {val.sizes[val.shards[0]] + 1} bytes, expected {val.sizes[val.shards[0]]}" in str(
        caught.value
    )
    assert open_prepared(prepared.reference, ["train-features"]).names == ("train-features",)


def test_a_damaged_shard_is_refused_by_name_when_it_is_read(tmp_path: Path) -> None:
    prepared = prepare_data(tiny(tmp_path))
    train = prepared.splits["train"]
    path = tmp_path / "cache" / "prepared" / train.fingerprint / train.folder / train.shards[0]
    split = open_prepared(prepared.reference).split("train")
    assert split.array(0, "mask").any()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    damaged = open_prepared(prepared.reference)
    assert len(damaged.split("val").arrays(0)) == 4
    with pytest.raises(DataError, match=f"{train.shards[0]}: its hash is not its name"):
        damaged.split("train").array(0, "mask")


def test_a_reference_to_other_data_is_refused(made: tuple[RunConfig, Prepared], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="others than those named"):
        read_prepared(Reference(made[1].reference.uri, "0" * 64))
    with pytest.raises(DataError, match="there are no prepared data"):
        read_prepared(Reference(str(tmp_path / "nowhere"), "0" * 64))


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
    assert decide_data(config, store).prepared is None
    first = prepare_data(config)
    found = decide_data(config, store).prepared
    assert found is not None
    assert found.reference == first.reference

    image = data / "train" / "image" / "a.png"
    image.touch()
    work = decide_data(config, store)
    assert work.prepared is None
    assert "train: source files changed: image/a.png" in work.data.reason
    assert prepare_data(config).reference == first.reference, "equal bytes are equal data"
    assert decide_data(config, store).prepared is not None

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
        splits = run_splits(config, family_config("film_flow"))
        names.append({split.name: sorted(source_names(split.source_files)) for split in splits})
    assert names[0] == names[1]
    assert names[0]["val"] == ["image/a.png", "label/a.png"]


def inputs_of(config: RunConfig, stage: str, prepared: Prepared) -> Mapping[str, str]:
    """What a stage reads of prepared data that it is handed."""
    inputs = decide_stage(config, stage, given=Given(str(prepared.reference))).inputs
    assert inputs
    return inputs


def evaluated_on(config: RunConfig, prepared: Prepared) -> Mapping[str, str]:
    """What an evaluation reads of them."""
    data = decide_evaluation(config, given=Given(str(prepared.reference))).data
    return {split.name: data.inputs[split.name] for split in family_config(config.family).evaluation_splits(config)}


def test_a_changed_test_split_prepares_nothing_else_and_leaves_stages_alone(tmp_path: Path) -> None:
    data, root = tmp_path / "data", tmp_path / "root"
    for split, level in (("train", 10), ("val", 20), ("test", 30)):
        write_folder(data / split, **{split[0]: level})
    overrides = (f"data.train_dir={data / 'train'}", f"data.val_dir={data / 'val'}", f"data.test_dir={data / 'test'}")
    config = tiny(
        root,
        "data.name=folder",
        *overrides,
        "evaluate.split=test",
        "model.vlm_film_config.prompt_template=vessels",
    )
    first = prepare_data(config)
    assert set(first.splits) == {"train", "train-features", "val", "val-features", "test", "test-features"}
    write_folder(data / "test", t=31)
    work = decide_data(config, open_store(root))
    assert work.prepared is None
    assert "train" not in work.data.reason
    second = prepare_data(config)
    assert not second.reused
    changed = {name for name in first.splits if first.splits[name] != second.splits[name]}
    assert changed == {"test", "test-features"}
    for stage in ("backbone", "film"):
        assert inputs_of(config, stage, first) == inputs_of(config, stage, second)
    assert evaluated_on(config, first) != evaluated_on(config, second)


def test_another_encoder_makes_features_anew_and_no_picture(made: tuple[RunConfig, Prepared]) -> None:
    config, first = made
    second = prepare_data(tiny(config.root, "model.vlm_film_config.feature_dim=8", "run=other"))
    changed = {name for name in first.splits if first.splits[name] != second.splits[name]}
    assert changed == {"train-features", "val-features"}
    assert inputs_of(config, "backbone", first) == inputs_of(config, "backbone", second)
    assert inputs_of(config, "film", first) != inputs_of(config, "film", second)
