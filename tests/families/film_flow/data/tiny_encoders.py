"""Vision-language models of a few thousand random weights, saved to a folder as real ones are; no network."""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

if TYPE_CHECKING:  # looking through all of transformers takes a second, also where nobody runs these tests
    from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
WORDS = [*SPECIAL, *VISION, *string.ascii_letters, *string.digits, *".,: '()?-", "\n"]


def save_tokenizer(folder: Path, *, two_tokens: bool = False) -> PreTrainedTokenizerFast:
    """One token per character; special tokens are whole. two_tokens: digits and capitals take a second one."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    if two_tokens:
        marked = [normalizers.Replace(letter, f"-{letter}") for letter in "12345678ABCDEFGHI"]
        tokenizer.normalizer = normalizers.Sequence(marked)
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([*SPECIAL, *VISION])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)
    fast.save_pretrained(folder)
    return fast


def _towers() -> tuple[dict[str, Any], dict[str, Any]]:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    text = {**sizes, **tokens, "vocab_size": len(WORDS), "max_position_embeddings": 48}
    return text, {**sizes, "image_size": 32, "patch_size": 8}


def save_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    text, vision = _towers()
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_siglip(folder: Path) -> Path:
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    text, vision = _towers()
    torch.manual_seed(0)
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_siglip2(folder: Path) -> Path:
    from transformers import Siglip2Config, Siglip2ImageProcessorPil, Siglip2Model

    text, vision = _towers()
    del vision["image_size"]
    torch.manual_seed(0)
    Siglip2Model(Siglip2Config(text_config=text, vision_config={**vision, "num_patches": 16})).save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_qwen(folder: Path, version: str, *, two_tokens: bool = False) -> Path:
    """version: `2.5` or `3`. The head is saved too, so the folder serves features and the probe alike."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
    )

    tokenizer = save_tokenizer(folder, two_tokens=two_tokens)
    ids = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in ids.items()}
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    vision = {"depth": 1, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16, "hidden_size": 16}
    torch.manual_seed(0)
    if version == "3":
        text |= {"head_dim": 8}
        vision |= {"patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        config = Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
        Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    else:
        vision |= {"fullatt_block_indexes": [0]}
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    patch = 16 if version == "3" else 14
    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": (8 * patch) ** 2}
    Qwen2VLImageProcessorPil(patch_size=patch, size=size).save_pretrained(folder)
    return folder
