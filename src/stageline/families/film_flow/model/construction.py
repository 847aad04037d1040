"""From a stage config to the network: which key becomes which constructor argument, and the initial weights."""

from __future__ import annotations

from typing import Any

from stageline.families.film_flow.config import FilmFlowConfig
from stageline.families.film_flow.facts import condition_features, film_plan, has_junction_head
from stageline.families.film_flow.model.film import FilmLimit
from stageline.families.film_flow.model.network import FilmFlowModel
from stageline.families.film_flow.model.unet import BackboneSettings
from stageline.layers.fixed_random import fixed_random
from stageline.objectives.step import seeded
from stageline.stage import Stage


def model_arguments(config: FilmFlowConfig) -> dict[str, Any]:
    """The arguments of FilmFlowModel for a stage config."""
    model, gate = config.model, config.model.junction_gating_config
    limit = model.film_limit
    return {
        "plan": film_plan(config),
        "settings": BackboneSettings(
            model_channels=model.model_channels,
            channel_mult=model.channel_mult,
            image_channels=model.image_channels,
            image_size=model.image_size,
            attn_resolutions=model.attn_resolutions,
            level_attention=model.level_attention,
            backbone_variant=model.backbone_variant,
            dropout=model.dropout,
            use_gradient_checkpointing=model.use_gradient_checkpointing,
            time_scale=model.time_scale,
            fourier_grid=model.fourier_grid,
            mid_layers=model.mid_layers,
        ),
        "image_conditioning": model.image_conditioning,
        "cond_features": condition_features(config),
        "cond_hidden": model.vlm_film_config.text_mlp_hidden_dim,
        "film_limit": FilmLimit(limit.gamma, limit.beta) if limit else None,
        "cond_layernorm": model.vlm_film_config.cond_layernorm,
        "require_condition": model.require_condition,
        "junction_channels": gate.junction_channels if has_junction_head(config) else 0,
        "detach_gate": gate.detach_gate,
        "gate_interp": gate.interp,
    }


def build_model(config: FilmFlowConfig, _stage: Stage | None = None) -> FilmFlowModel:
    """The network of a stage config; its initial weights are a function of `config.seed` alone.

    On the meta device where the caller sets one. The caller's own random state is left as it was.
    """
    with fixed_random(seeded("weights", config.seed).initial_seed()):
        return FilmFlowModel(**model_arguments(config))
