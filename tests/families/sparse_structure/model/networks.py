"""Small networks for the tests of this folder, with weights that are off their starting values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stageline.families.sparse_structure.model.dual import DualBackboneSparseStructureFlowTdfyWrapper
from stageline.families.sparse_structure.model.flow import SparseStructureFlowTdfyWrapper
from stageline.families.sparse_structure.model.global_flow import GlobalSparseStructureFlowTdfyWrapper

CHANNELS = {"shape": 8, "6drotation_normalized": 6, "translation": 3, "scale": 3, "translation_scale": 1}
POSE = tuple(name for name in CHANNELS if name != "shape")
MERGED = {"6drotation_normalized": list(POSE)}
WIDTH, COND, SIDE, NUM_COND = 24, 10, 2, 5

SHARED: dict[str, Any] = {"latent_share_transformer": MERGED, "is_shortcut_model": True, "force_zeros_cond": True}
"""Merged pose stream, modulation per block, step embedding."""
SEPARATE: dict[str, Any] = {"share_mod": True, "qk_rms_norm_cross": True}
"""Five streams, shared modulation, norms in cross-attention, no step embedding."""


def plain_latents(width: int = WIDTH, side: int = SIDE, names: Sequence[str] = tuple(CHANNELS)) -> dict[str, Any]:
    """`latent_mapping` as plain data."""
    learned = {"model_channels": width, "token_len": 1}
    grid = {"model_channels": width, "resolution": side, "patch_size": 1}
    return {
        name: {
            "in_channels": CHANNELS[name],
            "model_channels": width,
            "pos_embedder": grid if name == "shape" else learned,
        }
        for name in names
    }


def arguments(*, width: int = WIDTH, side: int = SIDE, **more: Any) -> dict[str, Any]:
    """Arguments of a small network."""
    return {
        "latent_mapping": plain_latents(width, side),
        "in_channels": 8,
        "out_channels": 8,
        "model_channels": width,
        "cond_channels": COND,
        "num_blocks": 2,
        "num_heads": 2,
        "qk_rms_norm": True,
        **more,
    }


def moved(network: nn.Module, seed: int = 0, std: float = 0.2) -> Any:
    """The network with noise added to all parameters, so that no gate and no head is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return network


def sparse_network(seed: int = 0, **more: Any) -> SparseStructureFlowTdfyWrapper:
    torch.manual_seed(seed)
    network: SparseStructureFlowTdfyWrapper = moved(SparseStructureFlowTdfyWrapper(**arguments(**more)), seed)
    return network


def scene_network(seed: int = 0, **more: Any) -> GlobalSparseStructureFlowTdfyWrapper:
    torch.manual_seed(seed)
    network: GlobalSparseStructureFlowTdfyWrapper = moved(
        GlobalSparseStructureFlowTdfyWrapper(**arguments(**more)), seed
    )
    return network


def dual_network(
    sparse: Mapping[str, Any] | None = None, scene: Mapping[str, Any] | None = None, **more: Any
) -> DualBackboneSparseStructureFlowTdfyWrapper:
    """A fresh one: the scene's branch has its starting values, the other not."""
    torch.manual_seed(3)
    network = DualBackboneSparseStructureFlowTdfyWrapper(
        arguments(**SHARED, **(sparse or {})), arguments(**{**SHARED, "num_blocks": 1, **(scene or {})}), **more
    )
    moved(network.sparse_flow)
    return network


def inputs(
    objects: int, seed: int = 1, rows: int | None = None, side: int = SIDE, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], Tensor]:
    """Latents of N objects and condition tokens. rows: of the condition, N where None."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    tokens = {name: side**3 if name == "shape" else 1 for name in CHANNELS}
    latents = {name: noise(objects, tokens[name], channels) for name, channels in CHANNELS.items()}
    return latents, noise(rows or objects, NUM_COND, COND)


def far(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Largest difference of two outputs."""
    assert list(a) == list(b)
    return max(float((a[name] - b[name]).detach().abs().max()) for name in a)


def read_out(out: Mapping[str, Tensor], names: Sequence[str] = tuple(CHANNELS)) -> Tensor:
    """A number that every entry of the outputs has a weight of its own in."""
    return torch.stack(
        [(out[name].flatten() * torch.arange(out[name].numel(), dtype=out[name].dtype).sin()).sum() for name in names]
    ).sum()
