"""The verb import: a file of another program becomes a committed checkpoint of the stage its contents say.

It differs from seed (a stage starts from a checkpoint of ours) and resume (the same stage goes on): what was imported
can seed and be evaluated, and holds no training state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stageline.checkpoint.identity import claim_run
from stageline.checkpoint.layout import StageDir
from stageline.checkpoint.legacy import commit_import
from stageline.checkpoint.metadata import GroupRecord, Provenance
from stageline.cli.configuration import raw_preset
from stageline.config import apply_overrides, fingerprint, identity, read_yaml, to_yaml
from stageline.errors import CheckpointError, ConfigError
from stageline.families import family_config, load_family, parse_config
from stageline.stage import stage_config, stage_fingerprint, stage_settings
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
    asked = apply_overrides(asked, overrides)
    record = load_family(str(asked["family"]))
    raw, tensors, report = record.import_legacy(file, asked)
    typed = parse_config({**raw, "run": run}, where=f"config of {file}")
    declared = family_config(typed.family)
    stage = declared.stages[str(report.get("stage") or declared.stages.names[-1])]
    own = stage_config(typed, stage)
    store = open_store(typed.root)
    claim_run(store, typed, f"stageline checkpoint import {file.name} --to {run}", stages=declared.stages.names)
    provenance = Provenance(
        family=typed.family,
        stage=stage.name,
        run=run,
        identity=fingerprint(json.loads(json.dumps(identity(typed)))),
        stage_fingerprint=stage_fingerprint(own, stage, "", {}),
        settings=stage_settings(own),
        facts=declared.facts(own),
        trained={
            "imported": GroupRecord(tensors=len(tensors), parameters=sum(tensor.numel() for tensor in tensors.values()))
        },
    )
    directory = StageDir(store, run, stage.name)
    notes = {"imported_from": file.name, "report": json.loads(json.dumps(report, default=str))}
    ref = commit_import(directory, provenance, tensors, config_yaml=to_yaml(own), notes=notes)
    return {"reference": str(ref.reference), "report": report}
