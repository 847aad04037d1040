"""What a checkpoint of film_flow says about itself, how verbs compare it, and the FiLM plan of a config; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stageline.contract import Comparison
from stageline.families.film_flow.agreement import agree_facts, agree_stages, trained_film
from stageline.families.film_flow.config.film_plan import (
    FilmPlan,
    StagesOrigin,
    decoder_channels,
    resolve_gate_stages,
    stage_lines,
)

if TYPE_CHECKING:
    from stageline.families.film_flow.config import FilmFlowConfig
    from stageline.stage import Stage


def film_plan(config: FilmFlowConfig, origin: StagesOrigin | None = None) -> FilmPlan:
    """The FiLM plan of a stage config; origin `default` where the config named no decoder stages."""
    model, vlm, gate = config.model, config.model.vlm_film_config, config.model.junction_gating_config
    channels = decoder_channels(model.model_channels, model.channel_mult)
    stages = model.vlm_film_decoder_stages or ()
    said = not stages or "vlm_film_decoder_stages" in model.model_fields_set
    gated = resolve_gate_stages(gate.apply_stages, stages, channels) if gate.enabled and stages else ()
    return FilmPlan(
        decoder_channels=channels,
        stages=stages,
        stages_origin=origin or ("config" if said else "default"),
        apply_point=model.film_apply_point,
        cond_dim=vlm.cond_dim,
        head_hidden=vlm.film_hidden_dim,
        head_variant=model.head_variant,
        gate_stages=gated,
        gate_value=gate.gate_value_in_junction,
        vlm_scope=model.vlm_scope,
        cond_source=model.cond_source,
    )


def summary(config: FilmFlowConfig, stage: Stage) -> tuple[str, ...]:
    """The decoder stages of a stage config as lines for people."""
    del stage
    return stage_lines(film_plan(config), config.model.image_size)


def has_junction_head(config: FilmFlowConfig) -> bool:
    """Whether the model has a junction head of its own."""
    gate = config.model.junction_gating_config
    return gate.enabled and gate.source == "head"


def condition_features(config: FilmFlowConfig) -> int:
    """F: size of the feature vector that reaches the model; 0 without FiLM. Picture and text together are two."""
    if not config.model.use_vlm_film:
        return 0
    parts = 2 if config.model.cond_source == "image+text" else 1
    return parts * (config.model.vlm_film_config.feature_dim or 0)


def facts(config: FilmFlowConfig, _stage: Stage | None = None) -> dict[str, Any]:
    """What a checkpoint of a stage with this config says about itself; the same at every stage of one config."""
    model, vlm, plan = config.model, config.model.vlm_film_config, film_plan(config)
    film = bool(plan.stages)
    return {
        "vlm_film_trained_stages": list(plan.stages),
        "decoder_channels": list(plan.decoder_channels),
        "plan_fingerprint": plan.fingerprint if film else "",
        "apply_point": plan.apply_point if film else "",
        "head_variant": plan.head_variant if film else "",
        "gate_stages": list(plan.gate_stages),
        "gate_value": plan.gate_value if plan.gate_stages else 1.0,
        "vlm_scope": plan.vlm_scope if film else "",
        "cond_source": plan.cond_source if film else "",
        "cond_encoder": f"{vlm.encoder}:{vlm.model_name or ''}@{vlm.revision or ''}" if film else "",
        "cond_features": condition_features(config),
        "cond_dim": plan.cond_dim if film else 0,
        "image_conditioning": model.image_conditioning,
        "backbone_variant": model.backbone_variant,
        "image_channels": model.image_channels,
        "junction_head": has_junction_head(config),
        "mode": model.mode,
        "prediction": model.prediction,
        "target_kind": model.target_kind,
        "time_scale": model.time_scale,
        "image_norm": config.data.image_norm,
    }


def _rule(resume: Comparison, seed: Comparison, evaluate: Comparison) -> dict[str, Comparison]:
    return {"resume": resume, "seed": seed, "evaluate": evaluate}


_FILM: dict[str, Comparison] = _rule("equal", "report", "equal")
"""A parent without FiLM, or with other decoder stages, may seed (`inherit` says how); nothing else may differ."""
_OF_FILM: dict[str, Comparison] = _rule("equal", "report_both", "equal")
"""The same of what a parent without FiLM does not have."""
FACT_RULES: dict[str, dict[str, Comparison]] = {
    "vlm_film_trained_stages": _rule("equal", "report", "equal"),
    "plan_fingerprint": _rule("equal", "report_both", "report"),
    **dict.fromkeys(("gate_stages", "gate_value", "junction_head"), _FILM),
    **dict.fromkeys(("apply_point", "head_variant", "vlm_scope"), _OF_FILM),
    **dict.fromkeys(("cond_source", "cond_encoder", "cond_features", "cond_dim"), _OF_FILM),
}
"""Facts that are not named here must be equal for every verb. An ablation is `evaluate.film_active`, never another list
of trained decoder stages."""


def agree(
    asked: Mapping[str, Any], found: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Refuse an evaluation whose config states other FiLM decoder stages, or another wiring, than the checkpoint has.

    asked: facts the user states.  found: the checkpoint's.  shapes: its tensors, which must prove what it says.
    Raises CheckpointError E_CFG_VS_CKPT, or E_EVIDENCE_CONFLICT where a checkpoint contradicts itself.
    """
    trained = trained_film(where, shapes, found.get("vlm_film_trained_stages"))
    agree_stages("evaluate", asked.get("vlm_film_trained_stages"), trained)
    agree_facts("evaluate", asked, found, where)
