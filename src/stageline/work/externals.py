"""Which weights of others a run needs, and what is known of them: digests from the root's lock. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from stageline.checkpoint.metadata import CheckpointMetadata
from stageline.config import RunConfig
from stageline.contract import External, FamilyConfig
from stageline.encoders.copies import LockOutcome
from stageline.encoders.lock import read_lock
from stageline.families import family_config
from stageline.stage import stage_config
from stageline.store import open_store
from stageline.work.data import run_splits
from stageline.work.evaluations import asked_checkpoints


def run_externals(config: RunConfig, family: FamilyConfig) -> tuple[External, ...]:
    """The externals of the selected stages, of the stages that are evaluated, and of the splits; each once.

    config: the run's.
    """
    evaluated = [family.stages[name] for name in asked_checkpoints(config).values() if name in family.stages]
    stages = {stage.name: stage for stage in (*family.selected(config), *evaluated)}
    found = [external for stage in stages.values() for external in family.externals(stage_config(config, stage), stage)]
    found += [external for split in run_splits(config, family) for external in split.externals]
    return tuple({(external.key, external.generated): external for external in found}.values())


def describe_externals(config: RunConfig) -> tuple[str, ...]:
    """One line for people about each external of a run, as prepare locked it."""
    lock = read_lock(open_store(config.root))
    externals = run_externals(config, family_config(config.family))
    return tuple(str(LockOutcome(external, lock.get(external.key))) for external in externals)


def recorded_digests(recorded: CheckpointMetadata, digests: Mapping[str, str]) -> dict[str, str]:
    """The digests that a checkpoint was made with, of the externals that a stage has now.

    digests: of now; they stand for externals of which the checkpoint says nothing.
    """
    old = {name: record.digest for name, record in recorded.externals.items() if record.digest}
    return {name: old.get(name, digest) for name, digest in digests.items()}
