"""The whole model of a stage: vision tower, direction encoding, resampler, language model with adapters.

    views (B, V, 3, T, T) -> vision -> features (B, V, S, D_v) -> pe + resampler -> image tokens (B, T, D_llm)
    -> in place of `<|image_pad|>` among the text's embeddings -> language -> hidden states (B, L, D_llm)

A stage builds only what it needs: `vision` has no resampler (unless its loss acts behind it) and no language model.
State-dict names: `vision.*`, `projector.*`, `pe.*`, `resampler.*`, `language.*`; adapters `*.lora_A.*`, `*.lora_B.*`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from stageline.config.bounds import read_json, read_whole
from stageline.encoders.copies import external_folder
from stageline.encoders.external import External
from stageline.encoders.frozen import load_frozen
from stageline.errors import CheckpointError
from stageline.families.panorama_vlm.config.resamplers import sizes
from stageline.families.panorama_vlm.data.made import made_texts
from stageline.families.panorama_vlm.data.text import TextBatch, place_image_tokens
from stageline.families.panorama_vlm.data.tokenizer import load_tokenizer, train_tokenizer
from stageline.families.panorama_vlm.externals import externals
from stageline.families.panorama_vlm.facts import has_resampler
from stageline.families.panorama_vlm.geometry.tokens import directions
from stageline.families.panorama_vlm.model import language as lm
from stageline.families.panorama_vlm.model import tower
from stageline.families.panorama_vlm.model.encoding import DirectionEncodings, make_encodings
from stageline.families.panorama_vlm.model.resampler import Connection, ImageTokens, Resampler
from stageline.families.panorama_vlm.model.resamplers import make_resampler
from stageline.families.panorama_vlm.vicreg import VicregProjector
from stageline.layers.fixed_random import fixed_random

if TYPE_CHECKING:
    from stageline.families.panorama_vlm.config import PanoramaVlmConfig
    from stageline.stage import Stage

T = TypeVar("T")
EMBEDDING_ROWS = 4096
"""Rows of the embedding table whose size sets that of image tokens; all of them take long and say the same."""
UNUSED_OF_TOWER = ("text_model.*", "logit_scale", "logit_bias", "vision_model.head.*", "head.*")
"""Tensors of a published model that its tower does not need."""


class PanoramaModel(nn.Module):
    """The modules of a stage; absent ones are None.

    Call it as `model(function, *arguments)`: `function(model, *arguments)` then runs inside the forward pass, where
    wrappers gather what they shard.
    """

    token_dirs: Tensor
    token_logsolid: Tensor

    def __init__(
        self,
        vision: tower.Tower,
        token_directions: tuple[Tensor, Tensor],
        *,
        projector: VicregProjector | None = None,
        pe: DirectionEncodings | None = None,
        resampler: Resampler | None = None,
        language: nn.Module | None = None,
        micro_batch: int = 64,
        global_grid: tuple[int, int] | None = None,
    ) -> None:
        """token_directions: (V, S, 3) unit directions and (V, S) log solid angles.

        micro_batch: views that go through the tower at once.  global_grid: rows and columns of the first view, where
        it has a grid of its own (NaFlex).
        """
        super().__init__()
        self.vision = vision
        self.projector, self.pe, self.resampler, self.language = projector, pe, resampler, language
        self.micro_batch, self.global_grid = micro_batch, global_grid
        for name, values in zip(("token_dirs", "token_logsolid"), token_directions, strict=True):
            self.register_buffer(name, values, persistent=False)

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(self, *arguments)

    def encode(self, views: Tensor) -> Tensor:
        """Features of views: (B, V, 3, T, T) in [0, 1] -> (B, V, S, D_v)."""
        return self.encode_with(self.vision, views)

    def encode_with(self, vision: nn.Module, views: Tensor) -> Tensor:
        """The same by another tower of the same sizes. views: all of the plan, or its tiles alone."""
        flat, grids = views.flatten(0, 1), self._grids(views)
        parts = [
            tower.view_tokens(vision, flat[start : start + self.micro_batch], grids[start : start + self.micro_batch])
            if grids is not None
            else tower.view_tokens(vision, flat[start : start + self.micro_batch])
            for start in range(0, len(flat), self.micro_batch)
        ]
        return torch.cat(parts).reshape(*views.shape[:2], *parts[0].shape[1:])

    def _grids(self, views: Tensor) -> Tensor | None:
        """Rows and columns of patches of each view (B * V, 2) where the whole panorama has others than the tiles."""
        if self.global_grid is None or views.shape[1] != len(self.token_dirs):
            return None
        side = views.shape[-1] // int(self.vision.config.patch_size)  # type: ignore[arg-type]
        one = torch.tensor([self.global_grid, *[(side, side)] * (views.shape[1] - 1)])
        return one.repeat(len(views), 1)

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
        out: Tensor = self.language.model(  # type: ignore[operator]
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


def build_model(config: PanoramaVlmConfig, stage: Stage) -> PanoramaModel:
    """The model of a stage, randomly initialised from config.seed; on the meta device where the caller sets one.

    config: the stage's own. Tower and language model are built from their sizes; `load_externals` brings the weights.
    """
    model, plan = config.model, config.image_processing.plan
    vision = build_tower(config)
    with torch.device("cpu"):  # numbers of the plan, whatever the device of the weights
        where = directions(
            plan, config.grid, size=config.tile_size, global_grid=config.global_grid, dtype=torch.float32
        )
    width, out = model.vision.hidden_size, model.language.hidden_size
    connected = has_resampler(config, stage)
    parts: dict[str, Any] = {}
    if stage.name != "vision":
        parts["language"] = build_language(config)
    with fixed_random(config.seed):
        if stage.name == "vision":
            projected = out if connected else width
            parts["projector"] = VicregProjector(projected, config.projector_width, config.vicreg.projector_norm)
        if connected:
            pe = model.pe
            parts["pe"] = make_encodings(
                width, out, enabled=model.has_encoding, kind=pe.kind, after=pe.after, solid_angle=pe.solid_angle
            )
            rms = embedding_rms(parts["language"]) if "language" in parts else 1.0
            connection = Connection(config.token_layout, config.token_rules, width, out, rms)
            parts["resampler"] = make_resampler(connection, **sizes(model.resampler))
        if stage.name == "finetune" and config.lora.use_lora:
            lm.add_adapters(parts["language"], config)
    if model.gradient_checkpointing and "language" in parts:
        parts["language"].gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return PanoramaModel(
        vision,
        (where.dirs, where.log_solid),
        micro_batch=config.runtime.vision_micro_batch,
        global_grid=config.global_grid,
        **parts,
    )


def build_tower(config: PanoramaVlmConfig) -> tower.Tower:
    """The tower of a config; its weights are those of the tiny profile, whatever the config says."""
    with fixed_random(tower.TINY_SEED):
        return tower.build_tower(tower.tower_config(config.model.vision, config.model.vision_class))


def build_language(config: PanoramaVlmConfig) -> nn.Module:
    """The language model of a config without adapters; its weights as those of the tower."""
    with fixed_random(tower.TINY_SEED):
        return lm.build_language(lm.language_config(config.model.language), config.runtime.attention)


@lru_cache(maxsize=1)
def tiny_tokenizer() -> Any:
    """The tokenizer of the tiny profile, a function of the texts that made data consist of."""
    return train_tokenizer(made_texts())


def build_tokenizer(config: PanoramaVlmConfig, stage: Stage) -> Any:
    """The tokenizer of the language model. config, stage: the stage's own."""
    if config.model.is_tiny:
        return tiny_tokenizer()
    return load_tokenizer(external_folder(config, _external(config, stage, "language")))


