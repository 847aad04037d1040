"""Samples of whole scenes, and what they are: voxels, and poses in metres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stageline.errors import CheckpointError
from stageline.families.sparse_structure.assembly import DualModel, one_branch
from stageline.families.sparse_structure.config.model import POSE, SHAPE
from stageline.families.sparse_structure.data.poses import Poses, decode_poses
from stageline.families.sparse_structure.model.scale import SceneScale
from stageline.families.sparse_structure.objective import make_guidance, make_shortcut

if TYPE_CHECKING:
    from stageline.families.sparse_structure.assembly import FlowModel
    from stageline.families.sparse_structure.config import SparseStructureConfig


@dataclass(frozen=True)
class DecodedScene:
    """What latents stand for.

    logits: (N, R, R, R) of occupancy.  poses: where the objects are; None where the model lacks a part of a pose.
    """

    logits: Tensor
    poses: Poses | None

    @property
    def voxels(self) -> Tensor:
        """(N, R, R, R) bool."""
        return self.logits > 0


class SceneGenerator:
    """Makes scenes with a model in eval mode. config: of its stage.  alone: leaves the branch of the scene out."""

    def __init__(self, config: SparseStructureConfig, model: FlowModel, *, alone: bool = False) -> None:
        self.config, self.model = config, model
        self.shortcut, guidance = make_shortcut(config), make_guidance(config)
        self.network = guidance.eval().around(self._one_branch if alone else self._both_branches)
        self.device = next(model.parameters()).device

    def _one_branch(self, latents: Mapping[str, Tensor], t: Tensor, *conditions: Any, **keywords: Any) -> Any:
        return one_branch(self.model.sparse_flow, latents, t, *conditions, **keywords)

    def _both_branches(self, latents: Mapping[str, Tensor], t: Tensor, *conditions: Any, **keywords: Any) -> Any:
        if isinstance(self.model, DualModel):
            keywords["scene_strength"] = self.config.evaluate.scene_strength
        return self.model.velocity(latents, t, *conditions, **keywords)

    @torch.no_grad()
    def sample(
        self, sizes: Sequence[int], conditions: Mapping[str, Any], steps: int, rngs: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """Modality -> (N, L, ch) of the objects of all scenes, one after the other.

        sizes: objects of each scene.  conditions: keywords of the network, with a row per object where there are
        several scenes.  steps: of the sampler, at least 1.  rngs: of each scene's noise, on the CPU.
        """
        model = self.config.model
        noises: list[Any] = [self.shortcut.draw_noise(self._empty(n), rng) for n, rng in zip(sizes, rngs, strict=True)]
        noise = {name: torch.cat([one[name] for one in noises]).to(self.device) for name in model.modalities}
        given = {name: v.to(self.device) if isinstance(v, Tensor) else v for name, v in conditions.items()}
        if len(sizes) > 1:
            given["scene_sizes"] = list(sizes)
        shapes = {name: tuple(x.shape) for name, x in noise.items()}
        made: dict[str, Tensor] = self.shortcut.generate(
            shapes, self.device, reverse_fn=self.network, steps=steps, noise=noise, **given
        )
        _refuse_strange([name for name, x in made.items() if not torch.isfinite(x).all()])
        return made

    def _empty(self, num_objects: int) -> dict[str, Tensor]:
        model = self.config.model
        return {n: torch.zeros(num_objects, model.tokens[n], model.channels[n]) for n in model.modalities}

    @torch.no_grad()
    def decode(self, latents: Mapping[str, Tensor]) -> DecodedScene | None:
        """What a scene's latents stand for; None where the model knows no autoencoder."""
        if not self.config.has_vae:
            return None
        assert isinstance(self.model.scale, SceneScale)
        return DecodedScene(self.model.decode(latents[SHAPE]).cpu(), self.poses(latents))

    @torch.no_grad()
    def poses(self, latents: Mapping[str, Tensor]) -> Poses | None:
        """Where the objects of standardised latents are; None where a part of a pose is missing."""
        if not isinstance(self.model.scale, SceneScale) or not set(POSE) <= set(latents):
            return None
        restored = self.model.scale.unscale_poses({name: latents[name].to(self.device) for name in POSE})
        with np.errstate(over="ignore", invalid="ignore"):
            found = decode_poses({name: x.cpu().numpy() for name, x in restored.items()})
        parts = {"rotation": found.rotation, "translation": found.translation, "scale": found.scale}
        _refuse_strange([name for name, x in parts.items() if not np.isfinite(x).all()])
        return found


def _refuse_strange(names: Sequence[str]) -> None:
    """CheckpointError where there are any. names: of what is sampled and not finite."""
    if names:
        raise CheckpointError(
            f"what is sampled has numbers that are not finite: {', '.join(names)}",
            remedy="its training diverged: name an earlier checkpoint; or guidance runs away: lower "
            "evaluate.scene_strength and objective.guidance.strength",
        )
