"""Condition encoders without weights: the locality rule, the stub, pictures, precomputed vectors, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from stageline.errors import ConfigError, DataError, MissingPartError
from stageline.families.film_flow.conditions.encoder import (
    EncoderSettings,
    canonical_picture,
    encoder_settings,
    grid_size,
    paint_mask,
    round_feature,
)
from stageline.families.film_flow.conditions.features import FeatureSource, cosine_distance, load_encoder
from stageline.families.film_flow.conditions.stub import StubEncoder, describe_picture, describe_text
from stageline.families.film_flow.data.tree_pictures import make_prompted_picture


def pictures(count, size=48):
    pictures = [make_prompted_picture(0, "val", n, size) for n in range(count)]
    return [np.repeat(made.pixels[..., None], 3, axis=2) for made in pictures]


def settings(**fields) -> EncoderSettings:
    return EncoderSettings(**{"encoder": "stub", "feature_dim": 16, **fields})


PROMPTS = ["dark branches", "bright branches", "vessels", "a", "b", "c", "dark branches", ""]


@pytest.mark.parametrize("source", ["image", "text", "image+text"])
def test_condition_is_identical_at_batch_one_and_eight(source):
    """Acceptance check 16."""
    encoder, images = StubEncoder(settings(source=source)), pictures(8)
    ids = [str(n) for n in range(8)]
    together = encoder.encode(images, PROMPTS, ids)
    assert together.vec.shape == (8, 32 if source == "image+text" else 16)
    assert together.present.tolist() == [True] * 8
    order = [5, 2, 7, 0, 1, 3, 4, 6]
    shuffled = encoder.encode([images[n] for n in order], [PROMPTS[n] for n in order], ids)
    assert np.array_equal(shuffled.vec, together.vec[order])
    for n in range(8):
        alone = StubEncoder(settings(source=source)).encode(images[n : n + 1], PROMPTS[n : n + 1], ids[n : n + 1])
        assert np.array_equal(alone.vec[0], together.vec[n])


def test_a_batch_of_one_is_not_centred_to_zero():
    vector = StubEncoder(settings(source="image")).encode(pictures(1), ["x"], ["x"]).vec
    assert np.linalg.norm(vector) > 0.1


def test_stub_tells_prompts_and_pictures_apart():
    encoder = StubEncoder(settings(source="text", feature_dim=64))
    vectors = encoder.encode(pictures(3), ["dark branches", "bright branches", "Dark Branches "], ["a", "b", "c"]).vec
    assert np.array_equal(vectors[0], vectors[2])
    assert 1 - cosine_distance(vectors[0], vectors[1]) < 0.9
    assert 0.3 < float(vectors[0].std()) < 3
    images = StubEncoder(settings(source="image", feature_dim=64)).encode(pictures(2), ["x", "x"], ["a", "b"]).vec
    assert not np.array_equal(images[0], images[1])


def test_descriptions_have_the_stated_parts():
    flat = describe_picture(np.full((20, 20, 3), 128, np.uint8))
    assert flat.shape == (32 + 3 * 8 + 3,)
    assert (flat[:32] > 0).sum() == 1
    assert not flat[32:56].any()
    ramp = np.repeat(np.repeat(np.arange(0, 200, 5, dtype=np.uint8)[None], 40, axis=0)[..., None], 3, axis=2)
    orientation = describe_picture(ramp)[32:40]
    assert orientation.argmax() in (3, 4)  # brightness rises along the columns: angle 0
    assert np.linalg.norm(describe_text("dark branches")) == pytest.approx(1.0)
    assert not describe_text("  ").any()


def test_features_are_rounded_to_the_cache_format_at_once():
    for dtype in ("float16", "float32"):
        vector = StubEncoder(settings(embedding_dtype=dtype)).encode(pictures(1), ["x"], ["x"]).vec[0]
        np.testing.assert_array_equal(vector, vector.astype(dtype).astype(np.float32))
    with pytest.raises(DataError, match="not finite as float16"):
        round_feature(np.full(16, 1e6), settings(), "big")
    assert round_feature(np.full(16, 1e6), settings(embedding_dtype="float32"), "big")[0] == 1e6


def test_feature_size_is_compared_with_both_numbers():
    with pytest.raises(ConfigError, match=r"(?s)gives 20 numbers per sample, but feature_dim 16.*\(20\)") as caught:
        round_feature(np.zeros(20), settings(), "x")
    assert caught.value.code == "E_FEATURE_DIM"


def test_canonical_pictures():
    picture = pictures(1, 64)[0]
    assert canonical_picture(picture, "none") is not None
    small = canonical_picture(picture, "square:32,32")
    assert small.shape == (32, 32, 3)
    np.testing.assert_array_equal(canonical_picture(small, "square:32,32"), small)
    grid = canonical_picture(picture, "grid:28,784,3136")
    assert grid.shape == (56, 56, 3)
    np.testing.assert_array_equal(canonical_picture(grid, "grid:28,784,3136"), grid)
    with pytest.raises(DataError, match="expected"):
        canonical_picture(picture[..., :1], "none")
    with pytest.raises(ConfigError, match="resize"):
        canonical_picture(picture, "cubic:3")


@pytest.mark.parametrize("size", [(10, 10), (400, 401), (33, 1000), (2000, 1500), (28, 28), (100, 60)])
def test_grid_sizes_keep_factor_limits_and_aspect(size):
    rows, columns = grid_size(*size, factor=28, min_pixels=3136, max_pixels=1_003_520)
    assert rows % 28 == columns % 28 == 0
    assert 3136 <= rows * columns <= 1_003_520
    assert grid_size(rows, columns, 28, 3136, 1_003_520) == (rows, columns)
    assert abs(np.log((rows / columns) / (size[0] / size[1]))) < 0.7


def test_grid_sizes_agree_with_the_published_processor():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = (int(side) for side in rng.integers(20, 1500, 2))
        expected = smart_resize(height, width, 28, 3136, 1_003_520)
        assert grid_size(height, width, 28, 3136, 1_003_520) == tuple(expected)
    with pytest.raises(DataError, match="too narrow"):
        grid_size(10, 2010, 28, 3136, 1_003_520)


def test_painted_pictures():
    picture, mask = np.full((4, 5, 3), 100, np.uint8), np.zeros((4, 5), np.uint8)
    mask[1] = 1
    assert paint_mask(picture, mask, "raw", 0.5) is picture
    overlay = paint_mask(picture, mask, "overlay", 0.25)
    assert overlay[1, 0].tolist() == [139, 75, 75]
    np.testing.assert_array_equal(overlay[0], picture[0])
    alone = paint_mask(picture, mask, "mask_only", 0.5)
    assert alone[1].min() == 255
    assert alone[0].max() == 0
    with pytest.raises(DataError, match="mask of"):
        paint_mask(picture, mask[:3], "overlay", 0.5)
    with pytest.raises(ConfigError, match="input_mode"):
        paint_mask(picture, mask, "blink", 0.5)


def test_precomputed_vectors_by_id(tmp_path):
    vectors = {"val/a": np.arange(16, dtype=np.float32), "b": np.ones(16, dtype=np.float32)}
    save_file(vectors, tmp_path / "v.safetensors")
    named = settings(encoder="precomputed", model_name=str(tmp_path / "v.safetensors"))
    given = load_encoder(named).encode(pictures(2), ["", ""], ["val/a", "train/b"])
    np.testing.assert_array_equal(given.vec[0], vectors["val/a"])
    assert given.vec[1].sum() == 16
    with pytest.raises(DataError) as caught:
        load_encoder(named).encode(pictures(3), [""] * 3, ["val/a", "val/x", "y"])
    assert "'val/x': no vector" in str(caught.value)
    assert "'y': no vector" in str(caught.value)
    with pytest.raises(ConfigError, match="gives 16 numbers"):
        load_encoder(settings(encoder="precomputed", model_name=named.model_name, feature_dim=8)).encode(
            pictures(1), [""], ["b"]
        )
    with pytest.raises(DataError, match="cannot be read"):
        load_encoder(settings(encoder="precomputed", model_name=str(tmp_path / "none.safetensors")))


def test_no_encoder_gives_no_condition():
    given = load_encoder(settings(encoder="none")).encode(pictures(2), ["", ""], ["a", "b"])
    assert given.vec.shape == (2, 0)
    assert given.present.tolist() == [False, False]
    vectors, present = FeatureSource(settings(encoder="none", feature_dim=0)).features(pictures(1), [""], ["a"])
    assert vectors.shape == (1, 0)
    assert not present.any()


def test_missing_parts_and_unknown_encoders_are_named():
    with pytest.raises(MissingPartError, match="open_clip"):
        load_encoder(settings(encoder="biomedclip"))
    with pytest.raises(ConfigError, match="no encoder 'resnet'"):
        load_encoder(settings(encoder="resnet"))
    with pytest.raises(ConfigError, match="answers no questions"):
        load_encoder(settings(source="probe"))
    with pytest.raises(DataError, match="give one of each"):
        StubEncoder(settings()).encode(pictures(2), ["x"], ["a", "b"])


def test_settings_come_from_the_config(make_config):
    config = make_config(
        "model.cond_source=image+text",
        "model.vlm_film_config.revision=abc",
        "model.vlm_film_config.embedding_dtype=float32",
        "model.vlm_film_config.cache_only=true",
    )
    made = encoder_settings(config)
    assert (made.encoder, made.source, made.revision, made.width) == ("stub", "image+text", "abc", 32)
    assert made.cache_only
    assert "cache_only" not in made.identity()
    assert "device" not in made.identity()
    assert made.fingerprint != encoder_settings(make_config()).fingerprint
    assert encoder_settings(make_config("model.use_vlm_film=false")).encoder == "none"
