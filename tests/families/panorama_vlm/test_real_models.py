"""Real sizes on the meta device, and the real loading code on folders that transformers wrote."""

from __future__ import annotations

import json
import re
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import small, trained
from safetensors.torch import load_file, save_file
from tiny_language import tiny_model, tiny_tokenizer
from torch import nn
from transformers import (
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from stageline.checkpoint.layout import StageDir
from stageline.errors import StagelineError
from stageline.families import load_family, parse_config, raw_preset
from stageline.families.panorama_vlm.config import FAMILY_CONFIG, STAGES, PanoramaVlmConfig
from stageline.families.panorama_vlm.config.architectures import language_numbers, vision_numbers
from stageline.families.panorama_vlm.data.tokenizer import save_tokenizer
from stageline.families.panorama_vlm.model.assembly import load_externals
from stageline.families.panorama_vlm.model.tower import packed, view_tokens
from stageline.stage import stage_config
from stageline.telemetry import read_events
from stageline.trainer.schedule import learning_rate_factor
from stageline.verbs.prepare import prepare_data

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 8,
}


def real(*overrides: str) -> PanoramaVlmConfig:
    raw = {**raw_preset("panorama_vlm", "base"), "data": {"name": "rooms"}}
    return parse_config(raw, ("run=real", *overrides))


def on_meta(config: PanoramaVlmConfig, stage: str) -> nn.Module:
    with torch.device("meta"):
        return load_family("panorama_vlm").build_model(stage_config(config, STAGES[stage]), STAGES[stage])


def weights(model: nn.Module, part: str) -> int:
    return sum(value.numel() for name, value in model.named_parameters() if part in name)


@pytest.mark.parametrize(("kind", "millions"), [("mlp", 11.5), ("bimamba", 28.8)])
def test_resamplers_at_real_size(kind: str, millions: float) -> None:
    model = on_meta(real(f"model.resampler_type={kind}"), "resampler")
    assert weights(model, "resampler.") / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize(("overlap", "views", "tokens"), [(0, 5, 320), (0.25, 7, 448), (0.5, 9, 576)])
def test_image_tokens_at_real_size(overlap: float, views: int, tokens: int) -> None:
    """Check 10: what the config says is what the model of that size has."""
    config = real(f"image_processing.overlap_ratio={overlap}")
    assert (config.image_processing.plan.num_views, config.image_tokens) == (views, tokens)
    assert on_meta(config, "resampler").resampler.num_tokens == tokens


