"""Samples of whole scenes, and what they are: voxels, and poses in metres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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


class SceneSampler:
    """Makes scenes with a model in eval mode. config: of its stage."""

    def __init__(self, config: SparseStructureConfig, model: FlowModel) -> None:
        self.config, self.model = config, model
        self.shortcut, guidance = make_shortcut(config), make_guidance(config)
        self.network = guidance.eval().around(model.velocity)
        self.device = next(model.parameters()).device

    @torch.no_grad()
    def sample(
        self, num_objects: int, conditions: Mapping[str, Any], steps: int, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Modality -> (N, L, ch) of one scene.

        conditions: keywords of the network.  steps: of the sampler, at least 1.  rng: of the noise, on the CPU.
        """
        model = self.config.model
        shapes = {name: (num_objects, model.tokens[name], model.channels[name]) for name in model.modalities}
        given = {name: v.to(self.device) if isinstance(v, Tensor) else v for name, v in conditions.items()}
        made: dict[str, Tensor] = self.shortcut.generate(
            shapes, self.device, reverse_fn=self.network, steps=steps, rng=rng, **given
        )
        return made

    @torch.no_grad()
    def decode(self, latents: Mapping[str, Tensor]) -> DecodedScene | None:
        """What a scene's latents stand for; None where the model knows no autoencoder."""
        if not self.config.has_vae:
            return None
        assert isinstance(self.model.scale, SceneScale)
        numbers = {name: x.cpu().numpy() for name, x in self.model.scale.unscale_poses(latents).items()}
        poses = decode_poses(numbers) if set(POSE) <= set(numbers) else None
        return DecodedScene(self.model.decode(latents[SHAPE]).cpu(), poses)
