"""What a checkpoint of panorama_vlm says about itself, and how verbs compare it; no torch.

What a stage has not, its facts say by an empty value: a checkpoint of `vision` names no language model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stageline.config import fingerprint, semantic
from stageline.contract import Comparison
from stageline.families.panorama_vlm.externals import reads_language
from stageline.families.panorama_vlm.geometry.tiles import DECIMALS
from stageline.families.panorama_vlm.naming import whole_name
from stageline.families.panorama_vlm.words import WORDS

if TYPE_CHECKING:
    from stageline.families.panorama_vlm.config import PanoramaVlmConfig
    from stageline.stage import Stage

TEMPLATE = "vision_start image_pad*T vision_end newline query; no thinking"
"""Form of the prompt; another one is another text."""


def has_resampler(config: PanoramaVlmConfig, stage: Stage) -> bool:
    """Whether a stage's model has resampler and encoding."""
    return stage.name != "vision" or config.vicreg.tap == "resampler"


def _source(name: str, revision: str) -> str:
    return f"{name}@{revision}" if revision else name


def facts(config: PanoramaVlmConfig, stage: Stage) -> dict[str, Any]:
    """What a checkpoint of this stage says about itself. config: the stage's own."""
    model, reads, connected = config.model, reads_language(stage), has_resampler(config, stage)
    vision = stage.name == "vision"
    return {
        "profile": model.profile or "",
        "vision": _source(model.vision_name, model.vision_revision),
        "vision_class": model.vision_class,
        "vision_width": model.vision.hidden_size,
        "vision_patch": model.vision.patch_size,
        "vision_trained_blocks": list(model.trained_blocks),
        **_plan_facts(config),
        "language": _source(model.language_model_name, model.language_model_revision) if reads else "",
        "language_width": model.language.hidden_size if connected else 0,
        "resampler_type": model.resampler_type if connected else "",
        "resampler": _resampler(config) if connected else {},
        "pe": _encoding(config) if connected else {},
        "stitching": config.image_processing.stitching_mode if connected else "",
        "image_tokens": config.image_tokens if connected else 0,
        "vicreg": _vicreg(config) if vision else {},
        "lora": _lora(config) if stage.name == "finetune" else {},
        "text": _text(config) if reads else {},
    }


def _plan_facts(config: PanoramaVlmConfig) -> dict[str, Any]:
    plan = config.image_processing.plan
    return {
        "plan": plan.name,
        "plan_id": plan.plan_id,
        "fov_deg": plan.fov_deg,
        "overlap": round(plan.o_eff, DECIMALS) + 0.0,
        "views": plan.num_views,
        "yaws_deg": [round(yaw, DECIMALS) for yaw in plan.yaws],
        "pitches_deg": [round(pitch, DECIMALS) for pitch in plan.pitches],
        "global_mode": plan.global_mode,
        "pixel_centres": plan.pixel_centres,
        "tile_size": config.tile_size,
    }


def _resampler(config: PanoramaVlmConfig) -> dict[str, Any]:
    """The settings of the resampler that count."""
    plain: dict[str, Any] = json.loads(json.dumps(semantic(config.model.resampler)))
    return plain


def _encoding(config: PanoramaVlmConfig) -> dict[str, Any]:
    model = config.model
    if not model.has_encoding:
        return {}
    return {"kind": model.pe.kind, "widths": model.pe_widths}


def _vicreg(config: PanoramaVlmConfig) -> dict[str, Any]:
    vicreg = config.vicreg
    return {
        "form": vicreg.form,
        "pairs": list(config.vicreg_pairs),
        "tap": vicreg.tap,
        "projector": {"width": config.projector_width, "norm": vicreg.projector_norm},
    }


def _lora(config: PanoramaVlmConfig) -> dict[str, Any]:
    lora = config.lora
    if not lora.use_lora:
        return {}
    scale = {"rank": lora.rank, "alpha": float(lora.alpha), "use_rslora": lora.use_rslora}
    return {**scale, "dropout": lora.dropout, "target_modules": sorted(lora.target_modules)}


def _text(config: PanoramaVlmConfig) -> dict[str, Any]:
    template = fingerprint({"form": TEMPLATE, "system": config.text.system})[:16]
    return {"template": template, "max_text_length": config.text.max_text_length}


