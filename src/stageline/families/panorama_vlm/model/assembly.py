"""The whole model of a stage: vision tower, direction encoding, resampler, language model with adapters.

    views (B, V, 3, T, T) -> vision -> features (B, V, S, D_v) -> pe + resampler -> image tokens (B, T, D_llm)
    -> in place of `<|image_pad|>` among the text's embeddings -> language -> hidden states (B, L, D_llm)

A stage builds only what it needs: `vision` has no resampler (unless its loss acts behind it) and no language model.
State-dict names: `vision.*`, `projector.*`, `pe.*`, `resampler.*`, `language.*` with adapters `*.lora_A.*`, `*.lora_B.*`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from stageline.encoders.copies import external_folder
from stageline.encoders.frozen import load_frozen
from stageline.errors import ConfigError
from stageline.families.panorama_vlm.data.text import TextBatch, place_image_tokens
from stageline.families.panorama_vlm.data.tokenizer import load_tokenizer
from stageline.families.panorama_vlm.externals import LANGUAGE, VISION, external_of
from stageline.families.panorama_vlm.facts import token_layout, token_rules
from stageline.families.panorama_vlm.geometry.tokens import directions
from stageline.families.panorama_vlm.model import language as lm
from stageline.families.panorama_vlm.model import tower
from stageline.families.panorama_vlm.model.encoding import DirectionEncodings, make_encodings
from stageline.families.panorama_vlm.model.resampler import ImageTokens, Resampler
from stageline.families.panorama_vlm.model.resamplers import make_resampler
from stageline.families.panorama_vlm.model.tiny import tiny_language, tiny_tokenizer
from stageline.families.panorama_vlm.vicreg import VicregProjector

if TYPE_CHECKING:
    from transformers import Siglip2VisionConfig, SiglipVisionConfig

    from stageline.families.panorama_vlm.config import PanoramaConfig
    from stageline.stage import Stage

T = TypeVar("T")
EMBEDDING_ROWS = 4096
"""Rows of the embedding table whose size sets that of image tokens; all of them take long and say the same."""


class PanoramaModel(nn.Module):
    """The modules of a stage; absent ones are None. Call it as `model(function, *arguments)`: `function(model, *arguments)`
    then runs inside the forward pass, where wrappers gather what they shard.
    """

    token_dirs: Tensor
    token_logsolid: Tensor

    def __init__(
        self,
        vision: tower.Tower,
        *,
        directions_of_tokens: tuple[Tensor, Tensor],
        projector: VicregProjector | None = None,
        pe: DirectionEncodings | None = None,
        resampler: Resampler | None = None,
        language: nn.Module | None = None,
        micro_batch: int = 0,
    ) -> None:
        """directions_of_tokens: (V, S, 3) unit directions and (V, S) log solid angles.

        micro_batch: views that go through the tower at once, 0 for all.
        """
        super().__init__()
        self.vision = vision
        self.projector, self.pe, self.resampler, self.language = projector, pe, resampler, language
        self.micro_batch = micro_batch
        for name, values in zip(("token_dirs", "token_logsolid"), directions_of_tokens, strict=True):
            self.register_buffer(name, values, persistent=False)

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(self, *arguments)

    def encode(self, views: Tensor) -> Tensor:
        """Features of views: (B, V, 3, T, T) in [0, 1] -> (B, V, S, D_v)."""
        flat = views.flatten(0, 1)
        size = self.micro_batch or len(flat)
        parts = [tower.view_tokens(self.vision, part) for part in flat.split(size)]
        return torch.cat(parts).unflatten(0, views.shape[:2])

    def image_tokens(self, features: Tensor, view_valid: Tensor | None = None) -> ImageTokens:
        """features: (B, V, S, D_v).  view_valid: (B, V), (B, V, S) or None.  Returns (B, T, D_llm) and their mask."""
        assert self.resampler is not None
        found: ImageTokens = self.resampler(
            features.to(self.resampler.norm.weight.dtype),
            self.token_dirs,
            view_valid,
            encodings=self.pe,
            token_logsolid=self.token_logsolid,
        )
        return found

    def inputs(self, image_tokens: Tensor, text: TextBatch, image_id: int) -> Tensor:
        """Embeddings (B, L, D_llm) of texts with image tokens in their places. image_id: of `<|image_pad|>`."""
        assert self.language is not None
        embeddings = self.language.get_input_embeddings()(text.ids)  # type: ignore[operator]
        return place_image_tokens(embeddings, text.ids, image_tokens, image_id)

    def hidden(self, image_tokens: Tensor, text: TextBatch, image_id: int) -> Tensor:
        """Last hidden states (B, L, D_llm) of texts with their image tokens."""
        assert self.language is not None
        out: Tensor = self.language.model(  # type: ignore[operator, union-attr]
            inputs_embeds=self.inputs(image_tokens, text, image_id),
            attention_mask=text.attention_mask,
            position_ids=text.position_ids,
            use_cache=False,
        ).last_hidden_state
        return out

    @property
    def lm_head(self) -> nn.Module:
        """Hidden states -> vocabulary."""
        assert self.language is not None
        head = self.language.lm_head
        assert isinstance(head, nn.Module)
        return head


def build_model(config: PanoramaConfig, stage: Stage) -> PanoramaModel:
    """The model of a stage, randomly initialised from config.seed; on the meta device where the caller sets one.

    config: the stage's own. Of a real tower and language model only the configs are read here.
    """
    with tower.fixed_random(tower.TINY_SEED):
        vision = tower.build_tower(vision_config(config))
    grid = tower.grid_of(vision.config)
    plan = config.plan
    where = directions(plan, grid, size=tile_size(config, vision.config), dtype=torch.float32)
    width = int(vision.config.hidden_size)
    parts: dict[str, Any] = {}
    needs_resampler = stage.name != "vision" or config.vicreg.tap == "resampler"
    with tower.fixed_random(config.seed):
        if stage.name == "vision":
            head = config.vicreg_projector
            projected = language_width(config) if needs_resampler else width
            parts["projector"] = VicregProjector(projected, head.width, head.norm)
        else:
            parts["language"] = build_language(config)
        if needs_resampler:
            out = language_width(config)
            pe = config.pe
            parts["pe"] = make_encodings(
                width,
                out,
                enabled=config.models.use_projection_positional_encoding,
                kind=pe.kind,
                after=pe.after,
                solid_angle=pe.solid_angle,
            )
            parts["resampler"] = make_resampler(
                token_layout(config, grid),
                token_rules(config),
                width,
                out,
                output_rms=1.0 if stage.name == "vision" else embedding_rms(parts["language"]),
                **config.models.resampler_sizes,
            )
        if stage.name == "finetune" and config.lora.use_lora:
            lm.add_adapters(parts["language"], config)
    return PanoramaModel(
        vision, directions_of_tokens=(where.dirs, where.log_solid), micro_batch=config.runtime.vision_micro_batch, **parts
    )


def vision_config(config: PanoramaConfig) -> SiglipVisionConfig | Siglip2VisionConfig:
    """The config of the tower that `models.vision_name` names."""
    if config.models.is_tiny_vision:
        return tower.tiny_tower_config()
    return tower.tower_config(*_read_config(external_folder(config, external_of(config, VISION))))


def tile_size(config: PanoramaConfig, vision: Any) -> int:
    """T: pixels along a side of a view, the tower's own unless the config says so; ConfigError for one it can't read."""
    own = int(getattr(vision, "image_size", 0)) or tower.grid_of(vision) * int(vision.patch_size)
    wanted = config.image_processing.tile_size or own
    if wanted != own:
        raise ConfigError(
            f"image_processing.tile_size is {wanted}, but the tower reads views of {own} pixels",
            remedy="leave tile_size out, or name a tower of that size",
        )
    return own


def build_language(config: PanoramaConfig) -> nn.Module:
    """The language model that `models.language_model_name` names, randomly initialised."""
    if config.models.is_tiny_language:
        return tiny_language(config.runtime.attention)
    plain, where = _read_config(external_folder(config, external_of(config, LANGUAGE)))
    return lm.build_language(lm.language_config(plain, where), config.runtime.attention)


def language_width(config: PanoramaConfig) -> int:
    """D_llm, without building the model."""
    if config.models.is_tiny_language:
        return 64
    plain, where = _read_config(external_folder(config, external_of(config, LANGUAGE)))
    return int(lm.language_config(plain, where).hidden_size)


def build_tokenizer(config: PanoramaConfig) -> Any:
    """The tokenizer of the language model."""
    if config.models.is_tiny_language:
        return tiny_tokenizer()
    return load_tokenizer(external_folder(config, external_of(config, LANGUAGE)))


def _read_config(folder: Path) -> tuple[dict[str, Any], str]:
    """A model's `config.json` and its path."""
    path = folder / "config.json"
    plain = json.loads(path.read_bytes())
    if not isinstance(plain, dict):
        raise ConfigError(f"{str(path)!r} holds no mapping", remedy="fetch the model again")
    return plain, str(path)


