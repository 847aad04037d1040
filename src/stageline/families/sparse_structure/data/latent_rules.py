"""What a scene's latents, conditions and metadata must be like, and reading the torch files that hold them.

Source: the scene-level ShortCut guide, its table of checks. Torch files are read with `weights_only=True`.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stageline.checkpoint.torch_files import MOST_TIMES, grown, loaded_faults
from stageline.families.sparse_structure.data.origin import CONDITIONALS, LATENTS, METADATA
from stageline.families.sparse_structure.data.poses import ROTATION, SCALE, SHAPE, TRANSLATION, TRANSLATION_SCALE

LEAST_MODALITIES = (SHAPE, TRANSLATION, SCALE, ROTATION)
"""What a scene must have where nobody says which modalities the network has."""
LAYOUTS = ("channels_last", "tokens_last")
CONDITION_NAME = "cond"
"""Keyword of the condition tokens."""
CONDITION_REMEDY = f"give each scene a {CONDITIONALS} with {CONDITION_NAME}: tokens of width model.cond_channels"
LARGEST_TENSOR_BYTES = 4 << 30
"""A small file can describe a tensor of any size, by strides of zero."""


class MixedFaultsError(KeyError, ValueError):
    """Modalities are missing or extra, and something else is wrong as well."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass
