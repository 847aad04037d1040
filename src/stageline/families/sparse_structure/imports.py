"""Import of files of other programs: the published `ss_generator.ckpt`, and what the guide's utilities write.

A file is found by the prefix that covers most of the names that the config's networks have; what stands beside it
belongs to others and is counted. Nothing is loaded in part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from stageline.errors import CheckpointError, Faults
from stageline.families.sparse_structure.assembly import build_model
from stageline.families.sparse_structure.checkpoint_utils import (
    BRANCHES,
    WRAPPERS,
    best_prefix,
    branch_tensors,
    read_state_dict,
)
from stageline.families.sparse_structure.config import STAGES, SparseStructureConfig
from stageline.families.sparse_structure.facts import has_global
from stageline.families.sparse_structure.inheritance import FACTOR
from stageline.layers.shapes_only import shapes_only
from stageline.stage import stage_config

SPARSE, GLOBAL = BRANCHES
REMEDY = (
    "give ss_generator.ckpt, sparse_flow.ckpt, both branches' files, or combined_model.ckpt, and the sizes in `model`"
)


def import_files(
    paths: Sequence[Path], config_raw: Mapping[str, Any], stage: str
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Files -> (raw config, tensors under our names, report).

    paths: one of the per-object network; or one of both branches; or one of each, of which the scene's is called
    `global*`.  config_raw: whose `model` has the files' sizes.  stage: of the family; "" where the number of branches
    says it.
    CheckpointError with everything that does not fit.
    """
    from stageline.config import validate

    config = validate(dict(config_raw), SparseStructureConfig, "config of the files")
    if config.has_vae:
        raise CheckpointError(
            f"data.name is {config.data.name!r}, whose models hold an autoencoder that these files have not",
            remedy="import with data.name=latents data.data_root=..., then name the checkpoint in `parents`",
        )
    files = {path: read_state_dict(path) for path in paths}
    for_both = _has_both(paths, files)
    declared = STAGES[stage or ("global_flow" if for_both else "sparse_flow")]
    if has_global(declared) != for_both:
        has = "both branches" if for_both else "one network"
        raise CheckpointError(f"{_named(paths)}: {has}, which is not what stage {declared.name!r} has", remedy=REMEDY)
    with shapes_only():
        own = build_model(stage_config(config, declared), declared).state_dict()
    found = _branches(paths, files, own) if for_both else _one_branch(paths, files, own)
    faults = Faults(CheckpointError, f"{_named(paths)} as stage {declared.name}", REMEDY)
    faults.extend(f"{name} is not there" for name in own if name not in found)
    faults.extend(f"{name} is not in the model" for name in found if name not in own)
    faults.extend(
        f"{name} has shape {tuple(found[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in found and found[name].shape != own[name].shape
    )
    faults.raise_if_any()
    tensors = _apart({name: found[name].to(own[name].dtype).contiguous() for name in own})
    left_out = sum(map(len, files.values())) - len(tensors)
    return dict(config_raw), tensors, {"files": [path.name for path in paths], "left_out": left_out}


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors; those that share memory with one before have their own. The others stay in their file."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return apart


def _named(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _has_both(paths: Sequence[Path], files: Mapping[Path, Mapping[str, Tensor]]) -> bool:
    """Whether the files hold both branches. CheckpointError where nothing says which file is which."""
    if len(paths) == 1:
        names = files[paths[0]]
        return any(f"{GLOBAL}." in name for name in names) and any(
            name.split(f"{SPARSE}.")[0] in _outer() for name in names
        )
    scenes = [path for path in paths if path.name.startswith("global")]
    if len(paths) != 2 or len(scenes) != 1:
        raise CheckpointError(
            f"{_named(paths)}: of two files one is the scene's and called `global*`; more are none of ours",
            remedy=REMEDY,
        )
    return True


def _outer() -> frozenset[str]:
    return frozenset(f"{outer}{wrapper}" for wrapper in WRAPPERS for outer in ("", "module."))


def _one_branch(
    paths: Sequence[Path], files: Mapping[Path, Mapping[str, Tensor]], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    wanted = {name.removeprefix(f"{SPARSE}."): tensor for name, tensor in own.items()}
    return {f"{SPARSE}.{name}": x for name, x in branch_tensors(files[paths[0]], wanted, SPARSE).items()}


def _branches(
    paths: Sequence[Path], files: Mapping[Path, Mapping[str, Tensor]], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    if len(paths) == 1:
        found = best_prefix(files[paths[0]], own, WRAPPERS)
        return {name: x for name, x in found.items() if name.startswith((f"{SPARSE}.", f"{GLOBAL}.", FACTOR))}
    tensors: dict[str, Tensor] = {}
    for path in paths:
        branch = GLOBAL if path.name.startswith("global") else SPARSE
        wanted = {name.removeprefix(f"{branch}."): x for name, x in own.items() if name.startswith(f"{branch}.")}
        tensors |= {f"{branch}.{name}": x for name, x in branch_tensors(files[path], wanted, branch).items()}
    return tensors
