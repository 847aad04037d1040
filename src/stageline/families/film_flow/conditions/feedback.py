"""The second pass of prediction: the encoder sees the first pass's mask, painted on the picture or alone.

Never in training: there the condition would depend on the model and the step. Features are keyed by what the encoder
sees, so that no two masks share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stageline.errors import ConfigError
from stageline.families.film_flow.conditions.bundle import ConditionBundle
from stageline.families.film_flow.conditions.encoder import Picture, paint_mask
from stageline.families.film_flow.conditions.features import FeatureSource
from stageline.families.film_flow.config import FilmFlowConfig
from stageline.families.film_flow.data.preparation import open_features


def open_feedback(config: FilmFlowConfig) -> FeatureSource | None:
    """The encoder for a second pass, or None where the config asks for none."""
    mode = config.evaluate.mask_feedback
    if mode == "off" or not config.model.use_vlm_film:
        return None
    if "image" not in config.model.cond_source or config.model.vlm_scope != "image":
        raise ConfigError(
            f"evaluate.mask_feedback {mode!r} shows the encoder a picture, but the condition is made of "
            f"{config.model.cond_source!r} under vlm_scope {config.model.vlm_scope!r}",
            remedy="set evaluate.mask_feedback: off",
        )
    plain = open_features(config)
    return FeatureSource(replace(plain.settings, input_mode=mode), plain.place, cache_bytes=config.data.cache_bytes)


def feedback_condition(
    source: FeatureSource,
    pictures: Sequence[Picture],
    prompts: Sequence[str],
    ids: Sequence[str],
    probability: Tensor,
    threshold: float,
) -> ConditionBundle:
    """Conditions of painted pictures. pictures: (H, W, 3) uint8.  probability: (B, 1, H, W) of the first pass."""
    masks = (probability[:, 0] > threshold).cpu().numpy()
    settings = source.settings
    painted = [
        paint_mask(picture, mask, settings.input_mode, settings.overlay_alpha)
        for picture, mask in zip(pictures, masks, strict=True)
    ]
    vectors, present = source.features(painted, prompts, ids)
    return ConditionBundle(
        torch.from_numpy(np.ascontiguousarray(vectors)), torch.from_numpy(present), source=settings.source
    )
