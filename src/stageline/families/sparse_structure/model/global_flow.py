"""The network of a whole scene: the per-object network, whose self-attention runs across the scene's objects.

It has the same tensors, so that a per-object checkpoint can start it. Its output heads start as zero: added to
another network it changes nothing at first, and still wakes up, since the heads' weight gradient is not zero.
Sources: MIDI-3D (arXiv:2412.03558), PartCrafter (arXiv:2506.05573).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stageline.families.sparse_structure.model.arguments import checked_scenes, raise_faults
from stageline.families.sparse_structure.model.attention import PER_OBJECT, SCENE_ATTENTION, AttentionPattern
from stageline.families.sparse_structure.model.flow import Latents, SparseStructureFlowTdfyWrapper

OBJECT_INIT_STD = 0.02


class GlobalSparseStructureFlowTdfyWrapper(SparseStructureFlowTdfyWrapper):
    """Velocity of N objects that see each other.

    latent_mapping, latent_share_transformer, more: as in `SparseStructureFlowTdfyWrapper`.
    scene_attention: `full`: all streams across the scene. `pose`: protected streams (voxels) stay per object, the
        others see all tokens of the scene. `pooled`: own tokens in full, protected tokens of the other objects
        averaged over cubes of their grid, after the projection to keys and values.
    global_block_ids: numbers of the blocks that attend across objects; None for all.
    pool: edge of `pooled`'s cubes, in tokens; divides the grid's edge.
    detach_protected: no gradient from the other streams into protected keys and values.
    zero_init_output: the output heads start as zero.
    object_embedding: `learned` adds a vector per object's place in its scene, which then matters; None for none.
    max_objects: places that the learned embedding has.

    Raises ValueError that lists what does not fit.
    """

    def __init__(
        self,
        latent_mapping: Mapping[str, Any],
        latent_share_transformer: Mapping[str, Sequence[str]] | None = None,
        *,
        scene_attention: str = "full",
        global_block_ids: Sequence[int] | None = None,
        pool: int = 4,
        detach_protected: bool = False,
        zero_init_output: bool = True,
        object_embedding: str | None = None,
        max_objects: int = 32,
        **more: Any,
    ) -> None:
        num_blocks = more.get("num_blocks", 0)
        ids = range(num_blocks) if global_block_ids is None else [int(number) for number in global_block_ids]
        faults = []
        if scene_attention not in SCENE_ATTENTION:
            faults.append(f"scene_attention is {scene_attention!r}, expected one of {', '.join(SCENE_ATTENTION)}")
        if len(set(ids)) < len(ids) or not set(ids) <= set(range(num_blocks)):
            faults.append(f"global_block_ids is {list(ids)}, expected different numbers below {num_blocks}")
        if object_embedding not in (None, "learned"):
            faults.append(f"object_embedding is {object_embedding!r}, expected 'learned' or None")
        if max_objects < 1 or pool < 1:
            faults.append(f"max_objects is {max_objects} and pool {pool}, expected at least 1")
        raise_faults(type(self), faults)
        # The blocks are built by the parent's constructor; nn.Module takes plain attributes before its own.
        self.scene_attention, self.global_block_ids = scene_attention, tuple(sorted(ids))
        self.pool, self.detach_protected, self.max_objects = pool, detach_protected, max_objects
        super().__init__(latent_mapping, latent_share_transformer, **more)
        if scene_attention == "pooled":
            raise_faults(type(self), self._grid_faults())
        self.object_emb = None
        if object_embedding is not None:
            self.object_emb = nn.Embedding(max_objects, self.model_channels)
            nn.init.normal_(self.object_emb.weight, std=OBJECT_INIT_STD)
        if zero_init_output:
            self.zero_output()

    def zero_output(self) -> None:
        """Set all output heads to zero, so that the output is exactly zero."""
        for name in self.latent_mapping:
            self._latent(name).zero_output()

    def _patterns(self) -> list[AttentionPattern]:
        modes = [self.scene_attention if i in self.global_block_ids else PER_OBJECT for i in range(self.num_blocks)]
        return [AttentionPattern(mode, self.protected, self.detach_protected, self.pool) for mode in modes]

    def _grid_faults(self) -> list[str]:
        """Why protected streams can not be averaged over cubes."""
        faults = []
        for stream in self.protected:
            tokens = sum(self._latent(name).num_tokens for name in self.streams[stream])
            side = round(tokens ** (1 / 3))
            if len(self.streams[stream]) > 1 or side**3 != tokens or side % self.pool:
                faults.append(
                    f"stream {stream!r} has {tokens} tokens of {list(self.streams[stream])}; `pooled` expects one "
                    f"modality on a cube whose edge is a multiple of pool, {self.pool}"
                )
        return faults

    def forward(
        self,
        latents_dict: Latents,
        t: Tensor | float,
        *condition_args: Any,
        d: Tensor | float | None = None,
        cfg: bool = False,
        scene_sizes: Sequence[int] | None = None,
        **condition_kwargs: Any,
    ) -> dict[str, Tensor]:
        """As the per-object network's.

        scene_sizes: numbers of objects where several scenes follow each other; scenes do not see each other. None
            for one scene.
        """
        condition = self.prepare_condition(*condition_args, **condition_kwargs)
        sizes = checked_scenes(scene_sizes, self._check_latents(latents_dict)[0])
        return self._evaluate(latents_dict, t, condition, d, cfg, sizes, self._places(sizes))

    def _places(self, sizes: tuple[int, ...]) -> Tensor | None:
        """The learned embedding of each object's place in its scene, (N, 1, C), or None."""
        if self.object_emb is None:
            return None
        if max(sizes) > self.max_objects:
            raise ValueError(
                f"a scene has {max(sizes)} objects, the learned object embedding {self.max_objects} places; "
                "build the network with a larger max_objects"
            )
        places = torch.cat([torch.arange(size, device=self.device) for size in sizes])
        embedded: Tensor = self.object_emb(places)
        return embedded[:, None]
