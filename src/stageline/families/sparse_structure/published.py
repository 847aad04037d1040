"""A YAML file of the published structure as settings of the family; no torch.

The file describes objects: ShortCut, in it guidance, in that the dual backbone (see `aliases`). Read here is what it
says of sizes and of the objective. What it leaves out keeps the family's default; what the family has no setting for is
refused, unless it is the value that the family always has, or concerns sampling alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stageline.config import read_yaml
from stageline.errors import ConfigError, Faults
from stageline.families.sparse_structure.aliases import GENERATOR, refuse_faults

SHAPE = "shape"
POSE_STREAM = "6drotation_normalized"
BRANCH_KEYS = (
    *("model_channels", "num_blocks", "num_heads", "mlp_ratio", "qk_rms_norm_cross", "share_mod", "use_checkpoint"),
    *("is_shortcut_model", "freeze_shared_parameters", "force_zeros_cond"),
)
"""Arguments of a branch that are settings by the same name."""
GLOBAL_KEYS = ("scene_attention", "global_block_ids", "pool", "detach_protected")
BRANCH_FIXED: Mapping[str, Any] = {
    "pe_mode": "ape",
    "qk_rms_norm": True,
    "condition_embedder": None,
    "use_fp16": False,
    "zero_init_output": True,
}
"""Arguments that have one value here; half precision is the trainer's affair."""
BRANCH_UNREAD = ("resolution", "patch_size", "shape_attend_pose", "freeze_d_time_embedder", "out_channels")
OBJECTIVE_KEYS = (
    *("sigma_min", "time_scale", "loss_weights", "self_consistency_prob", "shortcut_loss_weight"),
    *("self_consistency_cfg_strength", "ratio_cfg_samples_in_self_consistency_target", "fm_in_shortcut_target_prob"),
    *("fm_eps_max", "batch_mode", "cfg_modalities", "t_d_sampling", "anchor_smallest_step", "shared_draws"),
    *("shared_draws_from", "shared_draws_prob", "cfg_only_smallest_step"),
)
"""Arguments of ShortCut that are settings of `objective` by the same name."""
SAMPLING_KEYS = ("inference_steps", "rescale_t", "reversed_timestamp", "no_shortcut", "solver_method", "solver_kwargs")
"""Arguments of ShortCut that training does not read."""
GUIDANCE_KEYS = ("p_unconditional", "strength", "unconditional_handling", "interval")
DUAL = "DualBackboneSparseStructureFlowTdfyWrapper"


@dataclass(frozen=True)
class Published:
    """What a file says.

    model, objective: sections of the config.  weights: the files of the sparse and of the global branch that it names,
    as given there, below `checkpoint_dir`; None for a branch that starts fresh.
    """

    model: Mapping[str, Any]
    objective: Mapping[str, Any]
    weights: tuple[Path | None, Path | None]


def read_published(path: str | Path) -> Published:
    """The settings of a file. ConfigError with everything in it that has no counterpart."""
    faults = Faults(ConfigError, f"{str(path)!r}", "mend the file, or train with a config of stageline")
    if not Path(path).is_file():
        raise ConfigError(f"there is no file {str(path)!r}", remedy="name YAML of the published structure")
    node: Any = read_yaml(path)
    for key in GENERATOR.split("."):
        if not isinstance(node, Mapping) or key not in node:
            raise ConfigError(f"{str(path)!r} has no {GENERATOR!r}", remedy="name a file of the published structure")
        node = node[key]
    refuse_faults(node)
    shortcut = _Reader(node, "", faults)
    shortcut.target("ShortCut")
    objective = shortcut.copied(OBJECTIVE_KEYS)
    weighted = objective.pop("loss_weights", None)
    if isinstance(weighted, Mapping):
        objective["loss_weights"] = _entries(weighted)
    elif weighted not in (None, 1):
        faults.add(f"loss_weights {weighted!r}: a weight per modality, or 1 for all")
    times = shortcut.child("training_time_sampler_fn")
    if times is not None:
        times.target("lognorm_sampler")
        objective |= {f"time_{name}": value for name, value in times.copied(("mean", "std")).items()}
        times.refuse_rest()
    guidance = shortcut.child("reverse_fn")
    shortcut.refuse_rest(SAMPLING_KEYS)
    if guidance is None:
        faults.add("it has no reverse_fn, the guidance around the network")
        faults.raise_if_any()
        raise AssertionError("raised above")
    guidance.target("ClassifierFreeGuidance", "ClassifierFreeGuidanceWithExternalUnconditionalProbability")
    objective["guidance"] = guidance.copied(GUIDANCE_KEYS)
    if objective["guidance"].get("interval") is None:  # the wrapper guides at no time then, whatever the strength
        objective["guidance"] = {**objective["guidance"], "strength": 0.0}
        objective["guidance"].pop("interval", None)
    dual = guidance.child("backbone")
    guidance.refuse_rest(("use_unconditional_from_flow_matching",))
    if dual is None or str(dual.node.get("_target_", "")).rpartition(".")[2] != DUAL:
        faults.add(
            "its network is no dual backbone; one that sees single objects is trained on scenes by "
            "stageline.families.sparse_structure.train_scenes"
        )
        faults.raise_if_any()
        raise AssertionError("raised above")
    model = dual.copied(("combine_mode", "global_flow_weight"))
    folder = dual.taken("checkpoint_dir") or ""
    found = [dual.taken(f"{branch}_checkpoint") for branch in ("sparse_flow", "global_sparse_flow")]
    sizes = []
    for branch in ("sparse_flow", "global_sparse_flow"):
        reader = dual.child(f"{branch}_config")
        if reader is None:
            faults.add(f"{dual.where}.{branch}_config is missing")
            continue
        model[branch], shared = _branch(reader, is_global=branch == "global_sparse_flow")
        sizes.append(shared)
    dual.refuse_rest(("parallel", "freeze_sparse_flow"))
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        faults.add(f"the branches differ: {sizes[0]} and {sizes[1]}")
    faults.raise_if_any()
    weights = [None if file is None else Path(folder, file) for file in found]
    return Published({**model, **sizes[0]}, objective, (weights[0], weights[1]))


