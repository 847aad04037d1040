"""Checkpoint files of the dual backbone for other programs: the guide's utilities, with its names and arguments.

Read and written are plain tensors by name under `state_dict`, as `.ckpt`, `.pt` or `.safetensors`. A branch is found in
a file by the prefix that covers most of its names, so the published `ss_generator.ckpt`, which also carries embedder
and decoder, is read as it is. Nothing here is a checkpoint of a run: those are directories (`stageline.checkpoint`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stageline.checkpoint.legacy import load_torch_file
from stageline.checkpoint.torch_files import write_torch_file
from stageline.encoders.frozen import read_weights
from stageline.errors import CheckpointError
from stageline.printing import one_line

if TYPE_CHECKING:
    from stageline.families.sparse_structure.model import DualBackboneSparseStructureFlowTdfyWrapper

STATE_DICT = "state_dict"
BRANCHES = ("sparse_flow", "global_sparse_flow")
"""Sub-modules of the dual backbone; their files are `<branch>.ckpt`."""
COMBINED = "combined_model.ckpt"
WRAPPERS = (
    *("", "backbone.", "reverse_fn.backbone.", "generator.reverse_fn.backbone."),
    *("generator.backbone.reverse_fn.backbone.", "_base_models.generator.reverse_fn.backbone."),
)
"""What other programs put before a network's names; each also under `module.`, as DistributedDataParallel names it."""
MOST_NAMES = 12
"""Names of a kind that an error lists."""
_REMEDY = "-> build the model with the file's sizes or name another file; without strict what both have is loaded"


def load_dual_backbone_from_checkpoints(
    model: nn.Module,
    sparse_flow_checkpoint: str | Path | None = None,
    global_sparse_flow_checkpoint: str | Path | None = None,
    sparse_flow_strict: bool = True,
    global_sparse_flow_strict: bool = True,
    state_dict_key: str = STATE_DICT,
) -> nn.Module:
    """Load each given file into its branch; a branch without a file stays as it is.

    model: a dual backbone, also inside DistributedDataParallel or torch.compile.
    sparse_flow_checkpoint, global_sparse_flow_checkpoint: files of one network or of both.
    sparse_flow_strict, global_sparse_flow_strict: whether every name of branch and file must meet; without it what
        both have is loaded, with a warning. Other shapes, or no common name, are errors either way.
    state_dict_key: under which a file holds its tensors, where it has such a level.

    Returns the model; `model.last_load_report[branch]` lists what was `loaded`, `missing` and `unexpected`.
    FileNotFoundError before anything is read; RuntimeError before anything is loaded, with every fault.
    """
    own = _dual(model)
    files = {
        "sparse_flow": (sparse_flow_checkpoint, sparse_flow_strict),
        "global_sparse_flow": (global_sparse_flow_checkpoint, global_sparse_flow_strict),
    }
    given = {branch: (Path(file), strict) for branch, (file, strict) in files.items() if file is not None}
    _refuse_missing([file for file, _ in given.values()])
    found: dict[str, tuple[nn.Module, dict[str, Tensor]]] = {}
    report: dict[str, dict[str, list[str]]] = {}
    faults: list[str] = []
    for branch, (file, strict) in given.items():
        module = unwrapped(own.get_submodule(branch))
        tensors = branch_tensors(read_state_dict(file, state_dict_key), plain_state(module), branch)
        report[branch] = _compared(module, tensors)
        found[branch] = (module, tensors)
        faults += [f"{file} for {branch}: {fault}" for fault in _faults(module, tensors, report[branch], strict)]
    if faults:
        raise RuntimeError("nothing was loaded:\n  " + "\n  ".join([*faults, _REMEDY]))
    for branch, (module, tensors) in found.items():
        _fill(module, tensors, report[branch]["loaded"])
        if report[branch]["missing"] or report[branch]["unexpected"]:
            warnings.warn(f"{branch}: loaded in part; {_left_over(report[branch])}", stacklevel=2)
    own.last_load_report = report  # type: ignore[assignment]  # a plain value on the module, as the guide reads it
    return model


