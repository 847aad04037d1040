"""Frozen models of transformers from the folder of an external, and tensors of single files. Loads torch.

Nothing is fetched and no code of a model is executed. Every tensor is accounted for: transformers would fill what a
file lacks with random numbers and skip what it does not know, both of which are refused by name here.
"""

from __future__ import annotations

import fnmatch
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stageline.checkpoint.header import read_local_header
from stageline.checkpoint.torch_files import grown, stretched
from stageline.encoders.sources import PICKLES, SAFE
from stageline.errors import CheckpointError, MissingPartError
from stageline.store.disk import lfs_pointer


def load_part(loader: Callable[..., Any], folder: Path, what: str, **options: Any) -> Any:
    """One part of a model from its folder: config, weights, tokenizer, image processor.

    loader: a `from_pretrained` of transformers.  folder: local.  what: the word for the part in messages.
    MissingPartError where a package or a file is missing.
    """
    try:
        with _quietly():
            return loader(str(folder), trust_remote_code=False, local_files_only=True, **options)
    except ImportError as error:
        part = "torchvision" if "torchvision" in str(error).lower() else "a package that is not installed"
        raise MissingPartError(
            f"the {what} in {str(folder)!r} needs {part}: {str(error).strip().splitlines()[0]}",
            remedy=f"install it, or use a model whose {what} works without",
        ) from error
    except (OSError, ValueError) as error:
        raise MissingPartError(
            f"the {what} in {str(folder)!r} cannot be loaded: {str(error).strip().splitlines()[0]}",
            remedy="give a folder with config, safetensors weights and what else the model needs",
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """transformers without its progress bars, which are no lines of ours and last a moment, and without its table of
    tensors, which are accounted for here."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def load_frozen(
    loader: Callable[..., Any],
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    unused: Sequence[str] = (),
    **options: Any,
) -> Any:
    """A model of transformers with the weights of a folder, in eval mode, without gradients.

    loader: `from_pretrained` of its class.  dtype: of the tensors held.  device: where they are held.
    unused: `fnmatch` patterns of tensors that the files have beyond this model (`lm_head.*`).
    CheckpointError that names tensors that are missing, have another shape, or are not expected.
    """
    model, report = load_part(
        loader,
        folder,
        "weights",
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are in the report, and refused below with all other faults
        **options,
    )
    shapes = [f"{name} {tuple(file)} for {tuple(own)}" for name, file, own in report["mismatched_keys"]]
    beyond = [key for key in report["unexpected_keys"] if not _matches(key, unused)]
    found = [
        ("lack", sorted(report["missing_keys"])),
        ("have in another shape", sorted(shapes)),
        ("have beyond it", sorted(beyond)),
    ]
    faults = [f"{word} {len(keys)} tensors: {_some(keys)}" for word, keys in found if keys]
    if faults:
        raise CheckpointError(
            f"the weights in {str(folder)!r} are not those of {type(model).__name__}: they {'; they '.join(faults)}",
            remedy="give a complete model of this kind",
        )
    frozen: nn.Module = model.to(device).eval().requires_grad_(requires_grad=False)
    return frozen


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a single file, safetensors or a torch file, on the CPU; nothing in it is executed.

    A torch file may hold them under `state_dict`, as other trainers write it.

    CheckpointError for a file that is none, or that holds anything but tensors by name.
    """
    if path.is_file() and (pointer := lfs_pointer(path)):
        raise CheckpointError(f"{str(path)!r} is {pointer}")
    if path.name.endswith(SAFE):
        try:
            read_local_header(path)
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{str(path)!r} cannot be read: {error}", remedy="fetch it again") from error
    if not path.name.endswith(PICKLES) or (path.exists() and not path.is_file()):
        raise CheckpointError(f"{str(path)!r} is no file of weights", remedy=f"{SAFE} or {', '.join(PICKLES)}")
    if fault := grown(path) if path.is_file() else "":
        raise CheckpointError(f"{str(path)!r}: {fault}", remedy="save it anew with torch.save, tensors alone")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be read without executing what it holds: {str(error).strip().splitlines()[0]}",
            remedy="give a file of tensors, best as safetensors",
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise CheckpointError(f"{str(path)!r} holds a {type(found).__name__}", remedy="give a file with a state dict")
    strangers = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(
            f"{str(path)!r} holds more than tensors: {_some(strangers)}", remedy="give a file with a state dict"
        )
    if faults := stretched(found, path.stat().st_size):
        raise CheckpointError(f"{str(path)!r}: {_some(faults)}", remedy="save these tensors contiguous")
    return {str(name): value for name, value in found.items()}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