_GEOMETRY: dict[str, Comparison] = {"seed": "report"}
"""Equal where a stage is continued or a checkpoint evaluated; a parent with another plan is reported."""
_SECTION: dict[str, Comparison] = {"seed": "report_both"}
"""What becomes of it, `inherit` decides and says; what only one of the two stages has is no difference."""
_TRAINED: dict[str, Comparison] = {"seed": "report_both", "evaluate": "report"}
"""How a checkpoint was trained, which another evaluation config may put otherwise."""
FACT_RULES: dict[str, dict[str, Comparison]] = {
    **dict.fromkeys(("plan", "plan_id", "fov_deg", "overlap", "views", "yaws_deg", "pitches_deg"), _GEOMETRY),
    **dict.fromkeys(("global_mode", "pixel_centres", "tile_size"), _GEOMETRY),
    **dict.fromkeys(("language", "language_width", "resampler_type", "resampler", "pe", "lora"), _SECTION),
    **dict.fromkeys(("stitching", "image_tokens"), _SECTION),
    **dict.fromkeys(("vision_trained_blocks", "vicreg", "text"), _TRAINED),
}
"""Facts that are not named here must be equal for every verb: profile, tower, patch and width."""

_PLAN = ("plan", "plan_id", "views")
_ASKED: dict[str, tuple[str, ...]] = {
    "model.profile": ("profile",),
    "model.vision_name": ("vision",),
    "model.vision_class": ("vision_class",),
    "model.language_model_name": ("language",),
    "model.resampler_type": ("resampler_type",),
    "model.use_projection_positional_encoding": ("pe",),
    "image_processing.fov_deg": ("fov_deg", *_PLAN),
    "image_processing.overlap_ratio": ("overlap", *_PLAN),
    "image_processing.pitch_rows": _PLAN,
    "image_processing.caps": _PLAN,
    "image_processing.global_mode": ("global_mode",),
    "image_processing.pixel_centres": ("pixel_centres",),
    "image_processing.stitching_mode": ("stitching",),
}
"""Key -> the facts that a user states by it."""


def asked(model: type[PanoramaVlmConfig], raw: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that a user's own config states; keys that are absent or null state nothing. model: the config's class.

    What only some stages have is asked as the last stage has it.
    """
    from stageline.families.panorama_vlm.config.stages import STAGES

    config = model.model_validate_json(json.dumps(raw))
    own = facts(config, STAGES["finetune"])
    result: dict[str, Any] = {}
    for key, names in _ASKED.items():
        section, _, field = key.partition(".")
        if field in getattr(config, section).model_fields_set:
            result |= {name: own[name] for name in names}
    return result


def summary(config: PanoramaVlmConfig, stage: Stage) -> tuple[str, ...]:
    """The plan, token counts, the cost and the run's name as lines for people who look at a plan."""
    from stageline.families.panorama_vlm.cost import cost_of, told

    plan, model = config.image_processing.plan, config.model
    lines = [f"views {plan.describe()}"]
    if reads_language(stage):
        lines.append(
            f"tokens: {plan.num_views} views of {config.grid} x {config.grid}, {model.resampler_type} and "
            f"{config.image_processing.stitching_mode} make {config.image_tokens} image tokens of them"
        )
        lines.append(told(cost_of(config)))
    whole = whole_name(config)
    if whole != config.run:
        lines.append(f"run {config.run}: the settings in full are {whole}")
    if model.is_tiny:
        lines.append("profile tiny: made weights in the place of the models named")
    return tuple(lines)


def compared(config: PanoramaVlmConfig, stage: Stage, measured: Mapping[str, float]) -> dict[str, Any]:
    """What a comparison tells of an evaluated checkpoint: its views and tokens, what they cost and what they took.

    config, stage: the checkpoint's own.  measured: by its evaluation. Operations are counted, see `cost`.
    """
    from stageline.families.panorama_vlm.cost import cost_of

    del stage
    plan, cost = config.image_processing.plan, cost_of(config)
    told = {
        "plan": plan.describe(),
        "stitching": config.image_processing.stitching_mode,
        "resampler": config.model.resampler_type,
        "tiles": len(plan.tiles),
        "views": plan.num_views,
        "image_tokens": config.image_tokens,
        "tower_operations": cost.tower,
        "training_operations": cost.training(),
        "training_operations_cached": cost.training(cached=True),
    }
    place = list(WORDS.compared)
    return dict(sorted({**told, **measured}.items(), key=lambda item: place.index(item[0])))
