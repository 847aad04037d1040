"""Prepared data: samples as functions of (seed, epoch, index), crops by indexing, conditions by scope."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from guards import HANG_SECONDS

from stageline.errors import ConfigError, DataError
from stageline.families import parse_config
from stageline.families.film_flow.conditions.encoder import encoder_settings
from stageline.families.film_flow.data.junctions import find_junctions, junction_heat
from stageline.families.film_flow.data.prompts import PROMPTS, find_prompt
from stageline.families.film_flow.data.sets import Batch, collate, open_data, window_condition
from stageline.families.film_flow.data.sources import make_target
from stageline.families.film_flow.data.tree_pictures import make_prompted_picture

from .conftest import SMALL, make_data


@dataclass(frozen=True)
class Rectangle:
    top: int
    left: int
    height: int
    width: int


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("small")
    make_data(parse_config(SMALL, [f"root={root}"]))
    return root


@pytest.fixture
def data(prepared):
    return read(prepared)


def read(root, *overrides):
    """The data below a root, for a config with these overrides."""
    config = parse_config(SMALL, [f"root={root}"])
    return open_data(parse_config(SMALL, [f"root={root}", *overrides]), make_data(config))


def digest(sample) -> str:
    parts = (sample.image, sample.mask, sample.target, sample.heat, sample.feature)
    return hashlib.sha256(b"".join(p.tobytes() for p in parts) + f"{sample.id}{sample.present}".encode()).hexdigest()


def test_a_sample_is_the_same_alone_and_in_order(prepared, data):
    in_order = [digest(data.train_set[(epoch, index)]) for epoch in range(5) for index in range(3)]
    again = read(prepared)
    assert digest(again.train_set[(4, 2)]) == in_order[4 * 3 + 2]
    assert len(set(in_order)) > 9


ELSEWHERE = """
import atexit, gc
gc.disable(), atexit.register(gc.freeze)  # nothing that torch makes is garbage
import hashlib, json, pickle, sys
from pathlib import Path
import numpy, torch
def refuse(*args, **kwargs): raise SystemExit("a pickle was opened")
pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse
from stageline.families import parse_config
from stageline.data.prepared import open_prepared
from stageline.families.film_flow.data.sets import open_data
from stageline.verbs.prepare import prepare_data
root = Path(sys.argv[1])
raw = json.loads(sys.argv[2])
def read(config): return open_data(config, open_prepared(prepare_data(config).reference))
data = read(parse_config(raw, [f"root={root}"]))
def digest(s):
    parts = (s.image, s.mask, s.target, s.heat, s.feature)
    return hashlib.sha256(b"".join(p.tobytes() for p in parts) + f"{s.id}{s.present}".encode()).hexdigest()
