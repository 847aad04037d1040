"""What the arguments of a network must be: names of streams and modalities, sizes, dtypes, keywords."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stageline.families.sparse_structure.model.latent import Latent

LOG = logging.getLogger(__name__)
IGNORED = ("shape_attend_pose", "freeze_d_time_embedder", "resolution", "patch_size")
"""Keywords of public YAML files without an effect on these networks."""
TORSO_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def checked_scenes(scene_sizes: Sequence[int] | None, objects: int) -> tuple[int, ...]:
    """Objects per scene; ValueError where they do not add up to all objects."""
    if scene_sizes is None:
        return (objects,)
    sizes = tuple(int(size) for size in scene_sizes)
    if not sizes or min(sizes) < 1 or sum(sizes) != objects:
        raise ValueError(f"scene_sizes is {list(sizes)}, expected positive numbers that add up to {objects} objects")
    return sizes


def check_keywords(network: type, more: Mapping[str, Any]) -> None:
    """TypeError for unknown keywords; those without effect are said once, at debug level."""
    unknown = sorted(set(more) - set(IGNORED))
    if unknown:
        raise TypeError(f"{network.__name__} got unknown keywords: {', '.join(unknown)}; see its docstring")
    if more:
        LOG.debug("%s: without effect here: %s", network.__name__, ", ".join(sorted(more)))


def raise_faults(network: type, faults: Sequence[str]) -> None:
    if faults:
        raise ValueError(f"{network.__name__}: {'; '.join(faults)}")


def read_torso_dtype(given: str | torch.dtype | None, use_fp16: bool) -> tuple[torch.dtype, list[str]]:
    """The torso's dtype, and what does not fit."""
    name = ("float16" if use_fp16 else "float32") if given is None else str(given).removeprefix("torch.")
    if name not in TORSO_DTYPES:
        return torch.float32, [f"torso_dtype is {given!r}, expected one of {', '.join(TORSO_DTYPES)}"]
    faults = []
    if use_fp16 and name != "float16":
        faults.append(f"use_fp16 is set and torso_dtype is {name}; drop one of them")
    return TORSO_DTYPES[name], faults


def read_streams(latents: Mapping[str, Latent], shared: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Stream -> modalities: those that are alone in the order of the latents, then the merged ones."""
    faults = []
    merged = {str(stream): tuple(map(str, names)) for stream, names in shared.items()}
    members = [name for names in merged.values() for name in names]
    for stream, names in merged.items():
        unknown = [name for name in names if name not in latents]
        if unknown or not names:
            faults.append(f"stream {stream!r} merges {list(names)}, expected some of {list(latents)}")
        if stream in latents and stream not in members:
            faults.append(f"stream {stream!r} bears the name of a modality that is a stream alone")
    twice = sorted({name for name in members if members.count(name) > 1})
    if twice:
        faults.append(f"merged more than once: {twice}")
    if faults:
        raise ValueError(f"latent_share_transformer: {'; '.join(faults)}")
    return {name: (name,) for name in latents if name not in members} | merged


def size_faults(
    latents: Mapping[str, Latent],
    streams: Mapping[str, Sequence[str]],
    channels: int,
    condition_channels: int,
    num_blocks: int,
    heads: int,
    protected: Sequence[str],
) -> list[str]:
    """What does not fit among sizes and names."""
    sizes = {"model_channels": channels, "cond_channels": condition_channels, "num_blocks": num_blocks}
    faults = [f"{name} is {size}, expected at least 1" for name, size in sizes.items() if size < 1]
    if heads < 1 or channels % heads:
        faults.append(f"num_heads is {heads}, expected a divisor of model_channels, {channels}")
    for name, latent in latents.items():
        if latent.model_channels != channels:
            faults.append(f"latent {name!r} has model_channels {latent.model_channels}, the network {channels}")
    unknown = [name for name in protected if name not in streams]
    if unknown:
        faults.append(f"protect_modality_list names {unknown}, expected streams: {list(streams)}")
    return faults
