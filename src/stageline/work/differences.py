"""In which settings, data and parents recorded work differs from what is asked for, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stageline.checkpoint.layout import CheckpointRef
from stageline.checkpoint.metadata import CheckpointMetadata, is_continuable
from stageline.config import RunConfig, once_counted
from stageline.contract import FamilyConfig
from stageline.errors import difference
from stageline.families import STEP_RATES
from stageline.stage import Stage, stage_settings


def changes(
    recorded: CheckpointMetadata,
    own: RunConfig,
    inputs: Mapping[str, str],
    parents: Mapping[str, CheckpointRef],
    externals: Mapping[str, str],
) -> list[str]:
    """Every difference of a recorded checkpoint, one line each: `key: old -> new`.

    own: the stage's config.  inputs: split -> what it is made from.  parents: role -> checkpoint it starts from.
    externals: weights of others -> digest.
    """
    lines = [] if is_continuable(recorded) else [old_schema(recorded)]
    lines += changed_fields(recorded, own) + changed_inputs(recorded, inputs)
    return lines + changed_externals(recorded, externals) + changed_parents(recorded, parents)


def old_schema(recorded: CheckpointMetadata) -> str:
    """Why what an earlier version saved is no result of this one."""
    return f"schema {recorded.schema_version}: what an earlier version saved is neither continued nor reused"


def changed_fields(recorded: CheckpointMetadata, own: RunConfig) -> list[str]:
    """The settings that differ; those that counted once and no longer do are none."""
    counted = once_counted(own)
    before = {key: value for key, value in recorded.settings.items() if key not in counted}
    return difference(before, stage_settings(own))


def changed_inputs(recorded: CheckpointMetadata, inputs: Mapping[str, str]) -> list[str]:
    """The splits whose source files or settings differ."""
    old = recorded.data_inputs
    if not old:
        return []
    return [
        f"data {name}: {old.get(name, 'none')[:12]} -> {inputs.get(name, 'none')[:12]}"
        for name in sorted({*old, *inputs})
        if old.get(name) != inputs.get(name)
    ]


def changed_externals(recorded: CheckpointMetadata, digests: Mapping[str, str]) -> list[str]:
    """The weights of others that are other ones. digests: name -> digest of now."""
    old = {name: record.digest for name, record in recorded.externals.items()}
    return [
        f"external {name}: {old.get(name, 'none')[:12] or 'not recorded'} -> {digests.get(name, 'none')[:12]}"
        for name in sorted({*old, *digests})
        if old.get(name) != digests.get(name)
    ]


def changed_parents(recorded: CheckpointMetadata, parents: Mapping[str, CheckpointRef]) -> list[str]:
    """The roles whose checkpoint has another content."""
    lines = []
    for role in sorted({*recorded.parents, *parents}):
        old = recorded.parents[role].content[:12] if role in recorded.parents else "from scratch"
        new = parents[role].content[:12] if role in parents else "from scratch"
        if old != new:
            named = f" ({recorded.parents[role].uri})" if role in recorded.parents and role not in parents else ""
            lines.append(f"parent {role}: {old}{named} -> {new}")
    return lines


def recorded_parameters(metadata: CheckpointMetadata) -> dict[str, int] | None:
    """Tensor elements an earlier run recorded, trained and in all."""
    trained = sum(group.parameters for group in metadata.trained.values())
    frozen = sum(group.parameters for group in metadata.frozen.values())
    return {"trained": trained, "total": trained + frozen} if trained + frozen else None


def expected_seconds(metadata: CheckpointMetadata, steps: int | None, from_step: int) -> float | None:
    """Seconds for the steps still to do, at the pace an earlier run recorded."""
    pace = metadata.timing.get("step_seconds")
    if steps is None or pace is None:
        return None
    return max(steps - from_step, 0) * pace


def device_kind(config: RunConfig) -> str:
    """`cuda` or `cpu`: what a stage trains on here, as far as that shows without torch."""
    accelerator = config.trainer.accelerator
    if accelerator == "auto":
        return "cuda" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu"
    return accelerator


def estimated_seconds(family: FamilyConfig, config: RunConfig, stage: Stage, steps: int | None) -> float | None:
    """Seconds for all steps by rates that were measured once; None where nobody measured.

    config: the stage's own.
    """
    rate = STEP_RATES.get((family.name, device_kind(config)))
    work = family.step_work(config, stage)
    pace = None if rate is None or work is None else rate.seconds(work)
    return None if steps is None or pace is None else steps * pace


def divergence(metadata: CheckpointMetadata, metric: str) -> str:
    """A sentence where a finished stage is worth nothing: its metric was measured and never finite; "" else."""
    if metadata.best is not None or metric not in metadata.metrics:
        return ""
    value = metadata.metrics[metric]
    if value is not None:
        return ""
    return f"diverged: its metric {metric!r} was never finite"
