"""Checkpoints of ours as the guide's files: `checkpoint export --format ckpt`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from stageline.checkpoint.torch_files import write_torch_file
from stageline.errors import CheckpointError
from stageline.families.sparse_structure.checkpoint_utils import BRANCHES, STATE_DICT, dual_files
from stageline.families.sparse_structure.facts import has_global, has_sparse
from stageline.families.sparse_structure.inheritance import FACTOR

if TYPE_CHECKING:
    from stageline.families.sparse_structure.config import SparseStructureConfig
    from stageline.stage import Stage


def write_ckpt(
    config: SparseStructureConfig, stage: Stage, tensors: Mapping[str, Tensor], folder: Path
) -> tuple[Path, ...]:
    """`sparse_flow.ckpt`, and of stages with both branches the other two files of the guide too.

    tensors: of a checkpoint, all of them; autoencoder and scale are no part of these files.
    CheckpointError for a stage without a flow.
    """
    del config
    if not has_sparse(stage):
        raise CheckpointError(
            f"a checkpoint of stage {stage.name!r} holds no flow", remedy="export it as safetensors, or a later stage"
        )
    names = tuple(f"{branch}." for branch in BRANCHES)
    flow = {name: tensor for name, tensor in tensors.items() if name.startswith(names) or name == FACTOR}
    files = {name: part for name, part in dual_files(flow).items() if has_global(stage) or name == "sparse_flow.ckpt"}
    for name, part in files.items():
        write_torch_file(folder / name, {STATE_DICT: part})
    return tuple(folder / name for name in files)