def create_dual_backbone_from_single_checkpoint(
    checkpoint_path: str | Path, dual_backbone_config: Mapping[str, Any], state_dict_key: str = STATE_DICT
) -> DualBackboneSparseStructureFlowTdfyWrapper:
    """A dual backbone whose sparse branch is a per-object checkpoint, and whose global branch changes nothing yet.

    checkpoint_path: file of the per-object network.  dual_backbone_config: arguments of
    `DualBackboneSparseStructureFlowTdfyWrapper`, also as a `_target_` node.  state_dict_key: as above.
    """
    from stageline.families.sparse_structure.aliases import build
    from stageline.families.sparse_structure.model import DualBackboneSparseStructureFlowTdfyWrapper

    _refuse_missing([Path(checkpoint_path)])
    if not isinstance(dual_backbone_config, Mapping):
        found = type(dual_backbone_config).__name__
        raise TypeError(f"dual_backbone_config is a {found}, expected a mapping of the dual backbone's arguments")
    if "_target_" in dual_backbone_config:
        model = build(dual_backbone_config)
    else:
        model = DualBackboneSparseStructureFlowTdfyWrapper(**build(dual_backbone_config))
    if not isinstance(model, DualBackboneSparseStructureFlowTdfyWrapper):
        raise TypeError(f"dual_backbone_config makes a {type(model).__name__}, expected a dual backbone")
    load_dual_backbone_from_checkpoints(model, checkpoint_path, state_dict_key=state_dict_key)
    return model


def save_dual_backbone_checkpoint(
    model: nn.Module,
    save_path: str | Path,
    save_sparse_flow_only: bool = False,
    save_global_flow_only: bool = False,
    additional_state: Mapping[str, Any] | None = None,
) -> tuple[Path, ...]:
    """Write the files of a dual backbone; of several ranks the first one writes.

    model: a dual backbone, also inside DistributedDataParallel, FSDP or torch.compile.
    save_path: a directory gets `sparse_flow.ckpt`, `global_sparse_flow.ckpt` and `combined_model.ckpt`; a file gets
        both branches. It is a directory if it is one, ends with a separator or has no suffix.
    save_sparse_flow_only, save_global_flow_only: this branch alone, without its prefix.
    additional_state: further entries of every file, tensors and plain values (`epoch`, `step`, `optimizer`).

    Returns the files written. ValueError where both branches are to be the only one, and for what no file can hold.
    """
    if save_sparse_flow_only and save_global_flow_only:
        raise ValueError("save_sparse_flow_only and save_global_flow_only exclude each other; leave both out for both")
    extra = dict(additional_state or {})
    if STATE_DICT in extra:
        raise ValueError(f"additional_state has an entry {STATE_DICT!r}, which is the model's own; rename it")
    tensors = {name: _whole(tensor) for name, tensor in plain_state(_dual(model)).items()}
    path = Path(save_path)
    is_folder = os.fspath(save_path).endswith(("/", os.sep)) or path.is_dir() or not path.suffix
    parts = dual_files(tensors)
    only = "sparse_flow.ckpt" if save_sparse_flow_only else "global_sparse_flow.ckpt" if save_global_flow_only else ""
    if only:
        files = {path / only if is_folder else path: parts[only]}
    else:
        files = {path / name: part for name, part in parts.items()} if is_folder else {path: tensors}
    if not (dist.is_initialized() and dist.get_rank() != 0):
        (path if is_folder else path.parent).mkdir(parents=True, exist_ok=True)
        for file, part in files.items():
            write_torch_file(file, {STATE_DICT: part, **extra})
    return tuple(files)


