"""What becomes of each section of a parent's tensors when a stage of sparse_structure starts from it; no torch.

Sections, named as the first part of their tensors' names, which no stage changes:

    vae                  the shape autoencoder, from stage `shape_vae` in role `vae`
    scale                mean and deviation by which the networks' latents and poses were standardised
    sparse_flow          the branch that sees one object
    global_sparse_flow   the branch that sees the scene
    global_flow_weight   its factor, where both are added with one
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stageline.errors import CheckpointError
from stageline.families.sparse_structure.facts import BOTH, FLOW, GLOBAL, LATENTS, SPARSE, VAE, facts, has_global
from stageline.stage import Inheritance, Outcome, Stage, Trains

if TYPE_CHECKING:
    from stageline.contract import Parent
    from stageline.families.sparse_structure.config import SparseStructureConfig

FACTOR = "global_flow_weight"
PATTERNS = {
    "vae": ("vae.*",),
    "scale": ("scale.*",),
    "sparse_flow": ("sparse_flow.*",),
    "global_sparse_flow": ("global_sparse_flow.*",),
    FACTOR: (FACTOR,),
}
MOST_KEYS = 10
"""Differing settings that an error lists."""


def section_of(name: str) -> str:
    """The section that a tensor belongs to."""
    return name.split(".", 1)[0]


def inherit(parent: Parent, config: SparseStructureConfig, stage: Stage) -> tuple[Inheritance, ...]:
    """The outcome for every section of parent and child.

    The autoencoder comes from role `vae` alone; a flow's own copy of it is dropped. CheckpointError where what is to be
    loaded has other sizes than this run's.
    """
    return tuple(_sections(parent, facts(config, stage), config, stage))


def _sections(
    parent: Parent, own: Mapping[str, Any], config: SparseStructureConfig, stage: Stage
) -> Iterator[Inheritance]:
    found = parent.facts

    def section(name: str, outcome: Outcome, reason: str) -> Inheritance:
        return Inheritance(name, outcome, reason, PATTERNS[name])

    if parent.role == "vae":
        _refuse(parent, own, (*VAE,))
        yield section("vae", "load", "the run's autoencoder")
        return
    _refuse(parent, own, (*LATENTS, *FLOW, *SPARSE))
    if found.get("voxels"):
        yield section("vae", "drop", "the autoencoder comes from role vae")
    yield section("sparse_flow", "load", "trained on single objects")
    if own["voxels"] and found.get("voxels"):
        yield section("scale", "load", "the statistics that the branch was trained with")
    elif own["voxels"] or found.get("voxels"):
        outcome: Outcome = "fresh" if own["voxels"] else "drop"
        yield section("scale", outcome, "one of the two has latents, which are standardised already")
    theirs = found.get("global_sparse_flow.num_blocks")
    if theirs and not has_global(stage):
        yield section("global_sparse_flow", "drop", "this stage sees one object at a time")
        yield section(FACTOR, "drop", "the same")
    elif theirs:
        _refuse(parent, own, (*GLOBAL, *BOTH))
        yield section("global_sparse_flow", "load", f"of stage {parent.stage}")
        if own["combine_mode"] == "weighted":
            yield section(FACTOR, "load", f"of stage {parent.stage}")
    elif has_global(stage):
        scene = config.model.global_sparse_flow
        which = {"even": "spread over all", "first": "the first"}.get(str(scene.block_map), "those of block_map")
        how = f"blocks copied from sparse_flow, {which}" if scene.start == "sparse" else "drawn anew"
        yield section("global_sparse_flow", "fresh", f"{how}; its output starts at zero")
        if own["combine_mode"] == "weighted":
            yield section(FACTOR, "fresh", "model.global_flow_weight")


def _refuse(parent: Parent, own: Mapping[str, Any], names: Sequence[str]) -> None:
    """CheckpointError where facts that both sides have differ."""
    differing = [
        f"{name}: checkpoint {parent.facts[name]!r}, run {own[name]!r}"
        for name in dict.fromkeys(names)
        if parent.facts.get(name) is not None and own[name] is not None and parent.facts[name] != own[name]
    ]
    if differing:
        raise CheckpointError(
            f"the checkpoint in role {parent.role!r} has other sizes: {'; '.join(differing[:MOST_KEYS])}",
            remedy="give section `model` the checkpoint's values, or name another checkpoint in `parents`",
        )


def trains(config: SparseStructureConfig, stage: Stage) -> Trains:
    """Which parameters a stage trains: its patterns, the factor, and not what `freeze_shared_parameters` keeps."""
    model = config.model
    factor = (FACTOR,) if has_global(stage) and model.combine_mode == "weighted" else ()
    frozen: list[str] = []
    for branch in ("sparse_flow", "global_sparse_flow"):
        settings = getattr(model, branch)
        if f"{branch}.*" in stage.trains and settings.freeze_shared_parameters:
            frozen.append(f"{branch}.t_embedder.*")
            frozen += [] if settings.share_mod else [f"{branch}.blocks.*.adaLN_modulation.*"]
    return Trains((*stage.trains, *factor), tuple(frozen))
