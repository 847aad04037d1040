"""A checkpoint as a model, through admission: its own config decides what is built, the user's what is asked of it."""

from __future__ import annotations

import json
from typing import Any, Literal

from torch import nn

from stageline.checkpoint.admission import admit
from stageline.checkpoint.layout import CheckpointRef
from stageline.checkpoint.lineage import own_config
from stageline.checkpoint.metadata import ExternalRecord
from stageline.checkpoint.tensors import load_state, read_tensors
from stageline.config import RunConfig
from stageline.encoders.copies import external_digest
from stageline.errors import CheckpointError, Faults, MissingPartError
from stageline.families import family_config, load_family, parse_config
from stageline.stage import Stage, stage_config, stage_raw
from stageline.store import open_store

OF_THE_USER = ("data", "evaluate", "run", "root")
"""Sections that say what is measured and where; `model` and the rest are the checkpoint's own."""


def stated(config: RunConfig) -> dict[str, Any]:
    """What a config states itself, without defaults."""
    plain: dict[str, Any] = json.loads(config.model_dump_json(exclude_unset=True, by_alias=True))
    return {**plain, "family": config.family}


def admit_model(config: RunConfig, ref: CheckpointRef) -> tuple[RunConfig, nn.Module, tuple[str, ...]]:
    """(config, model, notes): the checkpoint's model with the weights `evaluate.weights` names, in eval mode.

    config: the user's; what it states about the model must agree with the checkpoint, or be an ablation of it.
    """
    family = family_config(config.family)
    stage = family.stages[ref.metadata.stage]
    own = stage_config(config, stage)
    raw = stated(own)
    asked = family.asked({**stage_raw(config, stage, with_defaults=False), "family": config.family})
    weights: Literal["raw", "ema"] = getattr(getattr(own, "evaluate", None), "weights", "ema")
    shapes = {name: record.shape for name, record in ref.metadata.whole.items()}
    family.agree(asked, ref.metadata.facts, shapes, ref.uri)
    admission = admit(
        ref,
        "evaluate",
        family=family.name,
        stages=family.stages.names,
        facts=asked,
        rules=family.fact_rules,
        weights=weights,
        name_facts=family.name_facts,
        override="take the differing keys out of `model` to use the checkpoint's own, or use another checkpoint",
    )
    merged = own_config(ref)
    for key in OF_THE_USER:
        if key in raw:
            merged[key] = raw[key]
    built = parse_config(merged, where=f"config of {ref.uri}")
    notes = (*admission.notes, *_compare_externals(built, stage, ref))
    model = load_family(family.name).build_model(built, stage)
    fill_externals(built, stage, model)
    tensors = read_tensors(ref, weights, into=model.state_dict())
    load_state(model, tensors, where=ref.uri, external=ref.metadata.external_names)
    return built, _on_device(model.eval(), config), notes


def fill_externals(config: RunConfig, stage: Stage, model: nn.Module) -> None:
    """Copy what externals supply into a model that was just built; nothing where they supply no tensor of it.

    config, stage: the stage's own.
    """
    supplying = [e.name for e in family_config(config.family).externals(config, stage) if e.patterns]
    if not supplying:
        return
    load = load_family(config.family).load_externals
    if load is None:
        raise CheckpointError(
            f"nothing in family {config.family!r} reads its external weights: {', '.join(supplying)}",
            remedy="a fault in the family's code: its record needs `load_externals`",
        )
    load(config, stage, model)


def _compare_externals(config: RunConfig, stage: Stage, ref: CheckpointRef) -> list[str]:
    """What could not be compared; CheckpointError that names each external of a checkpoint that is another one now.

    config: the checkpoint's own, with the root whose lock counts.
    Its digest decides. Where the checkpoint has none, its source and revision do.
    """
    root, notes = open_store(config.root), []
    faults = Faults(
        CheckpointError,
        f"{ref.uri}: its external weights are others now",
        "restore the files that it was trained with and run `stageline prepare`, or train its stage anew with those of "
        "now",
    )
    asked = {external.name: external for external in family_config(config.family).externals(config, stage)}
    found = ref.metadata.externals
    faults.extend(f"external {name}: not in the config" for name in sorted(set(found) - set(asked)))
    for name, external in asked.items():
        record = found.get(name, ExternalRecord(name=name))
        if not record.digest:
            named = (record.source, record.revision)
            if name in found and named != (external.source, external.revision):
                faults.add(f"external {name}: '{'@'.join(named)}' -> '{external.source}@{external.revision}'")
            continue
        try:
            digest = external_digest(root, external)
        except MissingPartError as error:
            if external.patterns:
                raise
            notes.append(f"not compared with {record.digest[:12]}: {error.message}")
            continue
        if digest != record.digest:
            faults.add(f"external {name} ({external.source}): digest {record.digest[:12]} -> {digest[:12]}")
    faults.raise_if_any()
    return notes


def _on_device(model: nn.Module, config: RunConfig) -> nn.Module:
    """The model where `trainer.accelerator` wants it, and as many CPU threads as `trainer.threads`."""
    import torch

    torch.set_num_threads(config.trainer.threads)
    cuda = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return model.to("cuda") if cuda else model