print(digest(data.train_set[(4, 2)]), digest(data.val_set[3]))
both = parse_config(raw, ["model.cond_source=image+text", f"root={root}/elsewhere"])
vectors, _ = read(both).train_set.split.features
print(hashlib.sha256(vectors.tobytes()).hexdigest())
"""


def test_another_process_makes_the_same_samples_and_opens_no_pickle(prepared, data, make_config, tmp_path):
    """Unpickling of any kind, torch.load included, ends the process while data are prepared and read (check 20)."""
    there = [sys.executable, "-c", ELSEWHERE, str(prepared), json.dumps(SMALL)]
    done = subprocess.run(there, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    samples, features = done.stdout.splitlines()
    assert samples.split() == [digest(data.train_set[(4, 2)]), digest(data.val_set[3])]
    config = make_config("model.cond_source=image+text")
    vectors, _ = open_data(config, make_data(config)).train_set.split.features
    assert vectors.shape == (6, 32)
    assert features == hashlib.sha256(vectors.tobytes()).hexdigest()
    files = [path for path in (prepared / "elsewhere").rglob("*") if path.is_file() and path.name != ".lock"]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".shard", ".rows", ".lines"}


def test_data_sets_travel_to_loader_workers(data):
    data.train_set[(0, 0)]  # opens files
    copy = pickle.loads(pickle.dumps(data.train_set))  # noqa: S301
    assert digest(copy[(1, 1)]) == digest(data.train_set[(1, 1)])
    loader = torch.utils.data.DataLoader(data.val_set, batch_size=2, num_workers=1, collate_fn=data.collate)
    batches = list(loader)
    np.testing.assert_array_equal(batches[0].image[0].numpy(), data.val_set[0].image)


def test_preparing_twice_writes_the_same_bytes(prepared, tmp_path):
    first, second = (make_data(parse_config(SMALL, [f"root={root}"])).prepared for root in (prepared, tmp_path))
    assert first.splits == second.splits  # files are named by their SHA-256
    assert first.reference.digest == second.reference.digest
    assert set(first.splits) == {"train", "val", "train-features", "val-features"}


def test_every_validation_picture_appears_with_both_prompts(data):
    cases = [(case.image, case.prompt) for case in data.val_set.split.cases]
    assert cases == [(image, prompt) for image in range(2) for prompt in PROMPTS]
    dark, bright = data.val_set[0], data.val_set[1]
    np.testing.assert_array_equal(dark.image, bright.image)
    np.testing.assert_array_equal(dark.heat, bright.heat)
    assert not np.array_equal(dark.mask, bright.mask)
    assert not np.array_equal(dark.feature, bright.feature)
    assert len({data.val_set.case(n).id for n in range(4)}) == 4


def test_two_epochs_in_a_row_show_both_prompts(data):
    for index in range(3):
        prompts = [data.train_set[(epoch, index)].prompt for epoch in range(4)]
        assert prompts[0] != prompts[1]
        assert prompts[:2] == prompts[2:]


def test_validation_samples_are_the_pictures_themselves(data):
    made = make_prompted_picture(0, "val", 1, 32)
    sample = data.val_set[2]
    np.testing.assert_array_equal(sample.mask[0], made.masks[0])
    np.testing.assert_array_equal(sample.target, sample.mask * 2 - 1)
    np.testing.assert_allclose(sample.nodes, made.nodes[:, :2], atol=1e-4)
    expected = junction_heat(made.nodes[:, :2], made.nodes[:, 2], (32, 32), 8.0)
    np.testing.assert_allclose(sample.heat[0], expected, atol=1e-3)
    assert sample.image.min() >= -1
    assert sample.image.max() <= 1
    assert abs(np.percentile(sample.image, 50)) < 0.9


def test_one_condition_per_image_for_crops_and_whole_pictures(make_config, make_folder, tmp_path):
    """Window and full-image condition are identical in image scope; every crop has its picture's feature (check 16)."""
    train, val = make_folder("train", ("a", "b"), (60, 72)), make_folder("val", ("c",))
    named = ["data.name=folder", f"data.train_dir={train}", f"data.val_dir={val}", "model.cond_source=image"]
    config = make_config(*named, "data.num_samples_per_image=3")
    data = open_data(config, make_data(config))
    vectors, _ = data.train_set.split.features
    for epoch in range(3):
        for index in range(6):
            np.testing.assert_array_equal(data.train_set[(epoch, index)].feature, vectors[index % 2])
    assert not np.array_equal(vectors[0], vectors[1])
    assert data.features.encoder_calls == 0  # training needs no encoder at all


def replace_override(config, override):
    return parse_config(config.model_dump(mode="json", by_alias=True), [override])


def test_crop_scope_gives_each_crop_and_window_its_own_condition(make_config, make_folder, tmp_path):
    train, val = make_folder("train", ("a",), (60, 72)), make_folder("val", ("c",))
    named = ["data.name=folder", f"data.train_dir={train}", f"data.val_dir={val}", "model.cond_source=image"]
    config = make_config(*named, "model.vlm_scope=crop", "data.num_samples_per_image=3")
    prepared = make_data(config)
    assert set(prepared.names) == {"train", "val", "val-features"}
    data = open_data(config, prepared)
    one, two = data.train_set[(0, 0)], data.train_set[(0, 1)]
    assert not np.array_equal(one.feature, two.feature)
    np.testing.assert_array_equal(data.train_set[(0, 0)].feature, one.feature)
    assert len(data.features.cache) == 1  # the whole validation picture; random crops are not kept
    strict = replace_override(config, "model.vlm_film_config.cache_only=true")
    with pytest.raises(ConfigError, match="cache_only forbids"):
        open_data(strict, prepared)
    batch = data.collate([data.val_set[0]])
    condition = window_condition(batch, data.features)
    whole = condition(Rectangle(0, 0, 40, 48))
    assert torch.equal(whole.vec, batch.condition.vec)
    part = condition(Rectangle(0, 0, 32, 32))
    assert part.vec.shape == whole.vec.shape
    assert not torch.equal(part.vec, whole.vec)


def test_batches_hold_what_their_samples_hold(data):
    samples = [data.val_set[n] for n in (0, 2, 3)]
    batch = data.collate(samples)
    assert batch.image.shape == (3, 1, 32, 32)
    assert batch.mask.shape == batch.target.shape == batch.heat.shape == (3, 1, 32, 32)
    assert batch.image.dtype == batch.mask.dtype == batch.heat.dtype == torch.float32
    assert batch.condition.vec.shape == (3, 16)
    assert batch.condition.present.tolist() == [True] * 3
    assert batch.condition.source == "text"
    assert batch.ids == [sample.id for sample in samples]
    for row, sample in enumerate(samples):
        np.testing.assert_array_equal(batch.image[row].numpy(), sample.image)
        np.testing.assert_array_equal(batch.condition.vec[row].numpy(), sample.feature)
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, Batch)
    assert len(moved) == 3


