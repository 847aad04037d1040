"""The verb import: a file of another program becomes a committed checkpoint of the stage its contents say.

It differs from seed (a stage starts from a checkpoint of ours) and resume (the same stage goes on): what was imported
can seed and be evaluated, and holds no training state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stageline.checkpoint.identity import claim_run
from stageline.checkpoint.layout import StageDir
from stageline.checkpoint.legacy import commit_import
from stageline.checkpoint.metadata import GroupRecord, Provenance
from stageline.checkpoint.tensors import records_of
from stageline.cli.configuration import raw_preset
from stageline.config import RunConfig, apply_overrides, fingerprint, identity, read_yaml, to_yaml
from stageline.errors import CheckpointError, ConfigError
from stageline.families import family_config, load_family, parse_config, spellings_of
from stageline.stage import Stage, stage_config, stage_fingerprint, stage_settings
from stageline.store import open_store


def import_file(
    file: Path, run: str, overrides: Sequence[str], *, config: Path | None, family: str | None, preset: str | None
) -> dict[str, Any]:
    """Import one file into a run; returns {"reference", "report"}.

    CheckpointError for a file that is damaged, foreign, or whose tensors are not all explained.
    """
    if not file.is_file():
        raise CheckpointError(f"there is no file {str(file)!r}", remedy="name a .ckpt or .pt file")
    if config is not None and (family or preset):
        raise ConfigError("-c and --family/--preset contradict each other", remedy="give one of the two")
    asked = read_yaml(config) if config else {"family": family or "film_flow"}
    if preset:
        asked = raw_preset(family or "film_flow", preset)
    asked = apply_overrides(asked, overrides, spellings_of(asked))
    record = load_family(str(asked["family"]))
    raw, tensors, report = record.import_files([file], asked, "")
    typed = parse_config({**raw, "run": run}, where=f"config of {file}")
    declared = family_config(typed.family)
    stage, own = _stage_of(typed, tensors, str(file))
    store = open_store(typed.root)
    claim_run(store, typed, f"stageline checkpoint import {file.name} --to {run}", stages=declared.stages.names)
    provenance = Provenance(
        family=typed.family,
        stage=stage.name,
        run=run,
        identity=fingerprint(json.loads(json.dumps(identity(typed)))),
        stage_fingerprint=stage_fingerprint(own, stage, "", {}),
        settings=stage_settings(own),
        facts=declared.facts(own, stage),
        trained={
            "imported": GroupRecord(tensors=len(tensors), parameters=sum(tensor.numel() for tensor in tensors.values()))
        },
    )
    directory = StageDir(store, run, stage.name)
    notes = {"file": file.name, "report": json.loads(json.dumps(report, default=str))}
    ema = tensors if report.get("weights") == "ema" else None  # what the file averaged is both, raw and averaged
    ref = commit_import(directory, provenance, tensors, config_yaml=to_yaml(own), notes=notes, ema=ema)
    return {"reference": str(ref.reference), "report": report}


def _stage_of(config: RunConfig, tensors: Mapping[str, Tensor], where: str) -> tuple[Stage, RunConfig]:
    """The stage whose model has exactly these tensors, with its config; CheckpointError where none or several have."""
    declared, record = family_config(config.family), load_family(config.family)
    found: list[tuple[Stage, RunConfig]] = []
    for stage in declared.stages:
        try:
            own = stage_config(config, stage)
            declared.check(own, stage)
        except ConfigError:  # this config is not of that stage
            continue
        with torch.device("meta"):
            model = record.build_model(own, stage)
        if records_of(model.state_dict()) == records_of(tensors):
            found.append((stage, own))
    if len(found) != 1:
        names = ", ".join(stage.name for stage, _ in found) or "none"
        raise CheckpointError(
            f"{where}: its tensors must be those of one stage's model, they fit: {names}",
            remedy="say what the file leaves open in the config's `import` and `model` sections",
        )
    return found[0]