def test_a_finetune_checkpoint_at_real_size() -> None:
    """20.2 M adapter weights; own tensors below 0.6 GB: frozen weights of others are not among them."""
    config = real()
    own = stage_config(config, STAGES["finetune"])
    model = on_meta(config, "finetune")
    assert weights(model, "lora_") / 1e6 == pytest.approx(20.2, rel=0.01)
    external = FAMILY_CONFIG.externals(own, STAGES["finetune"])
    trains = FAMILY_CONFIG.trains(own, STAGES["finetune"])
    kept = sum(
        value.numel() * 4
        for name, value in model.named_parameters()
        if trains.matches(name) or not any(fnmatchcase(name, pattern) for part in external for pattern in part.patterns)
    )
    assert kept < 0.6e9


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as the hub has them: towers of both kinds, a whole SigLIP, a language model with its tokenizer."""
    place = tmp_path_factory.mktemp("hub")
    torch.manual_seed(3)
    vision = SiglipVisionConfig(image_size=32, **SIZES)
    SiglipVisionModel(vision).save_pretrained(str(place / "siglip-tower"))
    Siglip2VisionModel(Siglip2VisionConfig(num_patches=16, **SIZES)).save_pretrained(str(place / "naflex-tower"))
    text = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    whole = SiglipConfig(text_config={**text, "vocab_size": 40}, vision_config=vision.to_dict())
    SiglipModel(whole).save_pretrained(str(place / "siglip-whole"))
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, seed=5).save_pretrained(str(place / "qwen"))
    save_tokenizer(tokenizer, place / "qwen")
    return place


def on_folders(root: Path, folders: Path, tower: str = "siglip-tower", *overrides: str) -> PanoramaVlmConfig:
    """A run whose tower and language model are folders."""
    keys = (
        "model.profile=null",
        f"model.vision_name={folders / tower}",
        f"model.language_model_name={folders / 'qwen'}",
    )
    return small(root, *keys, *overrides)


@pytest.mark.parametrize("tower", ["siglip-tower", "siglip-whole"])
def test_weights_come_from_folders(tmp_path: Path, folders: Path, tower: str) -> None:
    """A tower alone, and a whole model whose text tower is not needed, are read bit for bit."""
    config = on_folders(tmp_path, folders, tower, "stages=[resampler]")
    prepare_data(config)
    own = stage_config(config, STAGES["resampler"])
    model = load_family("panorama_vlm").build_model(own, STAGES["resampler"])
    load_externals(own, STAGES["resampler"], model)
    files = load_file(folders / tower / "model.safetensors")
    read = {name.removeprefix("vision_model."): value for name, value in files.items()}
    state = model.state_dict()
    tensors = [name for name in state if name.startswith("vision.")]
    assert tensors
    for name in tensors:
        assert torch.equal(state[name], read[name.removeprefix("vision.")]), name
    language = load_file(folders / "qwen" / "model.safetensors")
    for name, value in language.items():
        assert torch.equal(state[f"language.{name}"], value), name


@pytest.mark.parametrize("fault", ["missing", "sizes", "pointer"])
def test_faulty_folders_are_refused_by_name(tmp_path: Path, folders: Path, fault: str) -> None:
    """A missing tensor, other sizes and a git-lfs pointer."""
    broken = tmp_path / "hub"
    shutil.copytree(folders, broken)
    file = broken / "siglip-tower" / "model.safetensors"
    words = "post_layernorm"
    overrides: tuple[str, ...] = ()
    if fault == "missing":
        kept = {name: value for name, value in load_file(file).items() if "post_layernorm.weight" not in name}
        save_file(kept, file, metadata={"format": "pt"})
    elif fault == "sizes":
        sizes = "{hidden_size: 64, intermediate_size: 96, num_layers: 2, num_heads: 4, image_size: 32, patch_size: 8}"
        overrides, words = (f"model.vision_config={sizes}",), "hidden_size"
    else:
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
        words = "git-lfs"
    config = on_folders(tmp_path / "root", broken, "siglip-tower", "stages=[resampler]", *overrides)
    own = stage_config(config, STAGES["resampler"])

    def read() -> None:
        prepare_data(config)
        load_externals(own, STAGES["resampler"], load_family("panorama_vlm").build_model(own, STAGES["resampler"]))

    with pytest.raises(StagelineError, match=words):
        read()


def in_hub_cache(cache: Path, folders: Path) -> None:
    """The folders as a hub client keeps them, commits that point to blobs; branch `v1` of the tower is another one."""
    for name, source, branch in (("tower", "siglip-tower", "v1"), ("qwen", "qwen", "main")):
        repository = cache / f"models--org--{name}"
        for place in ("blobs", "refs", f"snapshots/{COMMIT}"):
            (repository / place).mkdir(parents=True)
        (repository / "refs" / branch).write_text(COMMIT)
        for file in (folders / source).iterdir():
            shutil.copyfile(file, repository / "blobs" / file.name)
            (repository / "snapshots" / COMMIT / file.name).symlink_to(f"../../blobs/{file.name}")


COMMIT = "c0ffee" + 34 * "0"


@pytest.mark.parametrize(
    ("revision", "words"),
    [
        ("v1", ""),
        (COMMIT, ""),
        ("main", r"lacks revision 'main' of it \(which has of it: c0ffee000000\).*hf download org/tower"),
        ("v1 pointer", "model.safetensors: a git-lfs pointer of"),
        ("v1 missing", "they lack 1 tensors: post_layernorm.weight"),
    ],
)
def test_models_by_name_and_revision_from_the_cache_of_a_hub_client(
    tmp_path: Path, folders: Path, monkeypatch: pytest.MonkeyPatch, revision: str, words: str
) -> None:
    """Without a network; what the cache lacks, or what is no whole model there, is refused by name."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    in_hub_cache(tmp_path / "hub", folders)
    revision, _, fault = revision.partition(" ")
    file = tmp_path / "hub/models--org--tower/blobs/model.safetensors"
    if fault == "pointer":
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    elif fault == "missing":
        kept = {name: value for name, value in load_file(file).items() if "post_layernorm.weight" not in name}
        save_file(kept, file, metadata={"format": "pt"})
    sizes = [json.loads((folders / name / "config.json").read_text()) for name in ("siglip-tower", "qwen")]
    keys = (
        *("model.profile=null", "model.vision_name=org/tower", "model.language_model_name=org/qwen"),
        f"model.vision_config={json.dumps(vision_numbers(sizes[0]))}",
        f"model.language_config={json.dumps(language_numbers(sizes[1]))}",
    )
    config = small(tmp_path / "root", *keys, f"model.vision_revision={revision}", "stages=[resampler]")
    own = stage_config(config, STAGES["resampler"])

    def read() -> dict[str, torch.Tensor]:
        prepare_data(config)
        model = load_family("panorama_vlm").build_model(own, STAGES["resampler"])
        load_externals(own, STAGES["resampler"], model)
        return dict(model.state_dict())

    if words:
        with pytest.raises(StagelineError) as refused:
            read()
        assert re.search(words, str(refused.value), re.DOTALL), refused.value
        return
    state = read()
    for part, folder in (("vision", "siglip-tower"), ("language", "qwen")):
        files = load_file(folders / folder / "model.safetensors")
        own_names = [name for name in state if name.startswith(f"{part}.") and name != "language.lm_head.weight"]
        assert own_names
        for name in own_names:
            assert torch.equal(state[name], files[name.removeprefix(f"{part}.")]), name