def dual_files(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """File -> its tensors: each branch without its prefix, and everything. tensors: of a dual backbone."""
    branches = {f"{branch}.ckpt": without_prefix(tensors, f"{branch}.") for branch in BRANCHES}
    return branches | {COMBINED: dict(tensors)}


def load_combined_checkpoint(model: nn.Module, path: str | Path, strict: bool = True) -> nn.Module:
    """Restore `combined_model.ckpt`, the weight of `weighted` among it.

    model, strict: as for the branches.  path: the file.  Returns the model.
    """
    own, file = _dual(model), Path(path)
    _refuse_missing([file])
    tensors = best_prefix(read_state_dict(file), plain_state(own), WRAPPERS)
    report = _compared(own, tensors)
    faults = list(_faults(own, tensors, report, strict))
    if faults:
        raise RuntimeError(f"nothing was loaded from {file}:\n  " + "\n  ".join([*faults, _REMEDY]))
    _fill(own, tensors, report["loaded"])
    if report["missing"] or report["unexpected"]:
        warnings.warn(f"{file}: loaded in part; {_left_over(report)}", stacklevel=2)
    own.last_load_report = {"combined": report}  # type: ignore[assignment]
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """A module without what DistributedDataParallel (`module`) and torch.compile (`_orig_mod`) put around it."""
    while True:
        inner = getattr(model, "_orig_mod", None) or (
            model.module if isinstance(model, nn.parallel.DistributedDataParallel) else None
        )
        if inner is None:
            return model
        model = inner


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module by the names that it has where nothing in it is wrapped."""
    wrapped = [name for name, part in module.named_modules() if isinstance(part, nn.parallel.DistributedDataParallel)]
    found = {}
    for name, tensor in module.state_dict().items():
        for outer in reversed(wrapped):  # the inner ones first
            if name.startswith(f"{outer}.module."):
                name = f"{outer}.{name.removeprefix(f'{outer}.module.')}"
        found[_uncompiled(name)] = tensor
    return found


def _uncompiled(name: str) -> str:
    """A tensor's name without what torch.compile puts into it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _dual(model: nn.Module) -> nn.Module:
    """The module without wrappers; TypeError for one that has not both branches."""
    own = unwrapped(model)
    if missing := [branch for branch in BRANCHES if not hasattr(own, branch)]:
        raise TypeError(f"{type(own).__name__} has no {' and no '.join(missing)}; expected a dual backbone")
    return own


def read_state_dict(path: Path, state_dict_key: str = STATE_DICT) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU and left in the file until they are looked at where it allows that.

    path: `.safetensors`, or what `torch.save` wrote.  state_dict_key: the level that holds them, where there is one.
    Names are without what torch.compile puts into them; plain values among tensors are left out.
    CheckpointError names the class of what would have to be executed; nothing ever is.
    """
    if path.suffix == ".safetensors":
        return {_uncompiled(name): tensor for name, tensor in read_weights(path).items()}
    try:
        value = load_torch_file(path, mapped=True)
    except CheckpointError as error:
        if (error.remedy or "").startswith("allow it"):  # there is nothing to allow it by here
            raise CheckpointError(
                error.message, remedy="save it anew with tensors and plain values alone, as {'state_dict': ...}"
            ) from None
        raise
    if isinstance(value, Mapping) and isinstance(value.get(state_dict_key), Mapping):
        value = value[state_dict_key]
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{str(path)!r} holds a {type(value).__name__}", remedy="give a file with a state dict")
    strange = sorted(str(name) for name, item in value.items() if not isinstance(item, Tensor))
    levels = [str(name) for name, item in value.items() if isinstance(item, Mapping)]
    if levels or len(strange) == len(value) > 0:
        raise CheckpointError(
            f"{str(path)!r} holds more than tensors: {_some(strange)}",
            remedy=f"say state_dict_key, one of: {_some(levels)}" if levels else "give a file with a state dict",
        )
    return {_uncompiled(str(name)): tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}


def branch_tensors(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], branch: str, wrappers: tuple[str, ...] = WRAPPERS
) -> dict[str, Tensor]:
    """The part of a file that is one branch, under the branch's own names.

    tensors: of the file.  own: the branch's.  branch: its name, under which a file of both branches holds it.
    """
    return best_prefix(tensors, own, (*wrappers, *(f"{wrapper}{branch}." for wrapper in wrappers)))


def best_prefix(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], prefixes: tuple[str, ...]
) -> dict[str, Tensor]:
    """What stands below the prefix that covers most of the wanted names, without it; of equals the first prefix.

    prefixes: each is also looked for under `module.`.
    """
    candidates = [f"{outer}{prefix}" for prefix in prefixes for outer in ("", "module.")]
    found = [without_prefix(tensors, prefix) for prefix in candidates]
    return max(found, key=lambda part: len(part.keys() & own.keys()))


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, named without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _refuse_missing(files: list[Path]) -> None:
    missing = [str(file.resolve()) for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"no file at {' and at '.join(missing)}; nothing was loaded")


def _compared(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    own = plain_state(module)
    return {
        "loaded": [name for name in own if name in tensors],
        "missing": [name for name in own if name not in tensors],
        "unexpected": [name for name in tensors if name not in own],
    }


def _faults(
    module: nn.Module, tensors: Mapping[str, Tensor], report: Mapping[str, list[str]], strict: bool
) -> Iterator[str]:
    """Why these tensors cannot be loaded."""
    own = plain_state(module)
    if not report["loaded"]:
        there = f"it has {_some(list(tensors))}" if tensors else "it has no tensor"
        wanted = f"{len(own)} wanted: {_some(list(own))}"
        yield f"none of its names is one of the {wanted}; under the known prefixes {there}"
        return
    for name in report["loaded"]:
        if own[name].shape != tensors[name].shape:
            yield f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
    if strict and (report["missing"] or report["unexpected"]):
        yield _left_over(report)


def _left_over(report: Mapping[str, list[str]]) -> str:
    parts = [f"{len(report[kind])} {kind}: {_some(report[kind])}" for kind in ("missing", "unexpected") if report[kind]]
    return "; ".join(parts)


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], names: list[str]) -> None:
    own = plain_state(module)
    with torch.no_grad():
        for name in names:
            own[name].copy_(tensors[name])


def _whole(tensor: Tensor) -> Tensor:
    """A tensor with its own memory on the CPU, of all shards. A collective where it is sharded."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu()


def _some(names: list[str]) -> str:
    return f"{', '.join(map(one_line, names[:MOST_NAMES]))}{', ...' if len(names) > MOST_NAMES else ''}"
