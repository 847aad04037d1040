"""The record of sparse_structure: everything training, evaluation, prediction and import ask of the family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stageline.contract import Family, Progress, Split
from stageline.families.sparse_structure.assembly import build_model
from stageline.families.sparse_structure.baselines import BASELINES
from stageline.families.sparse_structure.config import FAMILY_CONFIG
from stageline.families.sparse_structure.data import preparation
from stageline.families.sparse_structure.evaluate import evaluate
from stageline.families.sparse_structure.exports import write_ckpt
from stageline.families.sparse_structure.guide_data import demo_data
from stageline.families.sparse_structure.imports import import_files
from stageline.families.sparse_structure.inheritance import section_of
from stageline.families.sparse_structure.predict import predict
from stageline.families.sparse_structure.sources import source_of
from stageline.families.sparse_structure.task import begin, build_task, derive

if TYPE_CHECKING:
    from stageline.data.shards import SplitWriter
    from stageline.families.sparse_structure.config import SparseStructureConfig


def prepare(config: SparseStructureConfig, split: Split, writer: SplitWriter, progress: Progress) -> dict[str, Any]:
    """Write the scenes of one split."""
    return preparation.write_split(source_of(config), split.name, writer, progress)


def check_sources(config: SparseStructureConfig, splits: Sequence[Split], progress: Progress) -> None:
    """Every fault of the user's own scenes."""
    preparation.check_sources(source_of(config), [split.name for split in splits], progress)


FAMILY = Family(
    config=FAMILY_CONFIG,
    build_model=build_model,
    build_task=build_task,
    prepare=prepare,
    evaluate=evaluate,
    predict=predict,
    import_files=import_files,
    section_of=section_of,
    formats={"ckpt": write_ckpt},
    derive=derive,
    begin=begin,
    check_sources=check_sources,
    demo_data=demo_data,
    baselines=BASELINES,
)