def _external(config: PanoramaVlmConfig, stage: Stage, name: str) -> External:
    return next(external for external in externals(config, stage) if external.name == name)


def embedding_rms(language: nn.Module) -> float:
    """Root mean square of the embedding table's first rows; 1.0 on the meta device."""
    weight: Tensor = language.get_input_embeddings().weight  # type: ignore[operator]
    if weight.is_meta:
        return 1.0
    return float(weight[:EMBEDDING_ROWS].detach().float().square().mean().sqrt())


def load_externals(config: PanoramaVlmConfig, stage: Stage, model: nn.Module) -> None:
    """Copy the weights of tower and language model into a model that was just built.

    config, stage: the stage's own. The resampler's scale follows the embeddings that its tokens now stand among.
    """
    assert isinstance(model, PanoramaModel)
    load_tower(config, stage, model.vision)
    if model.language is None or config.model.is_tiny:
        return
    from transformers import Qwen3ForCausalLM

    folder = external_folder(config, _external(config, stage, "language"))
    lm.check_language(_read_config(folder), config.model.language, str(folder / "config.json"))
    frozen = load_frozen(Qwen3ForCausalLM.from_pretrained, folder)
    names = {name: lm.base_name(name) for name in model.language.state_dict() if ".lora_" not in name}
    _copy(frozen.state_dict(), model.language, names)
    if model.resampler is not None:
        with torch.no_grad():
            model.resampler.scale.fill_(embedding_rms(model.language))


def load_tower(config: PanoramaVlmConfig, stage: Stage, vision: nn.Module) -> None:
    """Copy the tower's weights from its source; those of the tiny profile are there from the start."""
    if config.model.is_tiny:
        return
    folder = external_folder(config, _external(config, stage, "vision"))
    kind = config.model.vision_class
    tower.check_tower(_read_config(folder), config.model.vision, kind, str(folder / "config.json"))
    wanted = tower.tower_config(config.model.vision, kind)
    frozen = load_frozen(type(vision).from_pretrained, folder, unused=UNUSED_OF_TOWER, config=wanted)  # type: ignore[attr-defined]
    _copy(frozen.state_dict(), vision, {name: name for name in vision.state_dict()})


def _read_config(folder: Path) -> dict[str, Any]:
    """A model's `config.json`."""
    path = folder / "config.json"
    try:
        plain = read_json(read_whole(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}", remedy="fetch the model again") from error
    if not isinstance(plain, dict):
        raise CheckpointError(f"{str(path)!r} holds no mapping", remedy="fetch the model again")
    return plain


def _copy(source: Mapping[str, Tensor], target: nn.Module, names: Mapping[str, str]) -> None:
    """Copy tensors into a module. names: of the target -> of the source; every one must be there, in its shape."""
    own = target.state_dict()
    with torch.no_grad():
        for name, origin in names.items():
            own[name].copy_(source[origin])
