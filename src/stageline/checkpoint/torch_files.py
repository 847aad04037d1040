"""Torch files for other programs: the one place that writes them. What they hold is tensors and plain values.

So whoever reads one may do it under `weights_only=True`. Nothing of ours is kept in such files; `legacy` reads them.
"""

from __future__ import annotations

import mmap
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stageline.config.bounds import MAX_DEPTH, TooLargeError
from stageline.store.below import sync_folder

PLAIN = (str, bytes, int, float, bool, type(None), torch.Size, torch.dtype, torch.device)
"""Values beside tensors, lists, tuples and mappings that `weights_only=True` reads back."""
STRETCHED_BYTES = 64 * 2**20
MOST_TIMES = 64
MAX_VALUES = 10_000_000
"""Chosen here."""
SIZED = (b"cbuiltins\nbytearray\n", b"c__builtin__\nbytearray\n")
"""How a pickle asks for a bytearray, which it may size by a number alone."""


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


def grown(path: Path) -> str:
    """Why a torch file is not loaded: it would fill memory that it does not hold; "" for one that may be.

    OSError as reading gives. `torch.save` compresses nothing, and pickles no bytearray, which a number can size.
    """
    size = path.stat().st_size
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:  # of before torch 1.6, or no torch file
        if not size:
            return ""
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = any(data.find(text) >= 0 for text in SIZED)
        return "it holds a bytearray" if found else ""
    with archive:
        inner = sum(entry.file_size for entry in archive.infolist())
        if inner > size:
            return f"its parts have {inner} bytes unpacked, the file has {size}"
        try:
            pickled = [archive.read(entry) for entry in archive.infolist() if entry.filename.endswith(".pkl")]
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError) as error:
            return f"its parts cannot be read ({error})"
    return "it holds a bytearray" if any(text in data for data in pickled for text in SIZED) else ""


def loaded_faults(value: Any, file_bytes: int, *, times: int = 1) -> list[str]:
    """Why what a torch file held is not used: values or tensors that stand for far more than the file has, in words.

    value: as it was loaded.  file_bytes: size of the file.  times: how often a tensor may ask for what it holds.
    """
    known: dict[int, tuple[int, int] | None] = {}
    """Lists and mappings: values in them once each stands where it is named, and levels; None while that is counted."""

    def measured(value: Any, level: int) -> tuple[int, int]:
        if not isinstance(value, Mapping | list | tuple | set):
            return 1, 0
        if id(value) not in known:
            if level == MAX_DEPTH:
                raise TooLargeError(f"it is nested deeper than {MAX_DEPTH} levels (MAX_DEPTH)")
            known[id(value)] = None
            inner = [measured(item, level + 1) for item in (value.values() if isinstance(value, Mapping) else value)]
            known[id(value)] = 1 + sum(count for count, _ in inner), 1 + max((below for _, below in inner), default=0)
        found = known[id(value)]
        if found is None:
            raise TooLargeError("a list in it holds itself")
        if found[0] > MAX_VALUES or level + found[1] > MAX_DEPTH:
            raise TooLargeError(f"it has more than {MAX_VALUES} values or {MAX_DEPTH} levels")
        return found

    try:
        measured(value, 0)
    except TooLargeError as error:
        return [str(error)]
    return stretched(tensors_in(value), file_bytes, times=times)


def tensors_in(value: Any) -> dict[str, Tensor]:
    """The tensors of a loaded file by their path in it, each once."""
    seen: set[int] = set()

    def below(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
        if not isinstance(value, Tensor | Mapping | list | tuple) or id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield path, value
            return
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from below(item, f"{path}.{key}".lstrip("."))

    return dict(below(value, ""))


def stretched(tensors: Mapping[str, Tensor], file_bytes: int, *, times: int = 1) -> list[str]:
    """Tensors of a torch file that ask for far more memory than the file holds of them, in words.

    Strides of zero let a few bytes stand for any number of elements; up to STRETCHED_BYTES that is nobody's harm, in
    one tensor or in all together. Several names for one tensor are usual: all may ask for MOST_TIMES what is held.

    tensors: as they were loaded.  file_bytes: size of the file.  times: how often one may ask for what it holds.
    """
    odd = [f"{name!r} is no plain tensor" for name, tensor in tensors.items() if not is_plain(tensor)]
    if odd:
        return odd
    asked = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    storages = {name: tensor.untyped_storage() for name, tensor in tensors.items()}
    faults = [
        f"{name!r} asks for {asked[name]} bytes, the file holds {min(storage.nbytes(), file_bytes)} (STRETCHED_BYTES)"
        for name, storage in storages.items()
        if asked[name] > max(STRETCHED_BYTES, times * storage.nbytes()) or storage.nbytes() > file_bytes
    ]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages.values()}.values())
    if not faults and (sum(asked.values()) > STRETCHED_BYTES + MOST_TIMES * held or held > file_bytes):
        faults = [f"all tensors ask for {sum(asked.values())} bytes, the file holds {min(held, file_bytes)} of them"]
    return faults


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is its numbers, one after the other: not sparse, nested, or without any."""
    return tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_meta)


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
