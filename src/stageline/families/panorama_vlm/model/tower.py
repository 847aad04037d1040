"""The vision tower: SigLIP and SigLIP2 of transformers, one view in, one row of patch tokens out.

The checkpoint's own `model_type` decides the class: fixed-resolution SigLIP2 checkpoints say `siglip` or
`siglip_vision_model`, those with a variable number of patches (NaFlex) `siglip2` or `siglip2_vision_model`. State-dict
names are transformers' own. It takes seconds to import, so it is imported where a tower is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stageline.errors import ConfigError, Faults
from stageline.families.panorama_vlm.config.architectures import VisionShape, vision_numbers

if TYPE_CHECKING:
    from transformers import Siglip2VisionConfig, Siglip2VisionModel, SiglipVisionConfig, SiglipVisionModel

    Tower = SiglipVisionModel | Siglip2VisionModel

FIXED = ("siglip", "siglip_vision_model")
NAFLEX = ("siglip2", "siglip2_vision_model")
MEAN, STD = 0.5, 0.5
"""Both classes read pixels as (x - 0.5) / 0.5, x in [0, 1]."""
TINY_SEED = 0
"""The tiny tower and the tiny language model are functions of this seed alone."""


def tower_config(shape: VisionShape, kind: str) -> SiglipVisionConfig | Siglip2VisionConfig:
    """transformers' config of a tower. kind: `siglip` or `siglip2_naflex`."""
    from transformers import Siglip2VisionConfig, SiglipVisionConfig

    sizes: dict[str, Any] = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "patch_size": shape.patch_size,
        "vision_use_head": False,
    }
    if kind == "siglip2_naflex":
        return Siglip2VisionConfig(num_patches=shape.grid**2, **sizes)
    return SiglipVisionConfig(image_size=shape.image_size, **sizes)


def check_tower(plain: Mapping[str, Any], shape: VisionShape, kind: str, where: str) -> None:
    """ConfigError where a model's `config.json` is of another kind or size than the config says.

    plain: the file, parsed; of the whole model or of the tower alone.  where: its path.
    """
    faults = Faults(ConfigError, where, "name another tower in model.vision_name, or mend model.vision_config")
    expected = NAFLEX if kind == "siglip2_naflex" else FIXED
    if plain.get("model_type") not in expected:
        faults.add(f"model_type {plain.get('model_type')!r}, expected {' or '.join(expected)} for vision_class {kind}")
    for key, value in vision_numbers(plain).items():
        if value != getattr(shape, key):
            faults.add(f"{key} is {value}, the config says {getattr(shape, key)}")
    faults.raise_if_any()


def build_tower(config: SiglipVisionConfig | Siglip2VisionConfig) -> Tower:
    """The tower of a config, randomly initialised, without the pooling head."""
    from transformers import Siglip2VisionConfig, Siglip2VisionModel, SiglipVisionModel

    if isinstance(config, Siglip2VisionConfig):
        return Siglip2VisionModel(config)
    return SiglipVisionModel(config)


def is_naflex(tower: nn.Module) -> bool:
    """Whether the tower reads patches instead of square pictures."""
    from transformers import Siglip2VisionModel

    return isinstance(tower, Siglip2VisionModel)


def view_tokens(tower: nn.Module, views: Tensor, grids: Tensor | None = None) -> Tensor:
    """Patch tokens of views.

    views: (N, 3, T, T) float in [0, 1], T the tower's picture size.
    grids: (N, 2) int64, rows and columns of patches of each view, of a NaFlex tower alone; null is G x G. A view of
    another grid holds its patches in its first places, row-major (`packed`).
    Returns (N, G * G, D), row-major; places beyond a view's patches hold nothing of it.
    """
    dtype = next(tower.parameters()).dtype
    pixels = ((views.float() - MEAN) / STD).to(dtype)
    if not is_naflex(tower):
        return _tokens(tower(pixel_values=pixels))
    patches, grid = patchify(pixels, int(tower.config.patch_size))  # type: ignore[union-attr, arg-type]
    shapes = torch.tensor([[grid, grid]] * len(patches)) if grids is None else grids
    shapes = shapes.to(patches.device)
    places = torch.arange(patches.shape[1], device=patches.device)
    mask = (places < shapes.prod(dim=1, keepdim=True)).int()
    return _tokens(tower(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes))


def _tokens(output: Any) -> Tensor:
    tokens: Tensor = output.last_hidden_state
    return tokens


def patchify(pixels: Tensor, patch: int) -> tuple[Tensor, int]:
    """Pictures as rows of patches, inside a patch by row, column, channel.

    pixels: (N, 3, T, T).  patch: side in pixels.  Returns ((N, n * n, 3 * patch**2), n).
    """
    count, channels, side, _ = pixels.shape
    grid = side // patch
    parts = pixels.reshape(count, channels, grid, patch, grid, patch).permute(0, 2, 4, 3, 5, 1)
    return parts.reshape(count, grid * grid, patch * patch * channels), grid


def packed(picture: Tensor, size: int, patch: int) -> Tensor:
    """The patches of a picture of any grid, row-major, in the first places of a square view; zeros in the others.

    picture: (3, H, W), H and W multiples of `patch` with no more patches than the square has.  Returns (3, size, size).
    """
    rows, columns = picture.shape[1] // patch, picture.shape[2] // patch
    grid = size // patch
    patches = picture.reshape(3, rows, patch, columns, patch).permute(1, 3, 0, 2, 4).flatten(0, 1)
    whole = picture.new_zeros(grid * grid, 3, patch, patch)
    whole[: rows * columns] = patches
    return whole.reshape(grid, grid, 3, patch, patch).permute(2, 0, 3, 1, 4).reshape(3, size, size)


def block_names(tower: nn.Module) -> list[str]:
    """Names of the encoder's blocks in their order, found by type: `encoder.layers.<n>`."""
    found = [name for name, module in tower.named_modules() if type(module).__name__.endswith("EncoderLayer")]
    if not found:
        raise ConfigError(
            f"{type(tower).__name__} has no encoder blocks", remedy="a fault in the family's code, or another tower"
        )
    return found