def embedding_rms(language: nn.Module) -> float:
    """Root mean square of the embedding table's first rows; 1.0 on the meta device."""
    weight: Tensor = language.get_input_embeddings().weight  # type: ignore[operator]
    if weight.is_meta:
        return 1.0
    return float(weight[:EMBEDDING_ROWS].detach().float().square().mean().sqrt())


def load_externals(config: PanoramaConfig, stage: Stage, model: nn.Module) -> None:
    """Copy the weights of tower and language model into a model that was just built.

    config, stage: the stage's own. The scale of a resampler that is still untouched follows the embeddings it now meets.
    """
    assert isinstance(model, PanoramaModel)
    _fill_vision(config, model.vision)
    if model.language is not None and not config.models.is_tiny_language:
        from transformers import Qwen3ForCausalLM

        folder = external_folder(config, external_of(config, LANGUAGE))
        frozen = load_frozen(Qwen3ForCausalLM.from_pretrained, folder)
        names = {name: lm.base_name(name) for name in model.language.state_dict() if ".lora_" not in name}
        _copy(frozen.state_dict(), model.language, names)
        if model.resampler is not None:
            with torch.no_grad():
                model.resampler.scale.fill_(embedding_rms(model.language))


def pretrained_tower(config: PanoramaConfig) -> nn.Module:
    """The tower as its source has it."""
    with tower.fixed_random(tower.TINY_SEED):
        made = tower.build_tower(vision_config(config))
    _fill_vision(config, made)
    return made


def _fill_vision(config: PanoramaConfig, vision: nn.Module) -> None:
    """Copy the tower's weights from its source; those of the tiny one are there from the start."""
    if config.models.is_tiny_vision:
        return
    frozen = load_frozen(
        type(vision).from_pretrained,
        external_folder(config, external_of(config, VISION)),
        unused=("text_model.*", "logit_scale", "logit_bias", "vision_model.head.*", "head.*"),
        config=vision_config(config),
    )
    _copy(frozen.state_dict(), vision, {name: name for name in vision.state_dict()})


def _copy(source: dict[str, Tensor], target: nn.Module, names: dict[str, str]) -> None:
    """Copy tensors into a module. names: of the target -> of the source; every one must be there, in its shape."""
    own = target.state_dict()
    with torch.no_grad():
        for name, origin in names.items():
            own[name].copy_(source[origin])
