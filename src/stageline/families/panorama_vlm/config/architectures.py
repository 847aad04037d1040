"""Sizes of vision towers and language models: known by name, stated in the config, or those of the tiny profile.

A model is built from these numbers alone, so that it can be counted without its weights; whether the files agree is
checked when they are read. Sources: the `config.json` of the named repositories. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import Field

from stageline.config import Settings


class VisionShape(Settings):
    """Sizes of a SigLIP or SigLIP2 vision tower."""

    hidden_size: int = Field(ge=1)
    """D_v, width of a token."""
    intermediate_size: int = Field(ge=1)
    """Inner width of a block's MLP."""
    num_layers: int = Field(ge=1)
    """Encoder blocks."""
    num_heads: int = Field(ge=1)
    """Attention heads; they divide hidden_size."""
    patch_size: int = Field(ge=1)
    """Edge of a patch in pixels."""
    image_size: int = Field(ge=1)
    """Edge of the picture in pixels; of a NaFlex tower the square picture that uses all its positions."""

    @property
    def grid(self) -> int:
        """G, tokens along an edge of a square view."""
        return self.image_size // self.patch_size


class LanguageShape(Settings):
    """Sizes of a Qwen3 language model."""

    hidden_size: int = Field(ge=1)
    """D_llm, width of an embedding."""
    intermediate_size: int = Field(ge=1)
    """Inner width of a layer's MLP."""
    num_layers: int = Field(ge=1)
    """Decoder layers."""
    num_heads: int = Field(ge=1)
    """Query heads."""
    num_kv_heads: int = Field(ge=1)
    """Key and value heads; they divide num_heads."""
    head_dim: int = Field(ge=1)
    """Width of a head."""
    vocab_size: int = Field(ge=1)
    """Rows of the embedding."""
    max_positions: int = Field(default=40_960, ge=1)
    """Longest sequence in tokens."""
    rope_theta: float = Field(default=1e6, gt=0)
    """Base of the rotary frequencies."""
    tie_embeddings: bool = True
    """Whether the output layer is the embedding."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of weights that are made, not read."""


_TOWERS = {
    "base": (768, 3072, 12, 12),
    "large": (1024, 4096, 24, 16),
    "so400m": (1152, 4304, 27, 16),
    "giant-opt": (1536, 6144, 40, 16),
}
"""hidden_size, intermediate_size, num_layers, num_heads."""
_TOWER_NAME = re.compile(r"siglip2?-(base|large|so400m|giant-opt)-patch(\d+)-(?:(\d+)|naflex)")
NAFLEX_GRID = 16
"""A NaFlex tower has 256 positions by default."""

_QWEN3 = {
    "0.6B": (1024, 3072, 28, 16, 8, True),
    "1.7B": (2048, 6144, 28, 16, 8, True),
    "4B": (2560, 9728, 36, 32, 8, True),
    "8B": (4096, 12288, 36, 32, 8, False),
    "14B": (5120, 17408, 40, 40, 8, False),
    "32B": (5120, 25600, 64, 64, 8, False),
}
"""hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, tie_embeddings."""
_QWEN3_NAME = re.compile(r"Qwen3-([\d.]+B)(?:-Base)?")

TINY_VISION = VisionShape(hidden_size=48, intermediate_size=96, num_layers=2, num_heads=4, patch_size=8, image_size=32)
"""16 tokens per view."""
TINY_LANGUAGE = LanguageShape(
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=512,
    max_positions=1024,
    rope_theta=1e4,
    initializer_range=0.15,
)
"""With tied embeddings and a frozen base the usual 0.02 bounds the logits so that the loss stays above 4.5."""


def short_name(name: str) -> str:
    """The last part of a hub id or path."""
    return name.rstrip("/").rsplit("/", 1)[-1]


def known_vision(name: str) -> VisionShape | None:
    """The shape of a published tower, by its name; None for others."""
    match = _TOWER_NAME.fullmatch(short_name(name))
    if match is None:
        return None
    hidden, intermediate, layers, heads = _TOWERS[match[1]]
    patch = int(match[2])
    return VisionShape(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        patch_size=patch,
        image_size=int(match[3]) if match[3] else NAFLEX_GRID * patch,
    )


def known_language(name: str) -> LanguageShape | None:
    """The shape of a published Qwen3, by its name; None for others."""
    match = _QWEN3_NAME.fullmatch(short_name(name))
    if match is None or match[1] not in _QWEN3:
        return None
    hidden, intermediate, layers, heads, kv_heads, tied = _QWEN3[match[1]]
    return LanguageShape(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        vocab_size=151_936,
        tie_embeddings=tied,
    )


_VISION_KEYS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "patch_size": "patch_size",
    "image_size": "image_size",
}
_LANGUAGE_KEYS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "tie_embeddings": "tie_word_embeddings",
}


def vision_numbers(published: Mapping[str, object]) -> dict[str, object]:
    """The fields of `VisionShape` that a tower's `config.json` states, also inside that of a whole model."""
    inner = published.get("vision_config")
    stated = inner if isinstance(inner, Mapping) else published
    found = {ours: stated[theirs] for ours, theirs in _VISION_KEYS.items() if theirs in stated}
    patches, patch = stated.get("num_patches"), found.get("patch_size")
    if "image_size" not in found and isinstance(patches, int) and isinstance(patch, int):
        found["image_size"] = round(patches**0.5) * patch
    return found


def language_numbers(published: Mapping[str, object]) -> dict[str, object]:
    """The fields of `LanguageShape` that a language model's `config.json` states."""
    found = {ours: published[theirs] for ours, theirs in _LANGUAGE_KEYS.items() if theirs in published}
    rope = published.get("rope_parameters")  # where newer files keep it
    if "rope_theta" not in found and isinstance(rope, Mapping) and "rope_theta" in rope:
        found["rope_theta"] = rope["rope_theta"]
    return found