def test_the_schedule_ends_with_the_last_step(tmp_path: Path, folders: Path) -> None:
    """Check 12: in optimizer steps, with 4 micro-batches each and 2 in the last of an epoch, of true size."""
    keys = ("trainer.batch_size=3", "trainer.accumulate_grad_batches=4", "trainer.max_steps=null")
    more = ("trainer.max_epochs=2", "trainer.log_every_steps=1", "trainer.final_lr_fraction=0.1", "stages=[resampler]")
    config = on_folders(tmp_path, folders, "siglip-tower", *keys, *more)
    trained(config, "resampler")
    events = read_events(StageDir(config.root, config.run, "resampler", "anyres-e2p_mlp").store)
    (started,) = [event for event in events if event["event"] == "started"]
    steps = [event for event in events if event["event"] == "step"]
    own = stage_config(config, STAGES["resampler"]).trainer
    assert started["steps"] == len(steps) == 4  # 16 rows: 12 + 4, twice
    assert [event["num_samples"] for event in steps] == [12, 4, 12, 4]
    assert [event["learning_rate"] for event in steps] == pytest.approx(
        [own.learning_rate * learning_rate_factor(step, 4, own) for step in range(4)]
    )
    assert learning_rate_factor(4, 4, own) == pytest.approx(0.1)


@pytest.mark.parametrize("mode", ["stretch", "naflex"])
def test_a_naflex_tower_trains(tmp_path: Path, folders: Path, mode: str) -> None:
    """Patches of any grid; the whole panorama twice as wide as high where the global view says so."""
    keys = ("model.vision_class=siglip2_naflex", f"image_processing.global_mode={mode}", "trainer.max_steps=1")
    sizes = "{width: 32, depth: 1, heads: 2, head_dim: 16, queries: 4}"
    pool = ("model.resampler_type=perceiver", f"model.resampler_config={sizes}")
    config = on_folders(tmp_path, folders, "naflex-tower", *keys, *pool, "stages=[resampler]")
    ref = trained(config, "resampler")["resampler"]
    assert ref.metadata.facts["global_mode"] == mode


def test_packed_patches_are_read_as_the_picture_that_they_are_of(folders: Path) -> None:
    """A picture of 2 x 4 patches packed into a square of 4 x 4: the tower's tokens are those of the picture alone."""
    torch.manual_seed(7)
    naflex = Siglip2VisionModel.from_pretrained(str(folders / "naflex-tower")).eval()
    wide = torch.rand(3, 16, 32)
    grids = torch.tensor([[2, 4]])
    with torch.no_grad():
        found = view_tokens(naflex, packed(wide, 32, 8)[None], grids)[:, :8]
        patches = ((wide - 0.5) / 0.5).unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 3, 4, 0).reshape(1, 8, 192)
        mask = torch.ones(1, 8, dtype=torch.int32)
        alone = naflex(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=grids).last_hidden_state
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
