"""What tests of scenes have in common: latents and the guide's folders of them, and a prepared split opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stageline.data.pod_cache import StoredFiles
from stageline.data.reading import SplitReader
from stageline.data.shards import SHARD_BYTES, SplitWriter
from stageline.data.splits import make_manifest, parse_manifest, silent
from stageline.families.sparse_structure.data.origin import SceneSource
from stageline.families.sparse_structure.data.preparation import write_split
from stageline.store import open_store

LATENT_SPEC = {
    "shape": (12, 8),
    "6drotation_normalized": (1, 6),
    "translation": (1, 3),
    "scale": (1, 3),
    "translation_scale": (1, 1),
}
"""Modality -> (tokens, channels)."""


def latents(count: int, seed: int = 0) -> dict[str, Tensor]:
    """Random latents of a scene. count: objects."""
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, *shape, generator=rng) for name, shape in LATENT_SPEC.items()}


def write_scene_files(
    root: Path,
    scene: str,
    values: Any,
    conditions: Any = None,
    metadata: dict[str, Any] | None = None,
    split: str = "train",
) -> Path:
    """Write a scene in the guide's layout; returns its folder."""
    folder = root / split / scene
    folder.mkdir(parents=True)
    torch.save(values, folder / "latents.pt")
    if conditions is not None:
        torch.save(conditions, folder / "conditionals.pt")
    if metadata is not None:
        (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def open_split(source: SceneSource, name: str, folder: Path, shard_bytes: int = SHARD_BYTES) -> SplitReader:
    """A split, prepared into a folder and opened."""
    folder.mkdir(parents=True, exist_ok=True)
    with SplitWriter(folder, shard_bytes=shard_bytes) as writer:
        facts = write_split(source, name, writer, silent)
        about = {"family": "sparse_structure", "split": name, "facts": facts, "folder": "data", **writer.finish()}
    manifest = parse_manifest(make_manifest(about), str(folder))
    return SplitReader(manifest, StoredFiles(open_store(folder), folder))
