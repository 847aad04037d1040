"""The verb export: a checkpoint's weights as files for other programs, in our own format or one of the family's.

The counterpart of import; what is written is no checkpoint of ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from stageline.checkpoint.export import FORMATS, export
from stageline.checkpoint.layout import resolve
from stageline.checkpoint.lineage import own_config
from stageline.errors import ConfigError


def write_export(target: str, folder: Path, kind: str, weights: Literal["raw", "ema"] | None) -> Path:
    """Write a checkpoint into an empty folder; returns the folder.

    target: as the command line names it.  kind: `safetensors`, or a format of its family.  weights: None for ema where
    there is one.  ConfigError for a format that the family has not; a damaged checkpoint is refused.
    """
    if kind in FORMATS:
        return export(target, folder, kind, weights=weights)
    from stageline.checkpoint.tensors import read_tensors
    from stageline.families import load_family, parse_config

    ref = resolve(target)
    family = load_family(ref.metadata.family)
    if kind not in family.formats:
        known = ", ".join((*FORMATS, *family.formats))
        raise ConfigError(f"{ref.metadata.family} has no format {kind!r}", remedy=f"formats: {known}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{str(folder)!r} is not an empty folder", remedy="name a new folder")
    chosen = weights or ("ema" if ref.metadata.has_weights("ema") else "raw")
    config = parse_config(own_config(ref), where=f"config of {ref.uri}")
    folder.mkdir(parents=True, exist_ok=True)
    family.formats[kind](config, family.config.stages[ref.metadata.stage], read_tensors(ref, chosen), folder)
    return folder