class LatentRules:
    """What latents must be like.

    modalities: those of the network; None is the least four, with `translation_scale` where it is there.
    spec: modality -> (tokens, channels); None takes any.
    allow_extra: whether further modalities are left out instead of refused.
    zero_filled: modalities that may be missing and are zero then, since their loss has no weight.
    told: what was warned of before.
    """

    modalities: tuple[str, ...] | None = None
    spec: Mapping[str, tuple[int, int]] | None = None
    allow_extra: bool = False
    zero_filled: tuple[str, ...] = ()
    told: set[str] = field(default_factory=set)

    def check(self, latents: Any, scene: str, metadata: Mapping[str, Any]) -> dict[str, Tensor]:
        """The latents of a scene as the network takes them, modalities in the network's order.

        latents: modality -> (N, tokens, channels); poses may lack their token axis, a shape may lie otherwise.
        One error with every fault: KeyError for missing and extra modalities, ValueError for anything else, or both.
        """
        if not isinstance(latents, Mapping):
            raise ValueError(  # noqa: TRY004 - a fault of a file
                f"scene {scene!r}: {LATENTS} is no dict of tensors but a {type(latents).__name__}; "
                "expected modality -> (N, tokens, channels)"
            )
        names = self.modalities or (*LEAST_MODALITIES, *({TRANSLATION_SCALE} & latents.keys()))
        misnamed = self._name_faults(latents)
        found, counts, faults = {}, {}, []
        for name, tensor in latents.items():
            wrong = _tensor_faults(tensor) if name in names or not isinstance(tensor, Tensor) else []
            if name in names and not wrong:
                counts[name] = len(tensor)
                try:
                    found[name] = self._laid_out(name, tensor, metadata)
                except ValueError as error:
                    wrong = [str(error)]
            faults += [f"{name}: {fault}" for fault in wrong]
        if len(set(counts.values())) > 1 or 0 in counts.values():
            faults.append(f"numbers of objects {counts}; expected one number, at least 1")
        if misnamed or faults:
            kind = ValueError if not misnamed else MixedFaultsError if faults else KeyError
            raise kind(f"scene {scene!r}: {'; '.join([*misnamed, *faults])}")
        count = next(iter(counts.values()))
        return {name: found[name] if name in found else self._zeros(name, count) for name in names}

    def _name_faults(self, latents: Mapping[str, Any]) -> list[str]:
        needed = self.modalities or LEAST_MODALITIES
        known = self.modalities or (*LEAST_MODALITIES, TRANSLATION_SCALE)
        missing = [name for name in needed if name not in latents and name not in self.zero_filled]
        extra = [] if self.allow_extra else [name for name in latents if name not in known]
        if not missing and not extra:
            return []
        told = [f"lacks {', '.join(missing)}"] if missing else []
        told += [f"has beside them {', '.join(map(str, extra))} (allow_extra leaves such out)"] if extra else []
        return [f"modalities expected are {', '.join(known)}; it {' and '.join(told)}"]

    def _zeros(self, name: str, count: int) -> Tensor:
        self._warn(f"scenes lack the modality {name!r}: zeros take its place, since its loss has no weight")
        return torch.zeros(count, *(self.spec or {}).get(name, (1, 1)))

    def _laid_out(self, name: str, tensor: Tensor, metadata: Mapping[str, Any]) -> Tensor:
        """(N, tokens, channels) of one modality."""
        if tensor.ndim == 2 and name != SHAPE:
            tensor = tensor[:, None]
        if tensor.ndim != 3:
            raise ValueError(f"shape {tuple(tensor.shape)}; expected (N, tokens, channels)")
        spec = None if self.spec is None else self.spec.get(name)
        tokens_last = name == SHAPE and metadata.get("shape_layout") == "tokens_last"
        own = (tensor.shape[1], tensor.shape[2])
        if tokens_last and (spec is None or spec[0] == spec[1] or own == (spec[1], spec[0])):
            tensor = tensor.transpose(1, 2)
        elif name == SHAPE and spec is not None and own != tuple(spec) and own == (spec[1], spec[0]):
            self._warn(f"shapes lie (N, channels, tokens) = (N, {own[0]}, {own[1]}): they are transposed")
            tensor = tensor.transpose(1, 2)
        if spec is not None and tuple(tensor.shape[1:]) != tuple(spec):
            raise ValueError(f"shape {tuple(tensor.shape)}; expected (N, {spec[0]}, {spec[1]})")
        single = tensor.detach().float()
        if not torch.isfinite(single).all():
            raise ValueError("it holds values that are not finite, or too large for float32")
        return single.contiguous()

    def _warn(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            warnings.warn(text, stacklevel=2)


def _tensor_faults(tensor: Any) -> list[str]:
    if not isinstance(tensor, Tensor):
        return [f"no tensor but a {type(tensor).__name__}, and {LATENTS} is a dict of tensors"]
    if tensor.layout != torch.strided or not tensor.is_floating_point():
        return [f"type {tensor.dtype} ({tensor.layout}); expected plain floats"]
    if tensor.ndim < 2:
        return [f"shape {tuple(tensor.shape)} has fewer than 2 axes"]
    if tensor.numel() * tensor.element_size() > LARGEST_TENSOR_BYTES:
        return [f"shape {tuple(tensor.shape)} is larger than {LARGEST_TENSOR_BYTES} bytes"]
    return []


def check_conditionals(
    conditionals: Any, count: int | None, scene: str, metadata: Mapping[str, Any]
) -> tuple[dict[str, Any], frozenset[str]]:
    """The conditions of a scene and the names of those with a row per object. count: objects; None is unknown.

    ValueError with every fault.
    """
    if not isinstance(conditionals, Mapping) or not all(isinstance(name, str) for name in conditionals):
        keys = f"has the keys {list(conditionals)!r:.80}" if isinstance(conditionals, Mapping) else "is no dict"
        raise ValueError(f"scene {scene!r}: {CONDITIONALS} is no dict of names: it {keys}; expected name -> tensor")
    flagged = metadata.get("per_object")
    tensors = {name: value for name, value in conditionals.items() if isinstance(value, Tensor)}
    faults = []
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > LARGEST_TENSOR_BYTES:
            faults.append(f"{name} is no plain tensor of at most {LARGEST_TENSOR_BYTES} bytes")
        elif tensor.is_floating_point() and not torch.isfinite(tensor).all():
            faults.append(f"{name} holds values that are not finite")
    for name in flagged or ():
        found = tensors.get(name)
        if found is None:
            faults.append(f"{METADATA} says that {name!r} has a row per object, and there is no such tensor")
        elif count is not None and (not found.ndim or len(found) not in (1, count)):
            faults.append(
                f"{name} has the shape {tuple(found.shape)}; expected a row for each of {count} objects, or 1"
            )
    if faults:
        raise ValueError(f"scene {scene!r}: conditions: {'; '.join(faults)}")
    rows = {name for name, tensor in tensors.items() if tensor.ndim and len(tensor) == (count or 0) > 1}
    values = {name: _detached(value) for name, value in conditionals.items()}
    return values, frozenset(rows if flagged is None else rows & set(flagged))


def _detached(value: Any) -> Any:
    """Tensors as values: those that were saved with a graph cannot leave a loader's process, nor become arrays."""
    if type(value) is dict:
        return {name: _detached(part) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_detached(part) for part in value)
    return value.detach() if isinstance(value, Tensor) and value.requires_grad else value


def condition_faults(conditionals: Mapping[str, Any], count: int, channels: int) -> list[str]:
    """Why the networks of a run cannot take these conditions of `count` objects. channels: model.cond_channels."""
    faults = []
    if others := sorted(map(str, conditionals.keys() - {CONDITION_NAME, "cfg"})):
        faults.append(f"conditions {', '.join(others)}: a network takes one, {CONDITION_NAME!r}")
    tokens = conditionals.get(CONDITION_NAME)
    shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else None
    if shape is None or len(shape) != 3 or shape[0] not in (1, count) or not shape[1] or shape[2] != channels:
        found = "not there" if tokens is None else type(tokens).__name__ if shape is None else f"of shape {shape}"
        rows = "1" if count == 1 else f"1 or {count}"
        faults.append(f"condition {CONDITION_NAME!r} is {found}; expected ({rows}, tokens, {channels})")
    return faults


def check_metadata(metadata: Any, scene: str) -> dict[str, Any]:
    """A scene's metadata; ValueError with every fault of the keys that are read."""
    if not isinstance(metadata, dict):
        raise ValueError(f"scene {scene!r}: {METADATA} is no mapping")  # noqa: TRY004 - a fault of a file
    faults = []
    count, layout, rows = (metadata.get(key) for key in ("num_objects", "shape_layout", "per_object"))
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        faults.append(f"num_objects is {count!r}; expected a count")
    if layout is not None and layout not in LAYOUTS:
        faults.append(f"shape_layout is {layout!r}; expected one of {', '.join(LAYOUTS)}")
    if rows is not None and not (isinstance(rows, list) and all(isinstance(name, str) for name in rows)):
        faults.append(f"per_object is {rows!r}; expected a list of conditions")
    if faults:
        raise ValueError(f"scene {scene!r}: {METADATA}: {'; '.join(faults)}")
    return metadata


def read_torch_file(path: Path, *, what: str) -> Any:
    """The tensors and plain values of a torch file, mapped where they lie. what: whose file it is, for messages.

    FileNotFoundError without the file; ValueError for one that holds anything else, which is never executed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what}: there is no file {str(path)!r}")
    strange = f"{what}: {str(path)!r} is no torch file of tensors alone"
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{strange}: it is no archive as torch.save writes one (since 1.6); save it anew")
    try:
        fault = grown(path)
        found = None if fault else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        held = named[1] if named else "another object"
        raise ValueError(
            f"{strange}: it holds {held}, and nothing in it is executed; save tensors and plain values"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
        raise ValueError(f"{strange}: {str(error).partition(chr(10))[0]:.300}; save it anew") from error
    faults = [fault] if fault else loaded_faults(found, path.stat().st_size, times=MOST_TIMES)
    if faults:
        raise ValueError(f"{what}: {str(path)!r}: {'; '.join(faults[:3])}; save it anew with torch.save")
    return found
