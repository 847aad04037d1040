"""What becomes of each section of a parent's tensors when a stage of panorama_vlm starts from it; no torch.

Sections: `vision` (tower), `projector` (head of VICReg), `pe`, `resampler`, `lora`. The language model is external.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stageline.errors import CheckpointError
from stageline.families.panorama_vlm.config.resamplers import shape_settings
from stageline.families.panorama_vlm.externals import ADAPTERS, ENCODING, PROJECTOR, RESAMPLER, TOWER
from stageline.families.panorama_vlm.facts import facts
from stageline.stage import Inheritance, Outcome, Stage

if TYPE_CHECKING:
    from stageline.contract import Parent
    from stageline.families.panorama_vlm.config import PanoramaVlmConfig

MOST_KEYS = 10
"""Differing settings that an error lists."""
FAR_FOV_DEG = 10.0
"""Tiles whose width differs by more show a tower another scale."""


def inherit(parent: Parent, config: PanoramaVlmConfig, stage: Stage) -> tuple[Inheritance, ...]:
    """The outcome for every section of parent and child.

    The tower is taken as the parent has it: blocks that were trained from its file, the rest from the tower's own. A
    resampler of another type is skipped; one of the same type with other shapes is refused, CheckpointError, unless
    `model.start_fresh` names it. So are adapters.
    """
    own, found = facts(config, stage), parent.facts
    fresh = config.model.start_fresh
    result = [_tower(found, own)]
    if parent.stage == "vision":
        result.append(Inheritance("projector", "drop", "the head of stage vision alone", PROJECTOR))
    result += _encoding(found, own, fresh=fresh)
    result += _resampler(found, own, fresh=fresh)
    result += _adapters(parent, own, stage, fresh=fresh)
    return tuple(result)


def _tower(found: Mapping[str, Any], own: Mapping[str, Any]) -> Inheritance:
    notes = []
    far = abs(found.get("fov_deg", own["fov_deg"]) - own["fov_deg"])
    if far > FAR_FOV_DEG:
        notes.append(f"tiles of {found['fov_deg']:g} degrees before, {own['fov_deg']:g} now: another scale")
    if found.get("tile_size") != own["tile_size"]:
        notes.append(f"views of {found.get('tile_size')} pixels before, {own['tile_size']} now")
    reason = "; ".join(["the same tower; what the parent did not train is the tower's own", *notes])
    return Inheritance("vision", "load or external", reason, TOWER)


def _encoding(found: Mapping[str, Any], own: Mapping[str, Any], *, fresh: tuple[str, ...]) -> list[Inheritance]:
    theirs, ours = found.get("pe") or {}, own["pe"]
    if not theirs and not ours:
        return []

    def section(outcome: Outcome, reason: str) -> list[Inheritance]:
        return [Inheritance("pe", outcome, reason, ENCODING)]

    if not ours:
        return section("drop", "this run has no view-direction encoding")
    if not theirs:
        return section("fresh", "absent: the checkpoint has none")
    if "pe" in fresh:
        return section("fresh", "model.start_fresh")
    if theirs != ours:
        return section("fresh", f"skipped: checkpoint {_words(theirs)}, run {_words(ours)}")
    return section("load", f"the same encoding, {_words(ours)}")


def _words(encoding: Mapping[str, Any]) -> str:
    return f"{encoding.get('kind')} {' x '.join(map(str, encoding.get('widths', ())))}"


def _resampler(found: Mapping[str, Any], own: Mapping[str, Any], *, fresh: tuple[str, ...]) -> list[Inheritance]:
    theirs, ours = found.get("resampler_type") or "", own["resampler_type"]
    if not theirs and not ours:
        return []

    def section(outcome: Outcome, reason: str) -> list[Inheritance]:
        return [Inheritance("resampler", outcome, reason, RESAMPLER)]

    if not ours:
        return section("drop", "this stage has no resampler")
    if not theirs:
        return section("fresh", "absent: the checkpoint has none")
    if theirs != ours:
        return section("fresh", f"skipped: checkpoint {theirs}, run {ours}")
    if "resampler" in fresh:
        return section("fresh", "model.start_fresh")
    a = shape_settings(theirs, dict(found.get("resampler") or {})) | _widths(found)
    b = shape_settings(ours, own["resampler"]) | _widths(own)
    differing = [f"{key}: checkpoint {a.get(key)!r}, run {b[key]!r}" for key in b if a.get(key) != b[key]]
    if differing:
        raise CheckpointError(
            f"the checkpoint's resampler is of the same type {ours!r} with other shapes: "
            f"{'; '.join(differing[:MOST_KEYS])}",
            remedy="give model.resampler_config the checkpoint's values, or say model.start_fresh: [resampler]",
        )
    return section("load", f"the same {ours}")


def _widths(said: Mapping[str, Any]) -> dict[str, Any]:
    return {"vision_width": said.get("vision_width"), "language_width": said.get("language_width")}


def _adapters(parent: Parent, own: Mapping[str, Any], stage: Stage, *, fresh: tuple[str, ...]) -> list[Inheritance]:
    theirs, ours = parent.facts.get("lora") or {}, own["lora"]
    if not theirs and not ours:
        return []

    def section(outcome: Outcome, reason: str) -> list[Inheritance]:
        return [Inheritance("lora", outcome, reason, ADAPTERS)]

    if not ours:
        return section("drop", f"stage {stage.name} trains no adapters")
    if not theirs:
        return section("fresh", "absent: the checkpoint has none")
    if "lora" in fresh:
        return section("fresh", "model.start_fresh")
    asked = {**ours, "language": own["language"]}
    given = {**theirs, "language": parent.facts.get("language")}
    keys = ("rank", "target_modules", "language")
    differing = [
        f"{key}: checkpoint {given.get(key)!r}, run {asked[key]!r}" for key in keys if given.get(key) != asked[key]
    ]
    if differing:
        raise CheckpointError(
            f"the checkpoint's adapters do not fit: {'; '.join(differing)}",
            remedy="give section lora the checkpoint's values, or say model.start_fresh: [lora]",
        )
    return section("load", "the same adapters")
