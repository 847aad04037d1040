"""The section `model`: tower, language model, resampler, view-direction encoding, and what of them trains; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from stageline.config import Settings
from stageline.families.panorama_vlm.config.architectures import (
    TINY_LANGUAGE,
    TINY_VISION,
    LanguageShape,
    VisionShape,
    known_language,
    known_vision,
)
from stageline.families.panorama_vlm.config.resamplers import Resampler, ResamplerConfig, resolve
from stageline.families.panorama_vlm.config.rules import model_faults, raise_faults
from stageline.families.panorama_vlm.image_tokens import ResamplerType

Section = Literal["pe", "resampler", "lora"]
NUM_DIRECTION_FEATURES = 33
"""Width of the Fourier features of a direction: 3 + 20 + 10."""


class PeConfig(Settings):
    """The encoding of view directions; `use_projection_positional_encoding` switches it off."""

    kind: Literal["direction"] = "direction"
    """Fourier features of the direction, added to vision tokens before the resampler."""
    after: bool = False
    """Also added to image tokens, where they have a direction (mlp, and bimamba without queries)."""
    solid_angle: bool = False
    """One more feature, the logarithm of a token's solid angle; it differs between tiles for the same direction."""


class ModelConfig(Settings):
    """Tower -> resampler -> language model."""

    profile: Literal["tiny"] | None = None
    """tiny: towers, language models, tokenizers and resamplers of a few thousand weights, made from the seed, under any
    names; stages whose length is given in epochs, or not at all, get a few steps."""
    vision_name: str = Field(default="google/siglip2-so400m-patch16-256", min_length=1)
    """Vision tower: hub id or folder."""
    vision_revision: str = ""
    """Branch, tag or commit of the hub; empty is its main branch."""
    vision_class: Literal["siglip", "siglip2_naflex"] = "siglip"
    """Fixed resolution (SigLIP, SigLIP2), or NaFlex, which takes patches of any grid."""
    vision_config: VisionShape | None = None
    """Sizes of the tower; null takes those of a published name, or of the folder's config.json."""
    language_model_name: str = Field(default="Qwen/Qwen3-0.6B", min_length=1)
    """Qwen3 language model: hub id or folder."""
    language_model_revision: str = ""
    """As of the tower."""
    language_config: LanguageShape | None = None
    """Sizes of the language model; null as of the tower."""
    resampler_type: ResamplerType = "bimamba"
    """What turns vision tokens into image tokens."""
    resampler_config: ResamplerConfig = ResamplerConfig()
    use_projection_positional_encoding: bool = True
    """Whether vision tokens carry their view direction."""
    pe: PeConfig = PeConfig()
    vision_trainable_blocks: int = Field(default=0, ge=-1)
    """The last N encoder blocks of the tower train, with its last norm; -1: the whole tower; 0: none."""
    vision_learning_rate_scale: float = Field(default=0.1, gt=0)
    """Learning rate of the tower as a multiple of the stage's."""
    train_resampler: bool = True
    """Whether resampler and encoding go on training in `finetune`."""
    resampler_learning_rate_scale: float = Field(default=0.2, gt=0)
    """Learning rate of resampler and encoding in `finetune`, as a multiple of that of the adapters."""
    start_fresh: tuple[Section, ...] = ()
    """Sections that start anew although the parent has them."""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format in which frozen weights are held while a stage trains."""
    gradient_checkpointing: bool = False
    """Recompute the language model's activations in the backward pass: less memory, about a third more time."""

    IN_FINGERPRINTS: ClassVar[Mapping[str, str]] = {
        "resampler_config": "resampler",
        "vision_config": "vision",
        "language_config": "language",
    }

    @field_validator("start_fresh", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        raise_faults(model_faults(self))
        return self

    @property
    def is_tiny(self) -> bool:
        return self.profile == "tiny"

    @property
    def known_vision(self) -> VisionShape | None:
        """Sizes of the tower, or None where nothing says them."""
        return TINY_VISION if self.is_tiny else self.vision_config or known_vision(self.vision_name)

    @property
    def known_language(self) -> LanguageShape | None:
        """Sizes of the language model, or None where nothing says them."""
        return TINY_LANGUAGE if self.is_tiny else self.language_config or known_language(self.language_model_name)

    @property
    def vision(self) -> VisionShape:
        """Sizes of the tower that is built."""
        found = self.known_vision
        assert found is not None, "a rule refuses towers of unknown size"
        return found

    @property
    def language(self) -> LanguageShape:
        """Sizes of the language model that is built."""
        found = self.known_language
        assert found is not None, "a rule refuses language models of unknown size"
        return found

    @property
    def resampler(self) -> Resampler:
        """The resampler's settings with every default in its place."""
        return resolve(self.resampler_type, self.resampler_config, self.vision.grid, tiny=self.is_tiny)

    @property
    def has_encoding(self) -> bool:
        return self.use_projection_positional_encoding

    @property
    def pe_widths(self) -> list[int]:
        """Widths of the encoding: features, vision tokens, and image tokens where it stands after the resampler."""
        if not self.has_encoding:
            return []
        widths = [NUM_DIRECTION_FEATURES + self.pe.solid_angle, self.vision.hidden_size]
        return [*widths, self.language.hidden_size] if self.pe.after else widths

    @property
    def trained_blocks(self) -> range:
        """Numbers of the tower's blocks that train."""
        layers = self.vision.num_layers
        number = layers if self.vision_trainable_blocks < 0 else min(self.vision_trainable_blocks, layers)
        return range(layers - number, layers)
