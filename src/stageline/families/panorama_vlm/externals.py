"""Which tensors are not the family's own, which train, and which are held in another number format; no torch.

Names of the model's tensors:

    vision.*        the tower, as transformers names it: embeddings, encoder.layers.<n>, post_layernorm
    projector.*     head of VICReg
    pe.*            view-direction encoding
    resampler.*     resampler with its output projection
    language.*      the language model, adapters in place: <layer>.lora_A.<...>, <layer>.lora_B.<...>
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stageline.config import canonical_json
from stageline.contract import Cast, External
from stageline.stage import Stage, Trains

if TYPE_CHECKING:
    from stageline.families.panorama_vlm.config import PanoramaVlmConfig

TOWER = ("vision.*",)
PROJECTOR = ("projector.*",)
ENCODING = ("pe.*",)
RESAMPLER = ("resampler.*",)
ADAPTERS = ("language.*lora_*",)
LANGUAGE = (
    *("language.*embed_tokens.weight", "language.*norm.weight", "language.*lm_head.weight"),
    *("language.*_proj.weight", "language.*_proj.bias", "language.*.base_layer.weight", "language.*.base_layer.bias"),
)
"""The language model without adapters, whether or not an adapter lies around a layer."""


def section_of(name: str) -> str:
    """The section that a tensor belongs to: `lora` for adapters, else the first part of its name."""
    return "lora" if name.startswith("language.") and "lora_" in name else name.split(".", 1)[0]


def trained_tower(config: PanoramaVlmConfig) -> tuple[str, ...]:
    """Patterns of the tower's parameters that train."""
    blocks = config.model.trained_blocks
    if not blocks:
        return ()
    if config.model.vision_trainable_blocks < 0:
        return TOWER
    return (*(f"vision.encoder.layers.{block}.*" for block in blocks), "vision.post_layernorm.*")


def trains(config: PanoramaVlmConfig, stage: Stage) -> Trains:
    """Which parameters a stage trains. config: the stage's own."""
    model = config.model
    connected = (*RESAMPLER, *(ENCODING if model.has_encoding else ()))
    if stage.name == "vision":
        return Trains((*trained_tower(config), *PROJECTOR, *(connected if config.vicreg.tap == "resampler" else ())))
    if stage.name == "resampler":
        return Trains(connected)
    adapters = ADAPTERS if config.lora.use_lora else ()
    return Trains((*adapters, *(connected if model.train_resampler else ()), *trained_tower(config)))


def reads_language(stage: Stage) -> bool:
    """Whether the stage's model has a language model."""
    return stage.name != "vision"


def externals(config: PanoramaVlmConfig, stage: Stage) -> tuple[External, ...]:
    """Tower and language model; the tiny profile makes both from their sizes."""
    model = config.model
    if model.is_tiny:
        tower = External("vision", _generated("vision", config), patterns=TOWER, generated=True)
        language = External("language", _generated("language", config), patterns=LANGUAGE, generated=True)
    else:
        tower = External("vision", model.vision_name, model.vision_revision, TOWER)
        language = External("language", model.language_model_name, model.language_model_revision, LANGUAGE)
    return (tower, language) if reads_language(stage) else (tower,)


def _generated(word: str, config: PanoramaVlmConfig) -> str:
    """What made weights follow from: the kind of model and its sizes, not the names that they stand in for."""
    model = config.model
    kind = model.vision_class if word == "vision" else "qwen3"
    shape = model.vision if word == "vision" else model.language
    return f"made: {kind} {canonical_json(shape.model_dump())}"


def casts(config: PanoramaVlmConfig, stage: Stage) -> dict[str, Cast]:
    """Number formats of frozen weights while a stage trains."""
    if config.model.frozen_dtype == "float32":
        return {}
    patterns = (*TOWER, *(LANGUAGE if reads_language(stage) else ()))
    return dict.fromkeys(patterns, "bfloat16")
