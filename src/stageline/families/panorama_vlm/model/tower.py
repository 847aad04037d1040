"""The vision tower: SigLIP and SigLIP2 of transformers, one view in, one row of patch tokens out.

The checkpoint's own `model_type` decides the class: fixed-resolution SigLIP2 checkpoints say `siglip` or
`siglip_vision_model`, those with a variable number of patches (NaFlex) `siglip2` or `siglip2_vision_model`. State-dict
names are transformers' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Siglip2VisionConfig, Siglip2VisionModel, SiglipVisionConfig, SiglipVisionModel

from stageline.errors import ConfigError

FIXED = ("siglip", "siglip_vision_model")
NAFLEX = ("siglip2", "siglip2_vision_model")
MEAN, STD = 0.5, 0.5
"""Both classes read pixels as (x - 0.5) / 0.5, x in [0, 1]."""
TINY_SEED = 0
"""The tiny tower and the tiny language model are functions of this seed alone."""

Tower = SiglipVisionModel | Siglip2VisionModel


@contextmanager
def fixed_random(seed: int) -> Iterator[None]:
    """Random numbers of torch as after `manual_seed(seed)`; those outside go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def tiny_tower_config() -> SiglipVisionConfig:
    """A tower of two layers, 48 wide, that reads views of 32 pixels as 4 x 4 patches."""
    return SiglipVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        vision_use_head=False,
    )


def tower_config(plain: Mapping[str, Any], where: str) -> SiglipVisionConfig | Siglip2VisionConfig:
    """The tower's config from a model's `config.json`, the whole model's or the tower's alone.

    plain: the file, parsed.  where: its path, for the error.  ConfigError for a model of another kind.
    """
    kind = plain.get("model_type")
    own = dict(plain.get("vision_config", plain))
    own.pop("model_type", None)
    own["vision_use_head"] = False
    if kind in FIXED:
        return SiglipVisionConfig(**own)
    if kind in NAFLEX:
        return Siglip2VisionConfig(**own)
    raise ConfigError(
        f"{where}: model_type {kind!r}, expected one of {', '.join((*FIXED, *NAFLEX))}",
        remedy="set models.vision_name to a SigLIP or SigLIP2 model",
    )


def build_tower(config: SiglipVisionConfig | Siglip2VisionConfig) -> Tower:
    """The tower of a config, randomly initialised, without the pooling head."""
    if isinstance(config, Siglip2VisionConfig):
        return Siglip2VisionModel(config)
    return SiglipVisionModel(config)


def is_naflex(tower: nn.Module) -> bool:
    """Whether the tower reads patches instead of square pictures."""
    return isinstance(tower, Siglip2VisionModel)


def grid_of(config: SiglipVisionConfig | Siglip2VisionConfig) -> int:
    """Patches along one side of a square view."""
    if isinstance(config, Siglip2VisionConfig):
        return int(config.num_patches**0.5)
    return int(config.image_size) // int(config.patch_size)


def view_tokens(tower: nn.Module, views: Tensor) -> Tensor:
    """Patch tokens of views.

    views: (N, 3, T, T) float in [0, 1], T the tower's picture size.  Returns (N, G * G, D), row-major.
    """
    dtype = next(tower.parameters()).dtype
    pixels = ((views.float() - MEAN) / STD).to(dtype)
    if not is_naflex(tower):
        out: Tensor = tower(pixel_values=pixels).last_hidden_state
        return out
    patches, grid = patchify(pixels, int(tower.config.patch_size))
    mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=patches.device)
    shapes = torch.tensor([[grid, grid]] * len(patches), device=patches.device)
    out = tower(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes).last_hidden_state
    return out


def patchify(pixels: Tensor, patch: int) -> tuple[Tensor, int]:
    """Pictures as rows of patches, inside a patch by row, column, channel.

    pixels: (N, 3, T, T).  patch: side in pixels.  Returns ((N, n * n, 3 * patch**2), n).
    """
    count, channels, side, _ = pixels.shape
    grid = side // patch
    parts = pixels.reshape(count, channels, grid, patch, grid, patch).permute(0, 2, 4, 3, 5, 1)
    return parts.reshape(count, grid * grid, patch * patch * channels), grid


def block_names(tower: nn.Module) -> list[str]:
    """Names of the encoder's blocks in their order, found by type: `encoder.layers.<n>`."""
    found = [name for name, module in tower.named_modules() if type(module).__name__.endswith("EncoderLayer")]
    if not found:
        raise ConfigError(
            f"{type(tower).__name__} has no encoder blocks", remedy="a fault in the family's code, or another tower"
        )
    return found
