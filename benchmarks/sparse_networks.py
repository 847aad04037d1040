"""Networks of sparse_structure for benchmarks: sizes, their operations as a formula, random weights and inputs.

Needs torch alone: where what the rest of stageline asks for is not installed, the networks' package is loaded without
the packages above it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

ROOM = "stageline.families.sparse_structure"
SOURCE = Path(__file__).resolve().parents[1] / "src"
CHANNELS = {"shape": 8, "6drotation_normalized": 6, "translation": 3, "scale": 3, "translation_scale": 1}
POSE = tuple(name for name in CHANNELS if name != "shape")


def load_networks() -> ModuleType:
    """The package of the networks."""
    try:
        return import_module(f"{ROOM}.model")
    except ModuleNotFoundError as error:
        if not SOURCE.is_dir():
            raise ModuleNotFoundError(f"{error}; install stageline, or run this in its source tree") from error
    for name in [name for name in sys.modules if name.split(".")[0] == "stageline"]:
        del sys.modules[name]
    parts = ROOM.split(".")
    for count in range(1, len(parts) + 1):
        bare = ModuleType(".".join(parts[:count]))
        bare.__path__ = [str(SOURCE.joinpath(*parts[:count]))]
        sys.modules[bare.__name__] = bare
    return import_module(f"{ROOM}.model")


@dataclass(frozen=True)
class Sizes:
    """Of both branches. width, heads; side of the voxel grid; condition tokens; blocks of either branch."""

    width: int
    heads: int
    side: int
    condition_tokens: int
    sparse_blocks: int
    scene_blocks: int
    ratio: int = 4

    @property
    def voxels(self) -> int:
        return self.side**3

    def block_operations(self, objects: int, *, scene: bool, shortcuts: bool) -> float:
        """Multiplications and additions of one block, two for a multiply-add.

        objects: N.  scene: voxels attend across objects.  shortcuts: the pose's queries absorb the condition's weights.
        """
        c, s, p, lc = self.width, self.voxels, len(POSE), self.condition_tokens
        seen = objects if scene else 1
        attention = 4 * c * (s * s * seen + p * (s + p) * seen)
        linear = (8 + 4 + 4 * self.ratio) * (s + p) * c * c
        cross = 4 * s * lc * c
        projected = 4 * lc * c * c
        pose = 4 * p * c * c + 4 * self.heads * p * lc * c if shortcuts else projected + 4 * p * lc * c
        return float(objects * (attention + linear + cross + projected + pose))

    def operations(self, objects: int, *, shortcuts: bool) -> tuple[float, float]:
        """Of one evaluation of the per-object branch, and of the scene's."""
        return (
            self.sparse_blocks * self.block_operations(objects, scene=False, shortcuts=shortcuts),
            self.scene_blocks * self.block_operations(objects, scene=True, shortcuts=shortcuts),
        )


PUBLIC = Sizes(width=1024, heads=16, side=16, condition_tokens=7528, sparse_blocks=24, scene_blocks=4)
TINY = Sizes(width=96, heads=4, side=4, condition_tokens=118, sparse_blocks=6, scene_blocks=1)
"""The condition is longer than the shape here too."""


def arguments(sizes: Sizes, blocks: int, **more: Any) -> dict[str, Any]:
    """Arguments of one network with the public structure."""
    learned = {"model_channels": sizes.width, "token_len": 1}
    grid = {"model_channels": sizes.width, "resolution": sizes.side, "patch_size": 1}
    return {
        "latent_mapping": {
            name: {
                "in_channels": channels,
                "model_channels": sizes.width,
                "pos_embedder": grid if name == "shape" else learned,
            }
            for name, channels in CHANNELS.items()
        },
        "latent_share_transformer": {POSE[0]: list(POSE)},
        "in_channels": 8,
        "out_channels": 8,
        "model_channels": sizes.width,
        "cond_channels": sizes.width,
        "num_blocks": blocks,
        "num_heads": sizes.heads,
        "mlp_ratio": sizes.ratio,
        "qk_rms_norm": True,
        "is_shortcut_model": True,
        "force_zeros_cond": True,
        **more,
    }


def build_dual(sizes: Sizes, device: torch.device, scene: dict[str, Any] | None = None, **more: Any) -> Any:
    """A dual backbone on a device whose parameters are all off zero.

    scene: arguments of the scene's network alone.  more: arguments of both.
    """
    networks = load_networks()
    with device:
        dual = networks.DualBackboneSparseStructureFlowTdfyWrapper(
            arguments(sizes, sizes.sparse_blocks, **more), arguments(sizes, sizes.scene_blocks, **more, **(scene or {}))
        )
    with torch.no_grad():
        for parameter in dual.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return dual.to(device)


def make_inputs(
    sizes: Sizes, objects: int, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Tensor], Tensor]:
    """Latents (N, L, ch) in float32, and conditions (N, Lc, C) in `dtype`."""
    generator = torch.Generator(device).manual_seed(objects)
    tokens = {name: sizes.voxels if name == "shape" else 1 for name in CHANNELS}
    latents = {
        name: torch.randn(objects, tokens[name], channels, generator=generator, device=device)
        for name, channels in CHANNELS.items()
    }
    condition = torch.randn(
        objects, sizes.condition_tokens, sizes.width, generator=generator, device=device, dtype=dtype
    )
    return latents, condition


def train_step(dual: Any, latents: dict[str, Tensor], condition: Tensor) -> Callable[[], Any]:
    """Forward and backward pass of the mean square of all outputs, without an optimizer."""

    def step() -> Any:
        out = dual(latents, 500.0, condition, d=250.0)
        loss = torch.stack([x.square().mean() for x in out.values()]).sum()
        loss.backward()
        dual.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def kept_bytes(call: Callable[[], Any], network: nn.Module, condition: Tensor) -> int:
    """Bytes that autograd keeps of a forward pass: each storage once, without the network's own and the condition's."""
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = call()
    del out
    own = {x.untyped_storage().data_ptr() for x in (*network.parameters(), *network.buffers(), condition)}
    return sum(size for start, size in storages.items() if start not in own)
