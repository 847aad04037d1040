"""One's own pictures through `prepare`: any size, any name, told what was read, prepared anew only where it must be."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stageline.config import fingerprint
from stageline.data.names import NamePattern
from stageline.data.splits import file_sha256
from stageline.errors import DataError, Faults
from stageline.families import family_config
from stageline.families.film_flow import losses
from stageline.families.film_flow.data.folder import check_folders, pair_files
from stageline.families.film_flow.data.layout import Layout
from stageline.families.film_flow.data.sets import open_data
from stageline.work.data import hash_sources, run_splits, split_fingerprints
from tests.data.picture_files import PICTURES

from .conftest import make_data, quiet


def save(path: Path, pixels: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def folder_config(make_config: Any, train: Path, val: Path, *overrides: str) -> Any:
    named = ["data.name=folder", f"data.train_dir={train}", f"data.val_dir={val}"]
    return make_config(*named, "model.vlm_film_config.prompt_template=vessels", *overrides)


def test_a_small_picture_is_padded_by_its_edge_and_counts_where_it_is(make_config, make_folder):
    train = make_folder("train", ("a",), (40, 48))
    pixels = np.random.default_rng(3).integers(0, 255, (20, 90), dtype=np.uint8)
    save(train / "image" / "small.png", pixels)
    save(train / "label" / "small.png", np.full((20, 90), 255, np.uint8))
    config = folder_config(make_config, train, make_folder("val", ("c",)), "data.flips=false")
    data = make_data(config)
    facts = data.prepared.facts["splits"]
    assert (facts["train"]["read"]["padded"], facts["val"]["read"]["padded"]) == (1, 0)
    sets = open_data(config, data)
    whole, small = sets.train_set[(0, 0)], sets.train_set[(0, 1)]
    assert whole.valid is None
    assert small.valid is not None
    inside = np.zeros((1, 32, 32), np.float32)
    inside[:, :20] = 1
    np.testing.assert_array_equal(small.valid, inside)
    np.testing.assert_array_equal(small.mask, inside)
    np.testing.assert_array_equal(small.target, 2 * inside - 1)
    np.testing.assert_array_equal(small.image[:, 20:], np.repeat(small.image[:, 19:20], 12, axis=1))
    assert not small.heat[:, 20:].any()
    batch = sets.collate([whole, small])
    assert batch.valid is not None
    np.testing.assert_array_equal(batch.valid.numpy(), np.stack([np.ones_like(inside), inside]))
    assert sets.collate([whole, whole]).valid is None


@pytest.mark.parametrize("kind", ["bce", "dice", "soft_cldice", "junction_focal", "junction_bce_dice"])
def test_the_loss_of_a_padded_picture_is_that_of_the_picture(kind: str) -> None:
    rng = torch.Generator().manual_seed(4)
    value, mask = torch.randn(1, 1, 20, 32, generator=rng), (torch.rand(1, 1, 20, 32, generator=rng) < 0.3).float()
    padded, label, valid = (
        torch.randn(2, 1, 32, 32, generator=rng),
        torch.zeros(2, 1, 32, 32),
        torch.zeros(2, 1, 32, 32),
    )
    padded[:1, :, 12:], label[:1, :, 12:], valid[:1, :, 12:], valid[1] = value, mask, 1, 1
    function = getattr(losses, kind)
    given, whole = (
        (torch.sigmoid, (value, padded)) if kind in ("dice", "soft_cldice") else (torch.clone, (value, padded))
    )
    alone, together = function(given(whole[0]), mask), function(given(whole[1]), label, valid)
    torch.testing.assert_close(together[:1], alone)
    torch.testing.assert_close(together[1:], function(given(padded[1:]), label[1:]))


def test_preparing_tells_what_it_read_and_warns(make_config, make_folder, tmp_path, capsys):
    train = make_folder("train", ("a", "b"))
    for name in ("turned", "half"):
        save(train / "label" / f"{name}.png", np.full((40, 48), 255, np.uint8) * (name == "turned"))
    save(train / "image" / "turned.png", np.random.default_rng(1).integers(0, 255, (40, 48, 3), dtype=np.uint8))
    save(train / "image" / "half.tif", np.arange(40 * 48, dtype=np.uint16).reshape(40, 48))
    config = folder_config(make_config, train, make_folder("val", ("c",)))
    facts = make_data(config).prepared.facts["splits"]["train"]
    assert facts["read"] == {
        "formats": {"png": 3, "tif": 1},
        "sizes": {"40x48": 4},
        "bits": {"8": 3, "16": 1},
        "channels": {"1": 3, "3": 1},
        "converted": {"colour made grey": 1},
        "padded": 0,
    }
    told = dict(facts["told"])
    assert told["pictures"] == "4: png (3), tif (1)"
    assert told["foreground"].endswith("of all pixels, 0.0% to 100.0% per label")
    inverted, grey = facts["warnings"]
    assert inverted.startswith("1 of 4 labels are foreground for more than half (turned 100%)")
    assert grey.startswith("1 of 4 pictures have colour and are read as grey")
    first = capsys.readouterr().err
    assert "prepare: train: pictures 4: png (3), tif (1); height x width 40 x 48 (4); depth" in first
    assert f"prepare: warning: train: {inverted}" in first
    noted = json.loads((tmp_path / "runs" / config.run / "data.json").read_text())
    assert noted["train"] == {"told": facts["told"], "warnings": facts["warnings"]}
    assert noted["val"]["warnings"] == []
    make_data(config)
    assert f"prepare: warning: train: {inverted}" in capsys.readouterr().err


def test_names_that_look_equal_go_together_and_keep_their_spelling(make_config, make_folder):
    train, composed = make_folder("train", ("a",)), unicodedata.normalize("NFC", "ü1")
    split = unicodedata.normalize("NFD", "ü1")
    assert split != composed
    (train / "image" / "a.png").rename(train / "image" / f"{split}.png")
    (train / "label" / "a.png").rename(train / "label" / f"{composed}.png")
    (pair,) = check_folders(Layout({"train": train}), quiet)
    assert (pair.name, pair.label.stem) == (split, composed)


def test_names_of_a_published_set_are_told_in_one_message_and_paired_by_a_pattern(make_folder):
    train = make_folder("train", ("21", "22", "23"))
    for part, ending in (("image", "_training.tif"), ("label", "_manual1.gif")):
        for path in list((train / part).iterdir()):
            Image.open(path).save(train / part / f"{path.stem}{ending}")
            path.unlink()
    with pytest.raises(DataError) as caught:
        check_folders(Layout({"train": train}), quiet)
    assert "image folders: 1 fault" in str(caught.value)
    assert "data.label_pattern='*_training -> *_manual1'" in str(caught.value)
    assert "'21_manual1.gif' to '21_training.gif'" in str(caught.value)
    pattern = NamePattern.parse("*_training -> *_manual1")
    pairs = check_folders(Layout({"train": train}, pattern=pattern), quiet)
    assert [(pair.name, pair.label.stem) for pair in pairs] == [(f"{n}_training", f"{n}_manual1") for n in (21, 22, 23)]


def test_one_folder_is_split_by_names(make_config, make_folder):
    train = make_folder("train", ("p1_a", "p1_b", "p2_a", "p3_a"))
    config = folder_config(
        make_config, train, train, "data.val_names=[p2*]", f"data.test_dir={train}", "data.test_names=[p3*]"
    )
    layout = Layout.of(config.data)
    assert [(pair.split, pair.name) for pair in pair_files(layout, Faults(DataError, ""))] == [
        ("train", "p1_a"),
        ("train", "p1_b"),
        ("val", "p2_a"),
        ("test", "p3_a"),
    ]
    splits = {split.name: split for split in run_splits(config, family_config(config.family))}
    assert {path.stem for path in splits["train"].source_files} == {"p1_a", "p1_b"}
    assert {path.stem for path in splits["val"].source_files} == {"p2_a"}
    assert make_data(config).prepared.facts["splits"]["train"]["images"] == 2


def test_a_file_that_is_read_otherwise_than_before_changes_its_own_hash_alone(make_config, make_folder):
    train, val = make_folder("train", ("a", "b")), make_folder("val", ("c",))
    suffix, make, _ = PICTURES["rgb16-png"]
    deep = train / "image" / f"deep.{suffix}"
    deep.write_bytes(make())
    save(train / "label" / "deep.png", np.zeros((21, 34), np.uint8))
    config = folder_config(make_config, train, val, "model.image_channels=3")
    splits = tuple(
        split for split in run_splits(config, family_config(config.family)) if split.name in ("train", "val")
    )
    found = hash_sources(splits)
    roots = {"train": train, "val": val}
    plain = {
        split.name: {p.relative_to(roots[split.name]).as_posix(): file_sha256(p) for p in split.source_files}
        for split in splits
    }
    changed = {name for name, sha in found["train"].items() if sha != plain["train"][name]}
    assert changed == {"image/deep.png"}
    assert found["val"] == plain["val"]
    before = split_fingerprints(config, splits, plain)
    now = split_fingerprints(config, splits, found)
    assert before["val"] == now["val"]
    assert before["train"] != now["train"]


def test_new_keys_at_their_default_leave_the_fingerprints_of_splits_alone(make_config, make_folder):
    config = folder_config(make_config, Path("t"), Path("v"))
    for split in run_splits(config, family_config(config.family)):
        assert not {"image_folder", "label_folder", "label_pattern", "val_names", "max_pixels"} & set(split.key["data"])
    large = folder_config(make_config, Path("t"), Path("v"), "data.max_pixels=9", "data.cache_bytes=7")
    keys = [[fingerprint(dict(split.key)) for split in run_splits(c, family_config(c.family))] for c in (config, large)]
    assert keys[0] == keys[1]