class _Reader:
    """A mapping of the file whose entries are taken one after the other; what is left over is a fault.

    where: its place below the generator, for messages.
    """

    def __init__(self, node: Mapping[str, Any], where: str, faults: Faults) -> None:
        self.node, self.where, self.faults = node, where, faults
        self.left = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}

    def target(self, *names: str) -> None:
        """A fault unless the class is one of these."""
        found = str(self.node.get("_target_", ""))
        if found.rpartition(".")[2] not in names:
            self.faults.add(
                f"{self.where or 'the generator'} is {found or 'no object'!r}, expected {' or '.join(names)}"
            )

    def taken(self, key: str) -> Any:
        """A value; None where it is not there."""
        return self.left.pop(key, None)

    def copied(self, keys: tuple[str, ...]) -> dict[str, Any]:
        """Those of some entries that are there."""
        return {key: self.left.pop(key) for key in keys if key in self.left}

    def child(self, key: str) -> _Reader | None:
        """A mapping below this one."""
        value, where = self.left.pop(key, None), f"{self.where}.{key}".lstrip(".")
        if value is not None and not isinstance(value, Mapping):
            self.faults.add(f"{where} is {value!r}, expected a mapping")
        return _Reader(value, where, self.faults) if isinstance(value, Mapping) else None

    def refuse_rest(self, unread: tuple[str, ...] = ()) -> None:
        """A fault for every entry that nobody took. unread: those without an effect on training."""
        self.faults.extend(
            f"{self.where}.{key} {value!r} is no setting of the family".lstrip(".")
            for key, value in self.left.items()
            if key not in unread
        )


def _branch(reader: _Reader, *, is_global: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings of one branch, those that both branches have)."""
    settings = reader.copied(BRANCH_KEYS + (GLOBAL_KEYS if is_global else ()))
    embedding, most = reader.taken("object_embedding"), reader.taken("max_objects")
    if embedding is not None:
        settings["max_objects"] = most if most is not None else 32
    elif most is not None and not is_global:
        reader.faults.add(f"{reader.where}.max_objects: the branch of one object has none")
    for key, only in BRANCH_FIXED.items():
        if key in reader.left and reader.taken(key) != only:
            reader.faults.add(f"{reader.where}.{key} is {reader.node[key]!r}, and always {only!r} here")
    latents, shape = _entries(reader.taken("latent_mapping")), {}
    channels = {name: _entries(entry).get("in_channels") for name, entry in latents.items()}
    embedder = _entries(_entries(latents.get(SHAPE)).get("pos_embedder"))
    if SHAPE not in latents or not isinstance(embedder.get("resolution"), int):
        reader.faults.add(f"{reader.where}.latent_mapping has no {SHAPE!r} with a grid")
    else:
        cells = embedder["resolution"] // (embedder.get("patch_size") or 1)
        shape = {"resolution": 4 * cells, "latent_channels": channels[SHAPE]}
    if reader.taken("in_channels") not in (None, channels.get(SHAPE)):
        reader.faults.add(f"{reader.where}.in_channels is not that of {SHAPE!r}")
    pose = [name for name in latents if name != SHAPE]
    merged = _entries(reader.taken("latent_share_transformer"))
    if set(merged) == {POSE_STREAM} and sorted(merged[POSE_STREAM]) == sorted(pose):
        pose = list(merged[POSE_STREAM])
    elif merged:
        reader.faults.add(
            f"{reader.where}.latent_share_transformer {merged!r}: pose tokens are one stream {POSE_STREAM!r} or none"
        )
    settings["merge_pose"] = bool(merged)
    shared = {**shape, **reader.copied(("cond_channels",)), "modalities": [SHAPE, *pose]}
    reader.refuse_rest(BRANCH_UNREAD)
    return settings, shared


def _entries(node: Any) -> dict[str, Any]:
    """A mapping without what says of which class it is; {} for anything else."""
    return {k: v for k, v in node.items() if k not in ("_target_", "_partial_")} if isinstance(node, Mapping) else {}
