"""What the keys of the config say about each other: every contradiction found, all at once. No torch.

A rule stands here when it needs more than one key; the range of one key stands with the key. What a stage needs beyond
that stands in `check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from stageline.config import SectionError
from stageline.errors import ConfigError, Faults
from stageline.families.sparse_structure.data.furniture import STYLES
from stageline.stage import FROM_SCRATCH

if TYPE_CHECKING:
    from stageline.families.sparse_structure.config import SparseStructureConfig
    from stageline.families.sparse_structure.config.model import BranchConfig, GlobalBranchConfig, ModelConfig
    from stageline.families.sparse_structure.config.sections import DataConfig
    from stageline.stage import Stage

LIKE_SPARSE = ("model_channels", "num_heads", "mlp_ratio", "qk_rms_norm_cross", "share_mod", "merge_pose")
"""Keys in which branches agree, so that blocks of the one are blocks of the other."""
DUAL = ("global_flow", "joint")
"""Stages whose model has both branches."""


def raise_faults(faults: Sequence[str]) -> None:
    """One error that lists all faults of a section."""
    if faults:
        raise SectionError(list(faults))


def branch_faults(branch: BranchConfig) -> list[str]:
    """The contradictions inside a branch."""
    faults = []
    if branch.model_channels % branch.num_heads:
        faults.append(f"num_heads {branch.num_heads} do not divide model_channels {branch.model_channels}")
    ids = getattr(branch, "global_block_ids", None)
    if ids is not None:
        faults += _block_ids("global_block_ids", ids, branch.num_blocks)
        if not ids:
            faults.append("global_block_ids is empty: no block would see the scene; null is all")
        if len(set(ids)) != len(ids):
            faults.append(f"global_block_ids {list(ids)} name a block twice")
    return faults


def _block_ids(key: str, ids: Sequence[int], num_blocks: int) -> list[str]:
    wrong = [number for number in ids if not 0 <= number < num_blocks]
    return [f"{key} {wrong} are no blocks of {num_blocks}, counted from 0"] if wrong else []


def model_faults(model: ModelConfig) -> list[str]:
    """The contradictions inside `model`."""
    from stageline.families.sparse_structure.config.model import POSE, SHAPE

    faults = []
    unknown = [name for name in model.modalities if name not in (SHAPE, *POSE)]
    if unknown:
        faults.append(f"modalities {unknown} are unknown; known: {', '.join((SHAPE, *POSE))}")
    if len(set(model.modalities)) != len(model.modalities):
        faults.append(f"modalities {list(model.modalities)} name one twice")
    if model.modalities[:1] != (SHAPE,) or len(model.modalities) < 2:
        faults.append(f"modalities {list(model.modalities)}: {SHAPE!r} stands first, at least one of a pose follows")
    if model.combine_mode == "add" and model.global_flow_weight != 1.0:
        faults.append(f"global_flow_weight {model.global_flow_weight:g} is read by combine_mode 'weighted' alone")
    return [*faults, *_global_faults(model, model.global_sparse_flow)]


def _global_faults(model: ModelConfig, branch: GlobalBranchConfig) -> Iterator[str]:
    if model.combine_mode == "weighted" and model.global_flow_weight == 0:
        yield "global_flow_weight 0: the global branch starts at zero too, so neither would ever have a gradient"
    if branch.scene_attention == "pooled" and model.latent_resolution % branch.pool:
        yield f"global_sparse_flow.pool {branch.pool} does not divide the {model.latent_resolution} latents of an edge"
    if branch.is_shortcut_model != model.sparse_flow.is_shortcut_model:
        yield "global_sparse_flow.is_shortcut_model differs from sparse_flow's: both are told the step or none"
    if branch.start == "fresh":
        if branch.block_map != "even":
            yield "global_sparse_flow.block_map is read where start is 'sparse' alone"
        if branch.freeze_shared_parameters:
            yield (
                "global_sparse_flow.freeze_shared_parameters with start 'fresh': modulation starts at zero and keeps "
                "the blocks closed for ever; start from sparse"
            )
        return
    for key in LIKE_SPARSE:
        own, other = getattr(branch, key), getattr(model.sparse_flow, key)
        if own != other:
            yield f"global_sparse_flow.{key} {own!r}, sparse_flow.{key} {other!r}: copied blocks are equal; say the "
            "same, or start: fresh"
    if isinstance(branch.block_map, tuple):
        if len(branch.block_map) != branch.num_blocks:
            yield f"global_sparse_flow.block_map names {len(branch.block_map)} blocks for {branch.num_blocks}"
        yield from _block_ids("global_sparse_flow.block_map", branch.block_map, model.sparse_flow.num_blocks)
    elif branch.num_blocks > model.sparse_flow.num_blocks:
        yield (
            f"global_sparse_flow.num_blocks {branch.num_blocks} are more than the {model.sparse_flow.num_blocks} that "
            "sparse_flow has; list them in block_map, or say start: fresh"
        )


def data_faults(data: DataConfig) -> list[str]:
    """The contradictions inside `data`."""
    low, high = data.num_objects
    faults = []
    if not 1 <= low <= high:
        faults.append(f"num_objects {[low, high]}: fewest and most, at least 1")
    if not data.styles or len(set(data.styles)) < len(data.styles) or not set(data.styles) <= set(STYLES):
        faults.append(f"styles {list(data.styles)}: different ones of {', '.join(STYLES)}")
    if data.name == "made":
        faults += ["data_root is read for meshes and latents alone"] if data.data_root is not None else []
    elif data.data_root is None:
        faults.append(f"name {data.name!r} needs data_root")
    if data.allow_extra and data.name != "latents":
        faults.append("allow_extra is read for latents alone")
    if data.shuffle_objects and data.name == "latents":
        faults.append("shuffle_objects exchanges voxels, and latents have none")
    if data.fill != "surface" and data.name != "meshes":
        faults.append("fill is read for meshes alone")
    return faults


def config_faults(config: SparseStructureConfig) -> list[str]:
    """The contradictions between sections."""
    objective, modalities = config.objective, config.model.modalities
    faults = []
    weights = objective.loss_weights
    if weights is not None and set(weights) != set(modalities):
        faults.append(
            f"objective.loss_weights names {sorted(weights)}, model.modalities are {sorted(modalities)}; name each once"
        )
    if weights is not None and not any(weights.values()):
        faults.append("objective.loss_weights are all 0: nothing would train")
    faults += [f"objective.loss_weights.{name} {w:g} is negative" for name, w in (weights or {}).items() if w < 0]
    unknown = [name for name in objective.cfg_modalities if name not in modalities]
    if unknown:
        faults.append(f"objective.cfg_modalities {unknown} are none of model.modalities")
    if objective.guidance.interval[0] > objective.guidance.interval[1]:
        faults.append(f"objective.guidance.interval {list(objective.guidance.interval)} ends before it begins")
    if objective.shared_draws is False and (objective.shared_draws_from or objective.shared_draws_prob < 1):
        faults.append(
            "objective.shared_draws_from and shared_draws_prob say when draws are shared, and objective.shared_draws "
            "is false"
        )
    window = objective.time_window
    if window is not None and not 0 <= window[0] < window[1] <= 1:
        faults.append(f"objective.time_window {list(window)}: two times in [0, 1], the earlier first")
    steps = config.evaluate.steps
    if any(number < 1 for number in steps) or not steps or len(set(steps)) < len(steps):
        faults.append(f"evaluate.steps {list(steps)}: at least one number, each at least 1 and named once")
    return faults


def _flow_faults(config: SparseStructureConfig) -> Iterator[str]:
    """What networks and objective say of each other: rules of the stages that read both."""
    objective = config.objective
    handling = objective.guidance.unconditional_handling
    if handling in ("discard", "drop_tensors"):
        yield (
            f"objective.guidance.unconditional_handling {handling!r} asks the networks without any condition, and they "
            "attend to one; say 'add_flag' or 'zeros'"
        )
    for name in ("sparse_flow", "global_sparse_flow"):
        listens = getattr(config.model, name).force_zeros_cond
        if handling == "add_flag" and objective.guidance.p_unconditional and not listens:
            yield (
                "objective.guidance.unconditional_handling 'add_flag' leaves conditions to the network, which ignores "
                f"the flag without model.{name}.force_zeros_cond"
            )
    if objective.self_consistency_prob and not config.model.sparse_flow.is_shortcut_model:
        yield (
            "objective.self_consistency_prob > 0 needs model.sparse_flow.is_shortcut_model: a network that is not told "
            "the step cannot learn it"
        )


def check(config: SparseStructureConfig, stage: Stage) -> None:
    """Everything about a stage's config that can be refused before data or model are touched. Raises ConfigError."""
    faults = Faults(ConfigError, f"config of stage {stage.name}")
    model, objective = config.model, config.objective
    if stage.name == "shape_vae" and not config.has_vae:
        faults.add(f"data.name {config.data.name!r} already are latents: there is nothing to encode; leave it out")
    if stage.name != "shape_vae":
        faults.extend(_flow_faults(config))
    scratch = config.parents.get(stage.name, {}).get("sparse", FROM_SCRATCH) == FROM_SCRATCH
    if stage.name == "sparse_flow" and model.sparse_flow.freeze_shared_parameters and scratch:
        faults.add(
            "model.sparse_flow.freeze_shared_parameters: from scratch modulation is zero and would keep the blocks "
            "closed; name weights to start from in parents.sparse_flow.sparse, or say false"
        )
    shares = objective.batch_mode if objective.shared_draws is None else objective.shared_draws
    if not shares and (objective.shared_draws_from or objective.shared_draws_prob < 1):
        faults.add(
            "objective.shared_draws_from and shared_draws_prob need shared draws; say objective.batch_mode: true"
        )
    if stage.name in DUAL and not objective.batch_mode and config.trainer.batch_size > 1:
        faults.add(
            f"trainer.batch_size {config.trainer.batch_size} scenes with objective.batch_mode: false: objects of "
            "different scenes cannot take different branches together; say trainer.batch_size: 1"
        )
    faults.raise_if_any()