def test_pictures_of_different_sizes_do_not_fit_one_batch(data, make_config, make_folder, tmp_path):
    train, val = make_folder("train"), make_folder("val", ("c",), (40, 40))
    config = make_config(
        "data.name=folder", f"data.train_dir={train}", f"data.val_dir={val}", "model.cond_source=image"
    )
    odd = open_data(config, make_data(config)).val_set[0]
    with pytest.raises(DataError, match="2 sizes: 32 x 32, 40 x 40"):
        collate([data.val_set[0], odd])


def test_targets_keep_the_mask_as_their_sign():
    made = make_prompted_picture(0, "train", 0, 48)
    mask, coverage = made.masks[0], made.coverage[0]
    assert make_target(mask, coverage, "hard") == ()
    (soft,) = make_target(mask, coverage, "soft")
    np.testing.assert_allclose(soft, coverage * 2 - 1, atol=1e-6)
    np.testing.assert_array_equal(soft >= 0, mask.astype(bool))
    (blurred,) = make_target(mask, None, "soft")
    assert blurred.min() >= -1
    assert blurred.max() <= 1
    (distance,) = make_target(mask, None, "distance")
    np.testing.assert_array_equal(distance > 0, mask.astype(bool))
    bar = np.zeros((40, 40), np.uint8)
    bar[:, 20:] = 1
    (ramp,) = make_target(bar, None, "distance")
    np.testing.assert_allclose(ramp[7], np.clip((np.arange(40) - 19.5) / 8, -1, 1), atol=1e-6)
    assert (make_target(np.zeros((4, 4), np.uint8), None, "distance")[0] == -1).all()
    assert (make_target(np.ones((4, 4), np.uint8), None, "distance")[0] == 1).all()
    with pytest.raises(ConfigError, match="target_kind"):
        make_target(mask, None, "other")


@pytest.mark.parametrize("kind", ["soft", "distance"])
def test_prepared_targets_reach_the_sample(make_config, tmp_path, kind):
    config = make_config(f"model.target_kind={kind}")
    sample = open_data(config, make_data(config)).val_set[0]
    assert len(np.unique(sample.target)) > 2
    np.testing.assert_array_equal(sample.target >= 0, sample.mask.astype(bool))


def test_single_trees_have_one_case_per_picture(make_config, tmp_path):
    config = make_config("data.name=trees", "model.vlm_film_config.prompt_template=the tree")
    prepared = make_data(config)
    assert prepared.prepared.splits["val"].facts["cases"] == 2
    data = open_data(config, prepared)
    assert data.val_set[0].prompt == "the tree"
    assert find_prompt(make_config("model.vlm_film_config.prompt_templates={prompted_trees: x}"), "own") == "x"
    assert find_prompt(make_config(), "own") == "own"


def test_data_without_encoder_have_no_condition(make_config, tmp_path):
    config = make_config("model.use_vlm_film=false")
    data = open_data(config, make_data(config))
    assert set(data.data.names) == {"train", "val"}
    assert data.collate([data.val_set[0]]).condition is None


def test_a_stage_without_film_reads_the_same_data(prepared):
    config = parse_config(SMALL, [f"root={prepared}", "model.use_vlm_film=false"])
    assert encoder_settings(config).encoder == "none"
    data = read(prepared, "model.use_vlm_film=false")
    assert data.collate([data.train_set[(0, 0)]]).image.shape == (1, 1, 32, 32)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.target_kind=soft", "target_kind: 'hard' -> 'soft'"),
        ("data.image_norm=minmax", "image_norm: 'percentile' -> 'minmax'"),
        ("model.vlm_film_config.feature_dim=8", "condition.feature_dim: 16 -> 8"),
        ("model.cond_source=image+text", "condition.source: 'text' -> 'image+text'"),
        ("model.vlm_scope=crop", "condition.scope: 'image' -> 'crop'"),
    ],
)
def test_data_made_for_another_config_are_refused(prepared, override, words):
    data = read(prepared, override)
    with pytest.raises(DataError) as caught:
        _ = data.val_set
    assert words in str(caught.value)


def test_missing_data_and_splits_are_named(prepared, data, tmp_path):
    with pytest.raises(DataError, match=r"no split 'test'; they have \['train', 'train-features', 'val', "):
        data.case_set("test")
    assert data.case_set("val") is data.val_set
    with pytest.raises(IndexError):
        data.train_set[(0, 3)]


def test_exact_nodes_agree_with_the_union_of_both_masks(make_config):
    found = true = matched = 0
    from stageline.families.film_flow.data.junctions import match_nodes

    for index in range(12):
        made = make_prompted_picture(0, "train", index, 96)
        nodes = find_junctions(made.masks[0] | made.masks[1]).points
        matched += len(match_nodes(nodes, made.nodes[:, :2], 5.0))
        found, true = found + len(nodes), true + len(made.nodes)
    assert 2 * matched / (found + true) > 0.75
