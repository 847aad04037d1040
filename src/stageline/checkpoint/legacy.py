"""Files of other programs, read under `weights_only=True`: nothing in them is ever executed.

A foreign global is refused by name; a fixed allow-list of harmless ones can be switched on. What was read becomes a
checkpoint of ours by `commit_import`; mapping its names is the family's.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from stageline.checkpoint.commit import CheckpointWriter, Snapshot
from stageline.checkpoint.layout import CheckpointRef, StageDir
from stageline.checkpoint.lease import StageLease
from stageline.checkpoint.metadata import Provenance
from stageline.checkpoint.torch_files import grown, loaded_faults
from stageline.config import RetentionConfig
from stageline.errors import CheckpointError
from stageline.store.disk import lfs_pointer

_numpy_rebuild = numpy.empty(0).__reduce__()[0]
_numpy_scalar = numpy.float64(0).__reduce__()[0]

ALLOWED: dict[str, tuple[Any, ...]] = {
    # Old files name the module where numpy kept these before its version 2.
    "numpy": (
        (_numpy_rebuild, "numpy.core.multiarray._reconstruct"),
        (_numpy_rebuild, "numpy._core.multiarray._reconstruct"),
        (_numpy_scalar, "numpy.core.multiarray.scalar"),
        (_numpy_scalar, "numpy._core.multiarray.scalar"),
        numpy.ndarray,
        numpy.dtype,
        *(type(numpy.dtype(code)) for code in "?bBhHiIlLqQefd"),
    ),
    "pathlib": (
        pathlib.PosixPath,
        pathlib.PurePosixPath,
        # A path of Windows is only read, as a pure one.
        (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
    ),
    "argparse": (argparse.Namespace,),
}
"""What `allow` can switch on: plain values only. There is no way to allow anything else."""


def load_torch_file(path: str | Path, allow: tuple[str, ...] = (), *, mapped: bool = False) -> Any:
    """What a file of `torch.save` holds, tensors on the CPU.

    allow: names of `ALLOWED`.  mapped: leave the tensors in the file until they are looked at, where its format allows
    it.  CheckpointError for what is no such file, is damaged, or needs a foreign global.
    """
    file = Path(path)
    unknown = sorted(set(allow) - set(ALLOWED))
    if unknown:
        raise CheckpointError(f"{unknown} can't be allowed", remedy=f"allowable: {', '.join(ALLOWED)}")
    if not file.is_file():
        raise CheckpointError(f"there is no file {str(path)!r}", remedy="check the path")
    if pointer := lfs_pointer(file):
        raise CheckpointError(f"{str(path)!r} is {pointer}")
    if fault := grown(file):
        raise CheckpointError(f"{str(path)!r}: {fault}", remedy="save it anew with torch.save, tensors alone")
    globals_allowed = [item for name in allow for item in ALLOWED[name]]
    try:
        with torch.serialization.safe_globals(globals_allowed):
            # Files of the format before torch 1.6 are no zip archives and cannot be mapped.
            lazy = mapped and zipfile.is_zipfile(file)
            value = torch.load(file, map_location="cpu", weights_only=True, mmap=lazy)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|Unsupported (?:global|class)|Unsupported operand|type) ([\w.]+)", str(error))
        foreign = found[1] if found and "." in found[1] else None
        if foreign is None:
            raise CheckpointError(
                f"{str(path)!r} can't be read safely: it is no file of torch.save with tensors and plain values only",
                remedy="if another program wrote it, save it anew there as such; a pointer or a step directory of "
                "stageline's own is named as it is and needs no import",
            ) from None
        helps = next((name for name in ALLOWED if foreign.startswith((f"{name}.", f"_{name}."))), None)
        raise CheckpointError(
            f"{str(path)!r} needs the foreign object {foreign!r}; only tensors and plain values are read",
            remedy=f"allow it: {helps}" if helps else "save it anew without that object; it is never executed here",
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, LookupError, struct.error) as error:
        raise CheckpointError(
            f"{str(path)!r} is no readable torch file: {str(error).splitlines()[0] if str(error) else type(error)}",
            remedy="check that it was copied whole",
        ) from error
    if faults := loaded_faults(value, file.stat().st_size):
        raise CheckpointError(f"{str(path)!r}: {'; '.join(faults[:3])}", remedy="save these tensors contiguous")
    return value


def tensors_of(value: Any, where: str) -> dict[str, Tensor]:
    """A state dict out of a loaded file: names to tensors, each with its own memory; anything else is refused."""
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{where}: a {type(value).__name__}, expected a mapping of names to tensors")
    strange = [str(name) for name, item in value.items() if not isinstance(item, Tensor)]
    if strange:
        raise CheckpointError(f"{where}: not tensors: {', '.join(sorted(strange))}", remedy="name the state dict in it")
    return {str(name): item.detach().clone().contiguous() for name, item in value.items()}


def commit_import(
    stage_dir: StageDir,
    provenance: Provenance,
    tensors: Mapping[str, Tensor],
    *,
    config_yaml: str,
    notes: Mapping[str, Any],
    ema: Mapping[str, Tensor] | None = None,
) -> CheckpointRef:
    """Commit imported weights as a finished checkpoint at step 0; it can seed and be evaluated, not resumed.

    notes: where it came from and how names were mapped.
    """
    with StageLease.acquire(stage_dir, "stageline checkpoint import") as lease:
        writer = CheckpointWriter(stage_dir, lease, provenance, RetentionConfig())
        return writer.save(
            Snapshot(
                step=0,
                steps=0,
                final=True,
                tensors=tensors,
                ema=ema,
                config_yaml=config_yaml,
                notes={"import": dict(notes)},
                is_best=True,
            )
        )
