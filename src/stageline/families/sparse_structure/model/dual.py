"""Both networks added: a flow per object, and one of the scene that corrects it.

The branches meet at the final addition only: with a frozen per-object branch nothing of it is kept for the backward
pass. A fresh scene branch gives exact zeros, so that the sum starts as the per-object flow, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stageline.families.sparse_structure.model.flow import (
    Latents,
    PreparedCondition,
    SparseStructureFlowTdfyWrapper,
)
from stageline.families.sparse_structure.model.global_flow import GlobalSparseStructureFlowTdfyWrapper
from stageline.families.sparse_structure.model.latent import Latent, build_latents

COMBINE_MODES = ("add", "weighted")
PARALLEL = ("none", "streams")


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that take gradients, for an optimizer."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one CUDA stream beside the current one; not part of a module, which is copied and pickled."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


class DualBackboneSparseStructureFlowTdfyWrapper(nn.Module):
    """`sparse_flow` + `global_sparse_flow`, modality by modality.

    sparse_flow_config: arguments of the per-object network, `SparseStructureFlowTdfyWrapper`.
    global_sparse_flow_config: arguments of the scene's, `GlobalSparseStructureFlowTdfyWrapper`. Either may hold
        modules, plain values or `_target_` nodes, and is not changed.
    sparse_flow_checkpoint: file that the per-object branch starts from, or None.
    global_sparse_flow_checkpoint: file that the scene's branch starts from; None for a fresh one, whose output is zero.
    combine_mode: `add`: the sum. `weighted`: the scene's branch times one learned factor.
    global_flow_weight: the factor's start in `weighted`; ignored in `add`.
    checkpoint_dir: folder that relative checkpoint paths begin in.
    freeze_sparse_flow: the per-object branch never trains, see `freeze_sparse`.
    parallel: `streams` runs the branches on two CUDA streams, with the same result; `none` one after the other.

    The condition is embedded once, by the per-object branch's embedder. Width, blocks and heads may differ; modalities,
    their channels and tokens, and the step embedding must not. Raises ValueError that lists what does not fit, and
    FileNotFoundError for missing checkpoints, before any weight is read.
    """

    def __init__(
        self,
        sparse_flow_config: Mapping[str, Any],
        global_sparse_flow_config: Mapping[str, Any],
        sparse_flow_checkpoint: str | None = None,
        global_sparse_flow_checkpoint: str | None = None,
        combine_mode: str = "add",
        global_flow_weight: float = 1.0,
        checkpoint_dir: str = "",
        freeze_sparse_flow: bool = False,
        parallel: str = "none",
    ) -> None:
        super().__init__()
        files = {
            "sparse_flow": sparse_flow_checkpoint,
            "global_sparse_flow": global_sparse_flow_checkpoint,
        }
        is_fresh = global_sparse_flow_checkpoint is None
        _raise(_option_faults(combine_mode, global_flow_weight, parallel, is_fresh))
        paths = _checkpoint_paths(files, checkpoint_dir)
        sparse_config = _own_config("sparse_flow_config", sparse_flow_config)
        global_config = _own_config("global_sparse_flow_config", global_sparse_flow_config)
        embedder = _shared_embedder(sparse_config, global_config)
        _raise(_branch_faults(sparse_config, global_config))
        self.combine_mode, self.parallel = combine_mode, parallel
        self.sparse_flow = SparseStructureFlowTdfyWrapper(**{**sparse_config, "condition_embedder": embedder})
        self.global_sparse_flow = GlobalSparseStructureFlowTdfyWrapper(**global_config)
        self.global_flow_weight: nn.Parameter | None = None
        if combine_mode == "weighted":
            self.global_flow_weight = nn.Parameter(torch.tensor(float(global_flow_weight)))
        self.is_sparse_frozen = False
        if paths:
            # Loaded here: it reaches the store, which a network without files needs nothing of.
            from stageline.families.sparse_structure.checkpoint_utils import load_dual_backbone_from_checkpoints

            load_dual_backbone_from_checkpoints(self, paths.get("sparse_flow"), paths.get("global_sparse_flow"))
        if freeze_sparse_flow:
            self.freeze_sparse()

    @property
    def latent_mapping(self) -> nn.ModuleDict:
        """The per-object branch's: samplers read tokens and channels from it."""
        return self.sparse_flow.latent_mapping

    @property
    def condition_embedder(self) -> Callable[..., Tensor] | None:
        """The per-object branch's; there is no other."""
        return self.sparse_flow.condition_embedder

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.sparse_flow.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights outside the blocks."""
        return self.sparse_flow.dtype

    def freeze_sparse(self) -> None:
        """The per-object branch takes no gradients, stays in evaluation mode and records nothing."""
        self.is_sparse_frozen = True
        self.sparse_flow.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DualBackboneSparseStructureFlowTdfyWrapper:
        """Training or evaluation mode; a frozen branch stays in evaluation mode."""
        super().train(mode)
        if self.is_sparse_frozen:
            self.sparse_flow.eval()
        return self

    def prepare_condition(self, *condition_args: Any, **condition_kwargs: Any) -> PreparedCondition:
        """The condition, embedded once for both branches; see the per-object network."""
        with self._sparse_gradients():
            return self.sparse_flow.prepare_condition(*condition_args, **condition_kwargs)

    def _sparse_gradients(self) -> AbstractContextManager[Any]:
        return torch.no_grad() if self.is_sparse_frozen else nullcontext()

    def forward(
        self,
        latents_dict: Latents,
        t: Tensor | float,
        *condition_args: Any,
        cfg: bool = False,
        d: Tensor | float | None = None,
        scene_sizes: Sequence[int] | None = None,
        scene_strength: float = 0.0,
        **condition_kwargs: Any,
    ) -> dict[str, Tensor]:
        """Modality -> velocity (N, L, ch).

        latents_dict, t, condition_args, condition_kwargs, cfg, d: as in the per-object network; both branches get them.
        scene_sizes: as in the scene's network.
        scene_strength: s of (1 + s) (sum of both) - s (per-object branch): classifier-free guidance (arXiv:2207.12598)
            whose condition is the scene. For sampling; 0 is the sum as it was trained.
        """
        condition = self.prepare_condition(*condition_args, **condition_kwargs)

        def sparse() -> dict[str, Tensor]:
            with self._sparse_gradients():
                out: dict[str, Tensor] = self.sparse_flow(latents_dict, t, condition, d=d, cfg=cfg)
                return out

        def scene() -> dict[str, Tensor]:
            out: dict[str, Tensor] = self.global_sparse_flow(
                latents_dict, t, condition, d=d, cfg=cfg, scene_sizes=scene_sizes
            )
            return out

        if self.parallel == "streams" and self.device.type == "cuda":
            ours, theirs = self._on_two_streams(sparse, scene, [*latents_dict.values(), condition.tokens, t, d])
        else:
            ours, theirs = sparse(), scene()
        return self._combined(ours, theirs, scene_strength)

    def _on_two_streams(
        self, sparse: Callable[[], dict[str, Tensor]], scene: Callable[[], dict[str, Tensor]], inputs: Sequence[Any]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Both branches, the scene's on the side stream. inputs: what both read."""
        main, side = torch.cuda.current_stream(self.device), _side_stream(self.device)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            theirs = scene()
        ours = sparse()
        main.wait_stream(side)
        # The allocator must not give memory away that the other stream still reads.
        for tensor in inputs:
            if isinstance(tensor, Tensor) and tensor.is_cuda:
                tensor.record_stream(side)
        for tensor in theirs.values():
            tensor.record_stream(main)
        return ours, theirs

    def _combined(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
        if set(ours) != set(theirs):
            raise ValueError(f"outputs differ: {sorted(set(ours) ^ set(theirs))} are of one branch only")
        wrong = [
            f"{m}: {list(x.shape)} and {list(theirs[m].shape)}" for m, x in ours.items() if x.shape != theirs[m].shape
        ]
        if wrong:
            raise ValueError(f"outputs of the branches differ in shape: {'; '.join(wrong)}")
        if strength:
            theirs = {m: (1 + strength) * x for m, x in theirs.items()}
        if self.global_flow_weight is None:
            return {m: x + theirs[m] for m, x in ours.items()}
        weight = self.global_flow_weight
        return {m: x + weight.to(x.dtype) * theirs[m] for m, x in ours.items()}

    def init_global_from_sparse(self, block_map: str | Sequence[int] = "even") -> None:
        """Copy the per-object branch's weights into the scene's, and set its output heads to zero.

        block_map: which block each of the scene's blocks comes from: `even` (spread from first to last), `first` (the
            first ones), or their numbers.

        Raises ValueError where the branches differ in more than the number of blocks.
        """
        sparse, scene = self.sparse_flow, self.global_sparse_flow
        numbers = _block_numbers(block_map, sparse.num_blocks, scene.num_blocks)
        source, target = sparse.state_dict(), scene.state_dict()
        copied = {}
        faults = []
        for key, value in target.items():
            if key.startswith("object_emb."):
                continue
            origin = key
            if key.startswith("blocks."):
                number, rest = key.removeprefix("blocks.").split(".", 1)
                origin = f"blocks.{numbers[int(number)]}.{rest}"
            if origin not in source or source[origin].shape != value.shape:
                found = list(source[origin].shape) if origin in source else "not there"
                faults.append(f"{key} is {list(value.shape)}, {origin} of the per-object branch {found}")
            else:
                copied[key] = source[origin]
        _raise(faults)
        with torch.no_grad():
            for key, value in copied.items():
                target[key].copy_(value)
        scene.zero_output()


def _own_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a branch's arguments, its latents built; TypeError for what is no mapping."""
    if not isinstance(config, Mapping):
        raise TypeError(f"{name} is {type(config).__name__}, expected a mapping of arguments")
    own = dict(config)
    if "latent_mapping" in own:
        own["latent_mapping"] = build_latents(own["latent_mapping"])
    return own


def _block_numbers(block_map: str | Sequence[int], there: int, wanted: int) -> list[int]:
    """Which block each of the wanted ones comes from."""
    if block_map == "even":
        numbers = [round(i * (there - 1) / max(wanted - 1, 1)) for i in range(wanted)]
    elif block_map == "first":
        numbers = list(range(wanted))
    elif isinstance(block_map, str):
        raise ValueError(f"block_map is {block_map!r}, expected 'even', 'first' or {wanted} block numbers")
    else:
        numbers = [int(number) for number in block_map]
    if len(numbers) != wanted or any(not 0 <= number < there for number in numbers):
        raise ValueError(f"block_map gives the blocks {numbers}, expected {wanted} numbers from 0 to {there - 1}")
    return numbers


def _raise(faults: Sequence[str]) -> None:
    if faults:
        raise ValueError(f"DualBackboneSparseStructureFlowTdfyWrapper: {'; '.join(faults)}")


def _option_faults(combine_mode: str, weight: float, parallel: str, is_fresh: bool) -> list[str]:
    """What does not fit among the options."""
    faults = []
    if combine_mode not in COMBINE_MODES:
        faults.append(f"combine_mode is {combine_mode!r}, expected one of {', '.join(COMBINE_MODES)}")
    if parallel not in PARALLEL:
        faults.append(f"parallel is {parallel!r}, expected one of {', '.join(PARALLEL)}")
    if combine_mode == "weighted" and not math.isfinite(weight):
        faults.append(f"global_flow_weight is {weight}, expected a finite number")
    if combine_mode == "weighted" and weight == 0 and is_fresh:
        faults.append(
            "global_flow_weight is 0 and the scene's branch is fresh: neither would ever get a gradient; "
            "start from another weight, or give global_sparse_flow_checkpoint"
        )
    return faults


def _checkpoint_paths(files: Mapping[str, str | None], folder: str) -> dict[str, Path]:
    """Branch -> file; FileNotFoundError that lists all which are missing."""
    paths = {branch: Path(folder, file) for branch, file in files.items() if file is not None}
    missing = [f"{branch}: {path}" for branch, path in paths.items() if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"no checkpoint at {'; '.join(missing)}")
    return paths


def _shared_embedder(sparse_config: Mapping[str, Any], global_config: dict[str, Any]) -> Any:
    """The one condition embedder, taken out of the scene's config; ValueError where that names another."""
    own, other = sparse_config.get("condition_embedder"), global_config.pop("condition_embedder", None)
    if other is not None and other is not own:
        raise ValueError(
            "DualBackboneSparseStructureFlowTdfyWrapper: the branches have different condition embedders; "
            "the condition is embedded once: give the same object to both, or only the per-object branch one"
        )
    return own


def _branch_faults(sparse_config: Mapping[str, Any], global_config: Mapping[str, Any]) -> list[str]:
    """What the branches must have in common and have not; or have in common and must not."""
    ours: Mapping[str, Latent] = sparse_config.get("latent_mapping", {})
    theirs: Mapping[str, Latent] = global_config.get("latent_mapping", {})
    faults = []
    if list(ours) != list(theirs):
        faults.append(f"the modalities are {list(ours)} and {list(theirs)}, expected the same in the same order")
    for name in (name for name in ours if name in theirs):
        one, two = ours[name], theirs[name]
        for what, left, right in (
            ("channels", one.in_channels, two.in_channels),
            ("tokens", one.num_tokens, two.num_tokens),
        ):
            if left != right:
                faults.append(f"modality {name!r} has {left} and {right} {what}, expected the same")
        if {id(p) for p in one.parameters()} & {id(p) for p in two.parameters()}:
            faults.append(
                f"both branches hold the same Latent {name!r}: a zeroed head would zero the other's; build two"
            )
    flags = [bool(config.get("is_shortcut_model", False)) for config in (sparse_config, global_config)]
    if flags[0] != flags[1]:
        faults.append(f"is_shortcut_model is {flags[0]} and {flags[1]}, expected the same")
    return faults
