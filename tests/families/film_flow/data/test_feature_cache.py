"""Features behind the cache: hits, misses, damage, cache_only, verification. The store has tests of its own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from stageline.errors import ConfigError, DataError
from stageline.families.film_flow.conditions.encoder import EncoderSettings
from stageline.families.film_flow.conditions.features import FeatureSource, cosine_distance, feature_key
from stageline.families.film_flow.conditions.stub import StubEncoder
from stageline.families.film_flow.data.sets import open_data
from stageline.store import open_store

from .conftest import make_data

SETTINGS = EncoderSettings("stub", source="image+text", feature_dim=8)
PICTURES = [np.random.default_rng(n).integers(0, 255, (20, 24, 3), dtype=np.uint8) for n in range(4)]
PROMPTS = ["dark", "bright", "dark", "bright"]
IDS = ["a", "b", "c", "d"]


def source(folder: Path, settings: EncoderSettings = SETTINGS) -> FeatureSource:
    return FeatureSource(settings, open_store(folder))


def forbidden(settings):
    raise AssertionError(f"the encoder {settings.encoder} was loaded")


def test_second_epoch_asks_no_encoder(tmp_path):
    """Acceptance check 20."""
    first = source(tmp_path)
    made, present = first.features(PICTURES, PROMPTS, IDS)
    assert first.encoder_calls == 4
    second = FeatureSource(SETTINGS, open_store(tmp_path), forbidden)
    again, there = second.features(PICTURES, PROMPTS, IDS)
    np.testing.assert_array_equal(made, again)
    np.testing.assert_array_equal(present, there)
    assert second.encoder_calls == 0
    assert second.counts.hits == 4
    direct, _ = FeatureSource(SETTINGS).features(PICTURES, PROMPTS, IDS)
    np.testing.assert_array_equal(direct, made)


def test_what_is_asked_twice_is_encoded_once(tmp_path):
    asked = source(tmp_path)
    vectors, _ = asked.features([PICTURES[0]] * 3, ["x"] * 3, ["a", "b", "c"])
    assert asked.encoder_calls == 1
    np.testing.assert_array_equal(vectors[0], vectors[2])


@pytest.mark.parametrize(
    ("change", "misses"),
    [
        pytest.param({"prompt": "darker"}, 1, id="prompt"),
        pytest.param({"pixel": True}, 1, id="pixel"),
        pytest.param({"settings": replace(SETTINGS, revision="2")}, 4, id="revision"),
        pytest.param({"settings": replace(SETTINGS, model_name="other")}, 4, id="encoder"),
        pytest.param({"settings": replace(SETTINGS, dtype="bfloat16")}, 4, id="dtype"),
        pytest.param({"settings": replace(SETTINGS, input_mode="overlay")}, 4, id="input mode"),
        pytest.param({"settings": replace(SETTINGS, scope="crop")}, 4, id="scope"),
        pytest.param({"settings": replace(SETTINGS, source="image", feature_dim=16)}, 4, id="source"),
        pytest.param({}, 0, id="nothing"),
        pytest.param({"settings": replace(SETTINGS, device="cuda")}, 0, id="device changes no value"),
    ],
)
def test_every_input_of_a_feature_is_in_its_key(tmp_path, change, misses):
    """Acceptance check 20."""
    source(tmp_path).features(PICTURES, PROMPTS, IDS)
    pictures, prompts = [picture.copy() for picture in PICTURES], list(PROMPTS)
    if "prompt" in change:
        prompts[1] = change["prompt"]
    if "pixel" in change:
        pictures[2][0, 0, 0] ^= 1
    asked = source(tmp_path, change.get("settings", SETTINGS))
    asked.features(pictures, prompts, IDS)
    assert asked.encoder_calls == misses


def test_ids_and_file_names_are_no_key(tmp_path):
    source(tmp_path).features(PICTURES, PROMPTS, IDS)
    asked = source(tmp_path)
    renamed, _ = asked.features(PICTURES[::-1], PROMPTS[::-1], IDS)
    assert asked.encoder_calls == 0
    np.testing.assert_array_equal(renamed, source(tmp_path).features(PICTURES, PROMPTS, IDS)[0][::-1])


def test_crop_boxes_count_under_crop_scope_only(tmp_path):
    crop = source(tmp_path, replace(SETTINGS, scope="crop"))
    for left in (0, 4):
        crop.features([PICTURES[0]], ["x"], ["a"], [(0, left, 20, 24)])
    assert crop.encoder_calls == 2
    image = source(tmp_path)
    for left in (0, 4):
        image.features([PICTURES[0]], ["x"], ["a"], [(0, left, 20, 24)])
    assert image.encoder_calls == 1
    assert feature_key(PICTURES[0], "x", {}, (0, 0, 4, 4)) != feature_key(PICTURES[0], "x", {})


def test_pictures_of_one_length_but_two_shapes_differ():
    pixels = np.zeros((4, 6, 3), np.uint8)
    assert feature_key(pixels, "", {}) != feature_key(pixels.reshape(6, 4, 3), "", {})
    with pytest.raises(DataError, match="uint8"):
        feature_key(np.zeros((4, 6, 3), np.float32), "", {})


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


@pytest.mark.parametrize("damage", ["truncated", "bit", "gone", "index"])
def test_damaged_entries_are_made_again_and_counted(tmp_path, damage):
    """Acceptance check 20."""
    made, _ = source(tmp_path).features(PICTURES, PROMPTS, IDS)
    (shard,) = shards(tmp_path)
    (index,) = [path for path in shard.parent.glob("*.json") if len(path.stem) == 64]
    content = shard.read_bytes()
    if damage == "truncated":
        shard.write_bytes(content[:-7])
    elif damage == "bit":
        shard.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif damage == "gone":
        shard.unlink()
    else:
        index.write_text(index.read_text()[:-30])
    asked = source(tmp_path)
    again, _ = asked.features(PICTURES, PROMPTS, IDS)
    np.testing.assert_array_equal(again, made)
    assert asked.encoder_calls == (1 if damage == "bit" else 4)
    assert asked.counts.damaged >= 1
    healed = FeatureSource(SETTINGS, open_store(tmp_path), forbidden)
    np.testing.assert_array_equal(healed.features(PICTURES, PROMPTS, IDS)[0], made)
    assert healed.counts.damaged == 0


def test_cache_only_misses_are_errors_and_load_nothing(tmp_path):
    """Acceptance check 20."""
    source(tmp_path).features(PICTURES[:2], PROMPTS[:2], IDS[:2])
    strict = replace(SETTINGS, cache_only=True)
    asked = FeatureSource(strict, open_store(tmp_path), forbidden)
    vectors, _ = asked.features(PICTURES[:2], PROMPTS[:2], IDS[:2])
    assert vectors.shape == (2, 16)
    with pytest.raises(DataError, match=r"2 of 4 features are not in the cache .*'c', 'd'"):
        asked.features(PICTURES, PROMPTS, IDS)
    with pytest.raises(DataError, match="knows nothing of the encoder"):
        _ = FeatureSource(strict, open_store(tmp_path / "empty"), forbidden).encoder
    with pytest.raises(ConfigError, match="without a feature cache"):
        FeatureSource(strict, None)


def test_cache_only_through_prepare(make_config, tmp_path):
    first = make_config()
    made = make_data(first).prepared.splits["train-features"]
    shutil.rmtree(tmp_path / "cache" / "prepared")
    strict = make_config("model.vlm_film_config.cache_only=true")
    again = make_data(strict)
    assert again.prepared.splits["train-features"] == made
    empty = make_config("model.vlm_film_config.cache_only=true", f"root={tmp_path / 'elsewhere'}")
    with pytest.raises(DataError, match="not in the cache"):
        make_data(empty)
    assert open_data(first, again).features.encoder_calls == 0


def test_a_failed_answer_stays_absent(tmp_path):
    class Silent(StubEncoder):
        def encode(self, pictures, prompts, ids):
            return super().encode(pictures, prompts, ids)._replace(present=np.array([name != "a" for name in ids]))

    _, present = FeatureSource(SETTINGS, open_store(tmp_path), Silent).features(PICTURES, PROMPTS, IDS)
    _, again = FeatureSource(SETTINGS, open_store(tmp_path), forbidden).features(PICTURES, PROMPTS, IDS)
    assert present.tolist() == again.tolist() == [False, True, True, True]


def test_verify_finds_vectors_that_another_encoder_made(tmp_path):
    pictures = [np.random.default_rng(n).integers(0, 255, (8, 8, 3), dtype=np.uint8) for n in range(150)]
    prompts, ids = ["x"] * 150, [str(n) for n in range(150)]
    asked = source(tmp_path)
    asked.features(pictures, prompts, ids)
    calls = asked.encoder_calls
    assert asked.verify(pictures, prompts, ids) == []
    assert asked.encoder_calls == calls + 2  # 1 % of 150, rounded

    class Other(StubEncoder):
        def _project(self, part, numbers):
            return -super()._project(part, numbers)

    other = FeatureSource(SETTINGS, open_store(tmp_path), Other)
    assert len(other.verify(pictures, prompts, ids)) == 2
    assert cosine_distance(np.array([1.0, 0.0]), np.array([1.0, 0.001])) < 1e-2
    assert cosine_distance(np.array([1.0, 0.0]), np.array([-1.0, 0.0])) == pytest.approx(2.0)
    assert cosine_distance(np.zeros(2), np.zeros(2)) == 0.0
    assert cosine_distance(np.zeros(2), np.ones(2)) == 1.0


def test_values_on_disk_are_half_precision_and_exact(tmp_path):
    made, _ = source(tmp_path).features(PICTURES, PROMPTS, IDS)
    stored = load_file(shards(tmp_path)[0])
    assert all(array.dtype == np.float16 for array in stored.values())
    np.testing.assert_array_equal(made, made.astype(np.float16).astype(np.float32))
    exact = source(tmp_path / "full", replace(SETTINGS, embedding_dtype="float32"))
    exact.features(PICTURES, PROMPTS, IDS)
    assert all(array.dtype == np.float32 for array in load_file(shards(tmp_path / "full")[0]).values())
