"""Configs of the family while its torch half is not asked for: parsed, at a stage, and facts of parents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stageline.config import apply_overrides, read_yaml, validate
from stageline.contract import Parent
from stageline.families.panorama_vlm.config import FAMILY_CONFIG, STAGES, PanoramaVlmConfig
from stageline.stage import Inheritance, stage_config

GUIDE = Path(__file__).resolve().parents[3] / "scripts/panorama_vlm/configs"
ROOMS: dict[str, Any] = {"data": {"name": "rooms"}}


def config(*overrides: str, raw: dict[str, Any] | None = None) -> PanoramaVlmConfig:
    """A config of made rooms, or of `raw`, with `key=value` in any spelling."""
    merged = apply_overrides(ROOMS if raw is None else raw, overrides, PanoramaVlmConfig)
    return validate(merged, PanoramaVlmConfig, "config")


def guide(name: str) -> dict[str, Any]:
    """A config of the guide, as it stands in its folder."""
    return read_yaml(GUIDE / f"{name}.yaml")


def parent(stage: str, run: PanoramaVlmConfig) -> Parent:
    """What a run's stage says about itself when it is the parent of another."""
    own = stage_config(run, STAGES[stage])
    return Parent("default", stage, FAMILY_CONFIG.facts(own, STAGES[stage]))


def inherited(given: Parent, run: PanoramaVlmConfig, stage: str = "resampler") -> dict[str, Inheritance]:
    """Section -> what becomes of it when a stage of `run` starts from a parent."""
    own = stage_config(run, STAGES[stage])
    return {section.section: section for section in FAMILY_CONFIG.inherit(given, own, STAGES[stage])}
