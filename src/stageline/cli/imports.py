"""The verb import: files of another program become a committed checkpoint of the stage they or the user say.

It differs from seed (a stage starts from a checkpoint of ours) and resume (the same stage goes on): what was imported
can seed and be evaluated, and holds no training state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from stageline.checkpoint.identity import claim_run
from stageline.checkpoint.layout import StageDir
from stageline.checkpoint.legacy import commit_import
from stageline.checkpoint.metadata import ExternalRecord, GroupRecord, Provenance, TensorRecord
from stageline.checkpoint.ownership import find_origins
from stageline.checkpoint.tensors import records_of
from stageline.cli.configuration import raw_preset
from stageline.config import RunConfig, fingerprint, identity, read_yaml, to_yaml
from stageline.contract import FamilyConfig
from stageline.data.splits import silent
from stageline.encoders.copies import lock_external
from stageline.errors import CheckpointError, ConfigError, Faults
from stageline.families import family_config, load_family, parse_config, with_overrides
from stageline.layers.shapes_only import shapes_only
from stageline.stage import Stage, stage_config, stage_fingerprint, stage_settings
from stageline.store import open_store
from stageline.work.work import stage_places


def split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(files, overrides) of the words of a command line: what holds `=` and is no file is an override."""
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    return [Path(word) for word in words if word not in overrides], overrides


def import_files(
    words: Sequence[str],
    run: str,
    *,
    stage: str = "",
    config: Path | None = None,
    family: str | None = None,
    preset: str | None = None,
) -> dict[str, Any]:
    """Import files of one training of another program into a run, as one checkpoint; returns {"reference", "report"}.

    words: paths of the files, and dotted overrides of the config.  run: name of the run that gets it.  stage: of the
    family; "" where the files themselves say it.  config: a file; else family, perhaps with a preset.

    CheckpointError for a file that is missing, damaged or foreign, or whose tensors are not all explained.
    """
    files, overrides = split_words(words)
    faults = Faults(CheckpointError, "files to import", "name the files that the other program wrote")
    faults.extend(f"there is no file {str(file)!r}" for file in files if not file.is_file())
    faults.extend([] if files else ["none is named"])
    faults.raise_if_any()
    if config is not None and (family or preset):
        raise ConfigError("-c and --family/--preset contradict each other", remedy="give one of the two")
    if config is None and family is None:
        raise ConfigError("nothing says of which family the files are", remedy="say --family or -c FILE")
    asked: dict[str, Any] = {"family": family}
    if config is not None:
        asked = read_yaml(config)
    elif preset and family:
        asked = raw_preset(family, preset)
    asked = with_overrides(asked, overrides)
    record = load_family(str(asked.get("family")))
    if stage:
        stage = record.config.stages[stage].name
    raw, tensors, report = record.import_files(files, asked, stage)
    names = " ".join(file.name for file in files)
    typed = parse_config({**raw, "run": run}, where=f"config of {names}")
    declared = family_config(typed.family)
    declared_stage, own = _stage_of(typed, tensors, stage, names)
    store = open_store(typed.root)
    claim_run(store, typed, f"stageline checkpoint import {names} --to {run}", stages=stage_places(typed, declared))
    provenance = Provenance(
        family=typed.family,
        stage=declared_stage.name,
        run=run,
        identity=fingerprint(json.loads(json.dumps(identity(typed)))),
        stage_fingerprint=stage_fingerprint(own, declared_stage, "", {}),
        settings=stage_settings(own),
        facts=declared.facts(own, declared_stage),
        trained={
            "imported": GroupRecord(tensors=len(tensors), parameters=sum(tensor.numel() for tensor in tensors.values()))
        },
    )
    directory = StageDir(store, run, declared_stage.name, declared.variant(own))
    with shapes_only():
        whole = records_of(record.build_model(own, declared_stage).state_dict())
    supplied = _supplied(declared, own, declared_stage, whole)
    externals = {
        external.name: ExternalRecord(
            name=external.name,
            source=external.source,
            revision=external.revision,
            digest=lock_external(store, external, silent).digest,
            tensors={name: whole[name] for name, supplier in supplied.items() if supplier == external.name},
        )
        for external in declared.externals(own, declared_stage)
    }
    provenance = provenance.model_copy(update={"externals": externals, "variant": declared.variant(own)})
    notes = {"files": [file.name for file in files], "report": json.loads(json.dumps(report, default=str))}
    ema = tensors if report.get("weights") == "ema" else None  # what the file averaged is both, raw and averaged
    ref = commit_import(directory, provenance, tensors, config_yaml=to_yaml(own), notes=notes, ema=ema)
    return {"reference": str(ref.reference), "report": report}


def _supplied(
    declared: FamilyConfig, own: RunConfig, stage: Stage, model: Mapping[str, TensorRecord]
) -> dict[str, str]:
    """Tensors of a stage's model that files of others hold: name -> external."""
    patterns = {external.name: external.patterns for external in declared.externals(own, stage)}
    return dict(find_origins(model, {}, {}, patterns, where=stage.name, partly=True).external)


def _stage_of(config: RunConfig, tensors: Mapping[str, Tensor], wanted: str, where: str) -> tuple[Stage, RunConfig]:
    """The stage whose model has exactly these tensors, with its config; CheckpointError where none or several have.

    wanted: the stage it must be; "" for any.  External weights may be left out of the files.
    """
    declared, record = family_config(config.family), load_family(config.family)
    found: list[tuple[Stage, RunConfig]] = []
    for stage in declared.stages:
        if wanted and stage.name != wanted:
            continue
        try:
            own = stage_config(config, stage)
            declared.check(own, stage)
        except ConfigError:  # this config is not of that stage
            continue
        with shapes_only():
            model = record.build_model(own, stage)
        external = set(_supplied(declared, own, stage, records_of(model.state_dict())))
        needed = {name: record for name, record in records_of(model.state_dict()).items() if name not in external}
        if needed == records_of(tensors):
            found.append((stage, own))
    if len(found) != 1:
        names = ", ".join(stage.name for stage, _ in found) or "none"
        raise CheckpointError(
            f"{where}: its tensors must be those of one stage's model, they fit: {names}",
            remedy="say what the file leaves open in the config's `import` and `model` sections",
        )
    return found[0]
