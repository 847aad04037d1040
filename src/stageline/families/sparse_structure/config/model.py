"""The section `model`: sizes of the shape autoencoder and of both branches; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from stageline.config import Settings, operational
from stageline.families.sparse_structure.config.rules import branch_faults, model_faults, raise_faults

POSE = {"6drotation_normalized": 6, "translation": 3, "scale": 3, "translation_scale": 1}
"""Modalities of one token beside `shape`, and their channels."""
SHAPE = "shape"
POSE_STREAM = "6drotation_normalized"
"""Name of the stream in which the pose tokens share their weights; as in the published model, one of its members."""


class VaeConfig(Settings):
    """The autoencoder of stage `shape_vae`: occupancy of one object to latents and back."""

    width: int = Field(default=64, ge=16, multiple_of=16)
    """Of its convolutions on the grid of latents; on the finer one it is half."""
    blocks: int = Field(default=1, ge=1)
    """Residual blocks on each grid."""
    kl_weight: float = Field(default=0.1, ge=0)
    """Weight of the divergence from the prior beside the cross-entropy of occupancy; both are per voxel."""
    positive_weight: float = Field(default=1.0, gt=0)
    """Weight of occupied voxels; above 1 where they are so few that they would be left out."""


class BranchConfig(Settings):
    """The network of one branch. Defaults are those of the published per-object network."""

    model_channels: int = Field(default=1024, ge=8)
    """C, width of all tokens."""
    num_blocks: int = Field(default=24, ge=1)
    num_heads: int = Field(default=16, ge=1)
    """Heads of all attention; they divide the width."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Width of the feed-forward layers, in C."""
    qk_rms_norm_cross: bool = False
    """Normalise queries and keys of cross attention too."""
    share_mod: bool = False
    """One modulation layer for all blocks instead of one per block."""
    merge_pose: bool = True
    """One stream of weights for all pose tokens instead of one per modality."""
    is_shortcut_model: bool = True
    """Whether the network is told the step size."""
    freeze_shared_parameters: bool = False
    """Keep time embedder and the blocks' modulation as they start; needs weights to start from."""
    force_zeros_cond: bool = True
    """Zeros in the place of the condition in unconditional passes."""
    use_checkpoint: bool = operational(False)
    """Compute activations of a block again in the backward pass instead of keeping them."""

    @model_validator(mode="after")
    def _consistent(self) -> BranchConfig:
        raise_faults(branch_faults(self))
        return self


class GlobalBranchConfig(BranchConfig):
    """The branch whose tokens attend across all objects of a scene."""

    num_blocks: int = Field(default=4, ge=1)
    scene_attention: Literal["full", "pose", "pooled"] = "full"
    """full: all tokens of all objects; pose: shape tokens see their own object only; pooled: other objects' shape
    tokens are averaged."""
    global_block_ids: tuple[int, ...] | None = None
    """Blocks that attend across objects; null is all."""
    pool: int = Field(default=4, ge=1)
    """Edge of the cubes of `pooled`, in latent voxels."""
    detach_protected: bool = False
    """Cut the gradient from pose queries into shape keys and values, as the per-object network always does."""
    max_objects: int | None = Field(default=None, ge=1)
    """Rows of a learned embedding of an object's place in its scene; null has none and no order of objects."""
    start: Literal["sparse", "fresh"] = "sparse"
    """Blocks copied from the sparse branch, or drawn anew; the output starts at zero either way."""
    block_map: Literal["even", "first"] | tuple[int, ...] = "even"
    """Which blocks of the sparse branch are copied: spread over all, the first ones, or a list of numbers."""


class ModelConfig(Settings):
    """What the model is."""

    resolution: int = Field(default=64, ge=4, multiple_of=4)
    """Edge of an object's voxel grid; that of its latents is a quarter."""
    latent_channels: int = Field(default=8, ge=1)
    """Numbers per latent voxel."""
    modalities: tuple[str, ...] = (SHAPE, *POSE)
    """What is sampled of each object, `shape` first."""
    cond_channels: int = Field(default=1024, ge=1)
    """Width of the tokens of a condition."""
    cond_tokens: int = Field(default=4, ge=2)
    """Tokens that stand for an object's class, where the data are voxels; latents bring their own conditions."""
    vae: VaeConfig = VaeConfig()
    sparse_flow: BranchConfig = BranchConfig()
    """The branch that sees one object."""
    global_sparse_flow: GlobalBranchConfig = GlobalBranchConfig()
    """The branch that sees the scene."""
    combine_mode: Literal["add", "weighted"] = "add"
    """Sum of both branches, or the global one times a trained weight."""
    global_flow_weight: float = 1.0
    """Where that weight starts."""

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        raise_faults(model_faults(self))
        return self

    @property
    def latent_resolution(self) -> int:
        """Edge of the grid of latents."""
        return self.resolution // 4

    @property
    def channels(self) -> Mapping[str, int]:
        """Modality -> numbers per token."""
        return {name: self.latent_channels if name == SHAPE else POSE[name] for name in self.modalities}

    @property
    def tokens(self) -> Mapping[str, int]:
        """Modality -> tokens of an object."""
        return {name: self.latent_resolution**3 if name == SHAPE else 1 for name in self.modalities}

    @property
    def pose(self) -> tuple[str, ...]:
        """The modalities beside `shape`."""
        return tuple(name for name in self.modalities if name != SHAPE)
