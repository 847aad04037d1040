"""Torch files for other programs: the one place that writes them. What they hold is tensors and plain values.

So whoever reads one may do it under `weights_only=True`. Nothing of ours is kept in such files; `legacy` reads them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stageline.store.below import sync_folder

PLAIN = (str, bytes, int, float, bool, type(None), torch.Size, torch.dtype, torch.device)
"""Values beside tensors, lists, tuples and mappings that `weights_only=True` reads back."""
STRETCHED_BYTES = 64 * 2**20
"""Chosen here."""


def not_plain(value: Any, where: str) -> Iterator[str]:
    """Whatever in a value is neither tensor nor plain: `<place>: a <type>`. where: what the value is called."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if type(key) not in PLAIN:
                yield f"{where}: a key of type {type(key).__name__}"
            yield from not_plain(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from not_plain(item, f"{where}[{number}]")
    elif not isinstance(value, Tensor) and type(value) not in PLAIN:
        yield f"{where}: a {type(value).__name__}"


def stretched(tensors: Mapping[str, Tensor]) -> list[str]:
    """Tensors of a torch file that ask for far more memory than the file holds of them, in words.

    Strides of zero let a few bytes stand for any number of elements; up to STRETCHED_BYTES that is nobody's harm.
    """
    asked = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    return [
        f"{name!r} asks for {asked[name]} bytes, the file holds {tensor.untyped_storage().nbytes()} (STRETCHED_BYTES)"
        for name, tensor in tensors.items()
        if asked[name] > max(STRETCHED_BYTES, tensor.untyped_storage().nbytes())
    ]


def write_torch_file(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a file that `torch.load(path, weights_only=True)` reads; it is whole or not there.

    path: in a folder that exists.  content: tensors and plain values by name, nested in mappings, lists and tuples;
    ValueError names what is neither.
    """
    strange = list(not_plain(content, "content"))
    if strange:
        raise ValueError(f"{os.fspath(path)!r} can hold tensors and plain values only; {'; '.join(strange)}")
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(target.parent)
