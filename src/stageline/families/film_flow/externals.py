"""The frozen encoder of film_flow as weights of others: `encoder`; no torch.

It is no part of the model's tensors: features are made with it while data are prepared, under `vlm_scope: crop` in
training, and for new pictures in prediction. The offline `stub` and vectors made elsewhere have no weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stageline.encoders.external import External

if TYPE_CHECKING:
    from stageline.families.film_flow.config import FilmFlowConfig
    from stageline.stage import Stage

WITH_WEIGHTS = ("clip", "siglip2", "qwen-vl")
"""Kinds of encoders that are loaded from files of others."""


def encoder_external(config: FilmFlowConfig) -> External | None:
    """The encoder that features are made with; None where it has no weights, or there is no condition."""
    model, vlm = config.model, config.model.vlm_film_config
    if not model.use_vlm_film or vlm.encoder not in WITH_WEIGHTS or not vlm.model_name:
        return None
    return External("encoder", vlm.model_name, vlm.revision or "")


def externals(config: FilmFlowConfig, _stage: Stage | None = None) -> tuple[External, ...]:
    """Weights that are not ours and that a stage needs. config: the stage's own."""
    encoder = encoder_external(config)
    return () if encoder is None else (encoder,)
