"""The model of a stage: the autoencoder, one branch or both, and what their numbers mean, under the final names.

    vae.*  scale.*  sparse_flow.*  global_sparse_flow.*  global_flow_weight

`vae` and `scale` are there where the data are voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stageline.errors import PlanError
from stageline.families.sparse_structure.config.model import POSE_STREAM, SHAPE, BranchConfig, GlobalBranchConfig
from stageline.families.sparse_structure.facts import has_global, has_sparse
from stageline.families.sparse_structure.model.dual import DualBackboneSparseStructureFlowTdfyWrapper
from stageline.families.sparse_structure.model.flow import SparseStructureFlowTdfyWrapper
from stageline.families.sparse_structure.model.latent import Latent, LearntPositionEmbedder, ShapePositionEmbedder
from stageline.families.sparse_structure.model.scale import SceneScale
from stageline.families.sparse_structure.model.shape_vae import ShapeVAE

if TYPE_CHECKING:
    from stageline.families.sparse_structure.config import SparseStructureConfig
    from stageline.families.sparse_structure.config.model import ModelConfig
    from stageline.stage import Stage


class VaeModel(nn.Module):
    """Stage `shape_vae`."""

    def __init__(self, vae: ShapeVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, call: Callable[..., Any], *args: Any) -> Any:
        """`call(self, *args)`: so that whatever wraps this module for ranks and precision is around it."""
        return call(self, *args)


class _Encoding:
    """What the models of both kinds of flow can do with voxels."""

    vae: nn.Module | None
    scale: nn.Module | None

    @torch.no_grad()
    def encode(self, voxels: Tensor) -> Tensor:
        """Shape tokens (N, L, C) as the networks see them. voxels: (N, R, R, R)."""
        assert isinstance(self.vae, ShapeVAE)
        assert isinstance(self.scale, SceneScale)
        return self.scale.scale_shape(self.vae.to_tokens(voxels))

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Logits of occupancy (N, R, R, R) of shape tokens (N, L, C)."""
        assert isinstance(self.vae, ShapeVAE)
        assert isinstance(self.scale, SceneScale)
        return self.vae.from_tokens(self.scale.unscale_shape(tokens))


class SparseModel(_Encoding, nn.Module):
    """Stage `sparse_flow`."""

    def __init__(
        self, sparse_flow: SparseStructureFlowTdfyWrapper, vae: ShapeVAE | None, scale: SceneScale | None
    ) -> None:
        super().__init__()
        self.sparse_flow, self.vae, self.scale = sparse_flow, vae, scale

    def forward(self, call: Callable[..., Any], *args: Any) -> Any:
        """`call(self, *args)`."""
        return call(self, *args)

    def velocity(self, latents: Mapping[str, Tensor], t: Tensor, *conditions: Any, **keywords: Any) -> Any:
        """The network: modality -> (N, L, ch). keywords: `scene_sizes` among them makes no difference here."""
        return one_branch(self.sparse_flow, latents, t, *conditions, **keywords)


class DualModel(_Encoding, DualBackboneSparseStructureFlowTdfyWrapper):
    """Stages `global_flow` and `joint`."""

    def __init__(self, vae: ShapeVAE | None, scale: SceneScale | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.vae, self.scale = vae, scale

    def forward(self, call: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]  # see `velocity`
        """`call(self, *args)`."""
        return call(self, *args)

    def velocity(self, latents: Mapping[str, Tensor], t: Tensor, *conditions: Any, **keywords: Any) -> Any:
        """The network: modality -> (N, L, ch)."""
        return super().forward(latents, t, *conditions, **_told(self.sparse_flow, keywords))


def one_branch(
    network: SparseStructureFlowTdfyWrapper, latents: Mapping[str, Tensor], t: Tensor, *conditions: Any, **keywords: Any
) -> Any:
    """The per-object network asked as a model is: what it has no use for is left out of the keywords."""
    keywords.pop("scene_sizes", None)
    return network(latents, t, *conditions, **_told(network, keywords))


def _told(network: SparseStructureFlowTdfyWrapper, keywords: dict[str, Any]) -> dict[str, Any]:
    """Keywords without the step where the networks are not told it; both branches are, or none."""
    return keywords if network.is_shortcut_model else {k: v for k, v in keywords.items() if k != "d"}


FlowModel = SparseModel | DualModel
StageModel = VaeModel | SparseModel | DualModel


def build_model(config: SparseStructureConfig, stage: Stage) -> StageModel:
    """The module of a stage, drawn from config.seed. config: the stage's own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _build(config, stage)


def _build(config: SparseStructureConfig, stage: Stage) -> StageModel:
    model = config.model
    vae = ShapeVAE(model.latent_channels, model.vae.width, model.vae.blocks) if config.has_vae else None
    if not has_sparse(stage):
        if vae is None:
            raise PlanError(
                f"stage {stage.name!r} needs voxels, data.name is {config.data.name!r}", remedy="leave the stage out"
            )
        return VaeModel(vae)
    scale = SceneScale(model.latent_channels) if config.has_vae else None
    sparse = branch_arguments(model, model.sparse_flow)
    if not has_global(stage):
        return SparseModel(SparseStructureFlowTdfyWrapper(**sparse), vae, scale)
    return DualModel(
        vae,
        scale,
        sparse_flow_config=sparse,
        global_sparse_flow_config=branch_arguments(model, model.global_sparse_flow),
        combine_mode=model.combine_mode,
        global_flow_weight=model.global_flow_weight,
        freeze_sparse_flow="sparse_flow.*" not in stage.trains,
    )


def branch_arguments(model: ModelConfig, branch: BranchConfig) -> dict[str, Any]:
    """Arguments of a branch's network. model: sizes of latents and conditions.  branch: of either."""
    width = branch.model_channels
    arguments: dict[str, Any] = {
        "latent_mapping": {name: _latent(model, name, width) for name in model.modalities},
        "latent_share_transformer": {POSE_STREAM: list(model.pose)} if branch.merge_pose else {},
        "in_channels": model.latent_channels,
        "out_channels": model.latent_channels,
        "cond_channels": model.cond_channels,
        "qk_rms_norm": True,
    }
    copied: tuple[str, ...] = (
        "model_channels",
        "num_blocks",
        "num_heads",
        "mlp_ratio",
        "qk_rms_norm_cross",
        "share_mod",
    )
    copied += ("use_checkpoint", "is_shortcut_model", "freeze_shared_parameters", "force_zeros_cond")
    if isinstance(branch, GlobalBranchConfig):
        copied += ("scene_attention", "global_block_ids", "pool", "detach_protected")
        if branch.max_objects is not None:
            arguments |= {"object_embedding": "learned", "max_objects": branch.max_objects}
    return arguments | {name: getattr(branch, name) for name in copied}


def _latent(model: ModelConfig, name: str, width: int) -> Latent:
    if name == SHAPE:
        embedder: Any = ShapePositionEmbedder(model_channels=width, resolution=model.latent_resolution)
    else:
        embedder = LearntPositionEmbedder(model_channels=width, token_len=model.tokens[name])
    return Latent(model.channels[name], width, embedder)
