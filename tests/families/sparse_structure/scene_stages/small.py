"""Small networks and configs for these tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MODELS = "sam3d_objects.model.backbone.tdfy_dit.models"
CHANNELS = {"shape": 8, "6drotation_normalized": 6, "translation": 3, "scale": 3, "translation_scale": 1}


def branch_arguments(num_blocks: int, width: int = 32) -> dict[str, Any]:
    """Of a network with the published layout: 2³ shape tokens and a merged pose stream, as `_target_` nodes."""

    def latent(name: str, channels: int) -> dict[str, Any]:
        grid = {"_target_": f"{MODELS}.mm_latent.ShapePositionEmbedder", "resolution": 2, "patch_size": 1}
        learned = {"_target_": f"{MODELS}.mm_latent.LearntPositionEmbedder", "token_len": 1}
        embedder = {"model_channels": width, **(grid if name == "shape" else learned)}
        sizes = {"in_channels": channels, "model_channels": width}
        return {"_target_": f"{MODELS}.mm_latent.Latent", **sizes, "pos_embedder": embedder}

    from stageline.families.sparse_structure.aliases import build

    built: dict[str, Any] = build(
        {
            "latent_mapping": {name: latent(name, channels) for name, channels in CHANNELS.items()},
            "latent_share_transformer": {"6drotation_normalized": [name for name in CHANNELS if name != "shape"]},
            "in_channels": 8,
            "out_channels": 8,
            "model_channels": width,
            "cond_channels": 16,
            "num_blocks": num_blocks,
            "num_heads": 2,
            "qk_rms_norm": True,
            "is_shortcut_model": True,
            "force_zeros_cond": True,
        }
    )
    return built


def dual_arguments() -> dict[str, Any]:
    return {"sparse_flow_config": branch_arguments(3), "global_sparse_flow_config": branch_arguments(2)}


def latents(num_objects: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = {name: 8 if name == "shape" else 1 for name in CHANNELS}
    return {name: torch.randn(num_objects, tokens[name], c, generator=generator) for name, c in CHANNELS.items()}
