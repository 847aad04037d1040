"""What a checkpoint of sparse_structure says about itself, and how verbs compare it; no torch.

Facts are flat, named as the keys of `model` that they follow from. What a stage has not, its facts say by null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stageline.config import flatten, validate
from stageline.contract import Comparison
from stageline.errors import CheckpointError, Faults
from stageline.families.sparse_structure.config.model import BranchConfig, GlobalBranchConfig

if TYPE_CHECKING:
    from stageline.families.sparse_structure.config import SparseStructureConfig
    from stageline.stage import Stage

NOT_FACTS = frozenset({"freeze_shared_parameters", "use_checkpoint", "start", "block_map"})
"""Keys of a branch that say how it is trained or computed."""
VAE = ("resolution", "latent_channels", "vae.width", "vae.blocks")
"""Facts that tell the autoencoder's tensors."""
LATENTS = ("resolution", "latent_channels")
"""Facts of every stage."""
SPARSE = tuple(f"sparse_flow.{key}" for key in BranchConfig.model_fields if key not in NOT_FACTS)
GLOBAL = tuple(f"global_sparse_flow.{key}" for key in GlobalBranchConfig.model_fields if key not in NOT_FACTS)
BOTH = ("combine_mode",)
FLOW = ("modalities", "cond_channels", "cond_tokens")


def has_sparse(stage: Stage) -> bool:
    """Whether the stage's model has the branch that sees one object."""
    return stage.name != "shape_vae"


def has_global(stage: Stage) -> bool:
    """Whether the stage's model has the branch that sees the scene."""
    return stage.name in ("global_flow", "joint")


def facts(config: SparseStructureConfig, stage: Stage) -> dict[str, Any]:
    """What a checkpoint of this stage says about itself. config: the stage's own."""
    plain: dict[str, Any] = flatten(json.loads(config.model.model_dump_json()))
    present = set(LATENTS)
    present |= set(VAE) if config.has_vae else set()
    present |= {*FLOW, *SPARSE} if has_sparse(stage) else set()
    present |= {*GLOBAL, *BOTH} if has_global(stage) else set()
    names = dict.fromkeys((*VAE, *FLOW, *SPARSE, *GLOBAL, *BOTH))
    return {"voxels": config.has_vae, **{name: plain[name] if name in present else None for name in names}}


def asked(config: type[SparseStructureConfig], raw: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that a user's own config states."""
    stated = flatten(dict(raw.get("model") or {}))
    plain = flatten(json.loads(validate(dict(raw), config, "config").model.model_dump_json()))
    known = {*VAE, *FLOW, *SPARSE, *GLOBAL, *BOTH}
    return {name: plain[name] for name in stated if name in known and name in plain}


_OF_PARTS: dict[str, Comparison] = {"seed": "report_both", "evaluate": "report_both"}
"""What only one of two stages has is no difference; a difference in what both have, `inherit` and `agree` refuse."""
FACT_RULES: dict[str, dict[str, Comparison]] = {
    "voxels": {"seed": "report", "evaluate": "report"},
    **dict.fromkeys((*VAE, *FLOW, *SPARSE, *GLOBAL, *BOTH), _OF_PARTS),
}


def agree(
    asked: Mapping[str, Any], found: Mapping[str, Any], _shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """CheckpointError where a config states other sizes than the checkpoint has, of parts that it has."""
    faults = Faults(CheckpointError, where, "give section `model` the checkpoint's values, or name another checkpoint")
    for name, value in asked.items():
        own = found.get(name)
        if own is not None and value is not None and own != value:
            faults.add(f"{name}: checkpoint {own!r}, config {value!r}")
    faults.raise_if_any()


def summary(config: SparseStructureConfig, stage: Stage) -> tuple[str, ...]:
    """Lines about the model, for people who look at a plan."""
    model = config.model
    lines = [f"objects of {model.resolution}³ voxels as {model.latent_resolution}³ x {model.latent_channels} latents"]
    if has_sparse(stage):
        branch = model.sparse_flow
        lines.append(f"sparse_flow: {branch.num_blocks} blocks, {branch.model_channels} wide")
    if has_global(stage):
        scene = model.global_sparse_flow
        start = "copied from sparse_flow" if scene.start == "sparse" else "fresh"
        attention = f"{scene.scene_attention} attention across objects"
        lines.append(
            f"global_sparse_flow: {scene.num_blocks} blocks, {scene.model_channels} wide, {start}, {attention}"
        )
    return tuple(lines)
