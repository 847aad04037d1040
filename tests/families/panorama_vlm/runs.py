"""Tiny runs of the family on made rooms, through the verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stageline.checkpoint.layout import CheckpointRef, resolve
from stageline.config import apply_overrides
from stageline.families import parse_config, raw_preset
from stageline.families.panorama_vlm.config import FAMILY_CONFIG, PanoramaVlmConfig
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

SMALL = (
    *("data.num_train=4", "data.num_val=2", "data.num_test=2", "trainer.batch_size=2", "trainer.max_steps=5"),
    *("trainer.accelerator=cpu", "trainer.tensorboard=false", "evaluate.num_panels=0", "generation.max_new_tokens=4"),
)
CHAIN = ("vision", "resampler", "finetune")


def small(
    root: Path | str, *overrides: str, run: str = "small", data: dict[str, Any] | None = None
) -> PanoramaVlmConfig:
    """The preset `tiny`, shrunk. data: takes the place of the made rooms."""
    raw = raw_preset("panorama_vlm", "tiny")
    raw["data"] = data or raw["data"]
    shrunk = [key for key in SMALL if not (data and key.startswith("data."))]
    raw = apply_overrides(raw, [*shrunk, f"root={root}", f"run={run}"], PanoramaVlmConfig)
    return parse_config(raw, list(overrides))


def trained(config: PanoramaVlmConfig, *stages: str) -> dict[str, CheckpointRef]:
    """Stages, trained in order: stage -> the last checkpoint of each."""
    data = str(prepare_data(config).reference)
    names = stages or [stage.name for stage in FAMILY_CONFIG.selected(config)]
    return {name: last(train_stage(config, name, data=data)) for name in names}


def last(result: Any) -> CheckpointRef:
    """The last checkpoint of a stage that was trained."""
    return resolve(str(result.reference), prefer="last")
