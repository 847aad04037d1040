"""CLIP, SigLIP, SigLIP2 and Qwen-VL through transformers, with tiny random weights saved by the test; no network."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stageline.errors import CheckpointError, ConfigError, DataError, MissingPartError
from stageline.families.film_flow.conditions.encoder import EncoderSettings
from stageline.families.film_flow.conditions.features import FeatureSource, load_encoder
from stageline.families.film_flow.conditions.questionnaire import PROBE_WIDTH, QUESTIONS
from stageline.families.film_flow.conditions.vlm import pick_device, pooled_vectors
from stageline.store import open_store

from .tiny_encoders import save_clip, save_qwen, save_siglip, save_siglip2, save_tokenizer

KINDS = {"clip": ("clip", 12), "siglip": ("siglip2", 16), "siglip2": ("siglip2", 16)}
KINDS |= {"qwen2.5": ("qwen-vl", 16), "qwen3": ("qwen-vl", 16)}
PICTURES = [np.random.default_rng(n).integers(0, 255, (40 + 3 * n, 60, 3), dtype=np.uint8) for n in range(3)]
PROMPTS = ["dark branches", "bright branches", "vessels"]
IDS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    save_clip(root / "clip")
    save_siglip(root / "siglip")
    save_siglip2(root / "siglip2")
    save_qwen(root / "qwen2.5", "2.5")
    save_qwen(root / "qwen3", "3")
    save_qwen(root / "two-tokens", "2.5", two_tokens=True)
    return root


def settings(folder, kind, **fields) -> EncoderSettings:
    encoder, width = KINDS[kind]
    return EncoderSettings(**{"encoder": encoder, "model_name": str(folder / kind), "feature_dim": width, **fields})


@pytest.mark.parametrize("kind", KINDS)
def test_each_sample_is_encoded_alone(folder, kind):
    encoder = load_encoder(settings(folder, kind, source="image+text"))
    together = encoder.encode(PICTURES, PROMPTS, IDS)
    width = KINDS[kind][1]
    assert together.vec.shape == (3, 2 * width)
    assert together.present.tolist() == [True] * 3
    for n in range(3):
        alone = encoder.encode(PICTURES[n : n + 1], PROMPTS[n : n + 1], IDS[n : n + 1])
        assert np.array_equal(alone.vec[0], together.vec[n])
    assert len({tuple(row) for row in together.vec[:, :width].tolist()}) == 3
    assert len({tuple(row) for row in together.vec[:, width:].tolist()}) == 3
    halves = [
        load_encoder(settings(folder, kind, source=s)).encode(PICTURES, PROMPTS, IDS).vec for s in ("image", "text")
    ]
    assert np.array_equal(np.concatenate(halves, axis=1), together.vec)


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_are_frozen_and_in_eval_mode(folder, kind):
    encoder = load_encoder(settings(folder, kind))
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert not isinstance(encoder, torch.nn.Module)
    vector = encoder.encode(PICTURES[:1], PROMPTS[:1], IDS[:1]).vec
    assert type(vector) is np.ndarray, "numbers, of which no graph knows"


def test_clip_agrees_with_the_library_on_a_picture_of_its_own_size(folder):
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    picture = np.random.default_rng(7).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    made = load_encoder(settings(folder, "clip", source="image+text", embedding_dtype="float32"))
    vector = made.encode([picture], ["dark"], ["x"]).vec[0]
    model, path = CLIPModel.from_pretrained(folder / "clip").eval(), folder / "clip"
    inputs = CLIPImageProcessorPil.from_pretrained(path)(images=Image.fromarray(picture), return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(path)("dark", return_tensors="pt")
    with torch.no_grad():
        image = model.get_image_features(**inputs).pooler_output[0]
        text = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output[0]
    np.testing.assert_allclose(vector, torch.cat([image, text]).numpy(), atol=1e-6, rtol=1e-5)


def test_qwen_feature_is_the_mean_of_the_merged_tokens(folder):
    from transformers import AutoModel, Qwen2VLImageProcessorPil

    picture = PICTURES[0]
    vector = load_encoder(settings(folder, "qwen2.5", embedding_dtype="float32")).encode([picture], [""], ["x"]).vec[0]
    model = AutoModel.from_pretrained(folder / "qwen2.5").eval()
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder / "qwen2.5")
    inputs = processor(images=Image.fromarray(picture), return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 2, 4]]
    with torch.no_grad():
        tokens = model.get_image_features(**inputs).pooler_output[0]
    assert tokens.shape == (2, 16)
    np.testing.assert_allclose(vector, tokens.mean(dim=0).numpy(), atol=1e-6, rtol=1e-5)


def test_the_whole_picture_is_seen(folder):
    """A narrow picture is squeezed, not cropped: its ends matter."""
    wide = np.full((32, 160, 3), 90, np.uint8)
    ends = wide.copy()
    ends[:, :20] = ends[:, -20:] = 255
    for kind in ("clip", "siglip", "siglip2"):
        vectors = load_encoder(settings(folder, kind)).encode([wide, ends], ["", ""], ["a", "b"]).vec
        assert not np.array_equal(vectors[0], vectors[1])


@pytest.mark.parametrize(
    "output",
    [
        torch.ones(2, 3),
        SimpleNamespace(pooler_output=torch.ones(2, 3)),
        SimpleNamespace(pooler_output=(torch.ones(4, 3), torch.ones(1, 3))),
        (torch.tensor([[0.0] * 3, [2.0] * 3]), torch.ones(5, 3)),
        [torch.ones(4, 3), torch.ones(1, 3)],
    ],
)
def test_adapter_takes_tensor_object_or_matrices(output):
    assert torch.equal(pooled_vectors(output, 2), torch.ones(2, 3))


@pytest.mark.parametrize(
    "output",
    [
        None,
        "text",
        {"pooler_output": torch.ones(2, 3)},
        torch.ones(3, 3),
        torch.ones(2, 4, 3),
        SimpleNamespace(last_hidden_state=torch.ones(2, 4, 3)),
        SimpleNamespace(pooler_output=None),
        (torch.ones(4, 3),),
        (torch.ones(3), torch.ones(3)),
        (torch.ones(0, 3), torch.ones(1, 3)),
        (torch.ones(1, 3), "x"),
    ],
)
def test_adapter_refuses_anything_else(output):
    with pytest.raises(TypeError, match="encoder output"):
        pooled_vectors(output, 2)


@pytest.mark.parametrize("kind", ["qwen2.5", "qwen3"])
def test_probe_answers_with_log_probabilities(folder, kind):
    asked = settings(folder, kind, source="probe", feature_dim=PROBE_WIDTH, embedding_dtype="float32")
    encoder = load_encoder(asked)
    assert PROBE_WIDTH == 74
    assert [len(question.answers) for question in QUESTIONS] == [8, 8, 9, 8, 8, 9, 8, 8, 8]
    given = encoder.encode(PICTURES[:2], ["", ""], IDS[:2])
    assert given.vec.shape == (2, 74)
    assert given.present.all()
    assert (given.vec < 0).all()
    start = 0
    for question in QUESTIONS:
        share = np.exp(given.vec[0, start : start + len(question.answers)]).sum()
        assert 0 < share <= 1
        start += len(question.answers)
    assert not np.array_equal(given.vec[0], given.vec[1])
    again = encoder.encode(PICTURES[1:2], [""], IDS[1:2])
    assert np.array_equal(again.vec[0], given.vec[1])


def test_probe_scores_strings_like_tokens_where_both_are_possible(folder):
    asked = settings(folder, "qwen2.5", source="probe", feature_dim=PROBE_WIDTH, embedding_dtype="float32")
    encoder = load_encoder(asked)
    inputs = dict(encoder.processor(images=Image.fromarray(PICTURES[0]), return_tensors="pt"))
    before = encoder._dialogue(inputs, QUESTIONS[0].text)
    tokens = encoder.tokens[0]
    at_once = encoder._answer(inputs, QUESTIONS[0].text, tokens)
    one_by_one = [float(encoder._score(inputs, before, ids).detach()) for ids in tokens]
    np.testing.assert_allclose(at_once, one_by_one, atol=1e-5)


def test_probe_scores_answers_of_several_tokens(folder):
    asked = replace(settings(folder, "qwen2.5"), model_name=str(folder / "two-tokens"), source="probe", feature_dim=74)
    encoder = load_encoder(asked)
    assert {len(ids) for tokens in encoder.tokens for ids in tokens} == {2}
    given = encoder.encode(PICTURES[:1], [""], ["a"])
    assert given.present.all()
    assert (given.vec < 0).all()
    with pytest.raises(ConfigError, match="an answer of the questionnaire has 2 tokens"):
        load_encoder(replace(asked, max_new_tokens=1))


def test_a_failed_answer_is_absent_not_made_up(folder):
    asked = settings(folder, "qwen2.5", source="probe", feature_dim=PROBE_WIDTH)
    encoder = load_encoder(asked)
    with torch.no_grad():
        encoder.model.lm_head.weight[0, 0] = float("nan")
    given = encoder.encode(PICTURES[:1], [""], ["a"])
    assert given.present.tolist() == [False]
    assert not given.vec.any()


def test_probe_refuses_a_tokenizer_without_its_letters(tmp_path):
    save_qwen(tmp_path / "q", "2.5")
    raw = json.loads((tmp_path / "q" / "tokenizer.json").read_text())
    for letter in "ABCDEFGHI":
        del raw["model"]["vocab"][letter]
    (tmp_path / "q" / "tokenizer.json").write_text(json.dumps(raw))
    asked = EncoderSettings("qwen-vl", str(tmp_path / "q"), source="probe", feature_dim=74)
    with pytest.raises(ConfigError, match="cannot tell the answers"):
        load_encoder(asked)


def test_sizes_that_do_not_fit_are_refused_with_both_numbers(folder):
    with pytest.raises(ConfigError, match=r"gives 12 numbers per sample, but feature_dim 512"):
        load_encoder(settings(folder, "clip", feature_dim=512)).encode(PICTURES[:1], [""], ["a"])
    with pytest.raises(ConfigError, match="74 numbers, feature_dim is 16"):
        load_encoder(settings(folder, "qwen2.5", source="probe"))


def test_prompts_longer_than_the_model_reads_are_refused(folder):
    for kind in ("clip", "siglip"):
        with pytest.raises(DataError, match=r"has 60 tokens, .* reads 48"):
            load_encoder(settings(folder, kind, source="text")).encode(PICTURES[:1], ["x" * 60], ["a"])


def test_wrong_kinds_missing_models_and_missing_names_are_named(folder, tmp_path):
    with pytest.raises(ConfigError, match="is a 'qwen2_5_vl' model"):
        load_encoder(replace(settings(folder, "clip"), model_name=str(folder / "qwen2.5")))
    with pytest.raises(ConfigError, match="is a 'clip' model"):
        load_encoder(replace(settings(folder, "qwen2.5"), model_name=str(folder / "clip")))
    with pytest.raises(MissingPartError, match=r"(?s)there is nothing at .*nothing.*hub id"):
        load_encoder(replace(settings(folder, "clip"), model_name=str(tmp_path / "nothing")))
    with pytest.raises(ConfigError, match=r"needs model\.vlm_film_config\.model_name"):
        load_encoder(EncoderSettings("clip"))
    with pytest.raises(ConfigError, match="answers no questions"):
        load_encoder(settings(folder, "clip", source="probe"))
    with pytest.raises(ConfigError, match="is no device"):
        pick_device("gpu-thing")
    assert pick_device("auto").type in ("cpu", "cuda")


def test_incomplete_weights_are_refused(folder, tmp_path):
    save_clip(tmp_path / "clip")
    weights = load_file(tmp_path / "clip" / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"not those of CLIPModel: they lack 1 tensors: visual_projection.weight"):
        load_encoder(settings(tmp_path, "clip"))


def test_pickled_weights_are_not_read(tmp_path):
    save_clip(tmp_path / "clip")
    weights = load_file(tmp_path / "clip" / "model.safetensors")
    (tmp_path / "clip" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "clip" / "pytorch_model.bin")
    with pytest.raises(DataError, match="as pickle only"):
        load_encoder(settings(tmp_path, "clip"))


def test_a_tokenizer_is_needed_for_text_only(tmp_path):
    save_siglip(tmp_path / "siglip")
    for path in (tmp_path / "siglip").glob("tokenizer*"):
        path.unlink()
    assert load_encoder(settings(tmp_path, "siglip")).encode(PICTURES[:1], ["x"], ["a"]).present.all()
    with pytest.raises(MissingPartError, match="tokenizer"):
        load_encoder(settings(tmp_path, "siglip", source="text"))
    save_tokenizer(tmp_path / "siglip")
    assert load_encoder(settings(tmp_path, "siglip", source="text")).encode(PICTURES[:1], ["x"], ["a"]).present.all()


def test_cache_knows_an_encoder_without_loading_it(folder, tmp_path):
    """A run under cache_only reads sizes and resize from the cache; even the model's folder may be gone."""
    for kind in ("clip", "qwen2.5"):
        known = settings(folder, kind)
        made, _ = FeatureSource(known, open_store(tmp_path / kind)).features(PICTURES, PROMPTS, IDS)

        def forbidden(_settings):
            raise AssertionError("loaded")

        strict = FeatureSource(replace(known, cache_only=True), open_store(tmp_path / kind), forbidden)
        again, _ = strict.features(PICTURES, PROMPTS, IDS)
        np.testing.assert_array_equal(made, again)
        # The key holds the picture after the encoder's own resize.
        assert strict.cache.notes["resize"] == {"clip": "square:32,32", "qwen2.5": "grid:28,784,12544"}[kind]


def test_half_precision_encoders(folder):
    full = load_encoder(settings(folder, "siglip")).encode(PICTURES, PROMPTS, IDS).vec
    half = load_encoder(settings(folder, "siglip", dtype="bfloat16"))
    assert next(half.model.parameters()).dtype == torch.bfloat16
    np.testing.assert_allclose(half.encode(PICTURES, PROMPTS, IDS).vec, full, atol=0.1, rtol=0.1)
