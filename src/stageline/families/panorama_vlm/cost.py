"""What one panorama costs: operations of tower, resampler and language model, from their sizes alone; no torch.

Counted are matrix products, two operations per multiply-add, and the chunked scan (arXiv:2405.21060, section 6); norms,
activations and the sampling of tiles are left out. The language model attends causally, which is half of the square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stageline.contract import StepWork
from stageline.families.panorama_vlm.config.resamplers import Bimamba, Mlp, Perceiver, Qformer
from stageline.families.panorama_vlm.image_tokens import TokenTable, token_table

if TYPE_CHECKING:
    from stageline.families.panorama_vlm.config import PanoramaVlmConfig
    from stageline.families.panorama_vlm.config.architectures import LanguageShape, VisionShape
    from stageline.families.panorama_vlm.config.resamplers import Resampler
    from stageline.stage import Stage

TEXT_TOKENS = 80
"""Tokens of prompt and response beside the image tokens."""
RESPONSE_TOKENS = 32
"""Those of them that are predicted; only these pass the output layer."""
CONV_TAPS = 4
UNITS = ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))


@dataclass(frozen=True)
class Cost:
    """Operations of a forward pass of one panorama with one text.

    tower, resampler, language: of the parts.  image_tokens: T.
    """

    tower: float
    resampler: float
    language: float
    image_tokens: int

    def training(self, *, cached: bool = False) -> float:
        """Operations of one training sample while tower and language model are frozen.

        cached: the tower's features are read, not computed. The language model needs gradients of activations only,
        the resampler those of its weights too; adapters are left out.
        """
        return (0.0 if cached else self.tower) + 3 * self.resampler + 2 * self.language


def cost_of(config: PanoramaVlmConfig) -> Cost:
    """The cost of one panorama under a config's views, stitching and models."""
    vision, language = config.model.vision, config.model.language
    layout = config.token_layout
    table = token_table(layout, config.token_rules)
    tokens = [config.grid**2 if view.kind != "global" else view.rows * view.cols for view in layout.views]
    return Cost(
        tower=sum(_view(vision, count) for count in tokens),
        resampler=_resampler(config.model.resampler, table, vision.hidden_size, language.hidden_size),
        language=_text(language, table.num_tokens + TEXT_TOKENS),
        image_tokens=table.num_tokens,
    )


def step_work(config: PanoramaVlmConfig, stage: Stage) -> StepWork:
    """Operations of one optimizer step, as if each question were about a panorama of its own.

    config: the stage's own. Features of a frozen tower count as kept where they are, so that the first pass over the
    pictures takes longer.
    """
    trainer, cost = config.trainer, cost_of(config)
    if stage.name == "vision":
        sample = _vision_training(config, cost)
    else:
        frozen = not config.model.trained_blocks
        sample = cost.training(cached=frozen and config.runtime.cache_vision_features)
        sample += 0.0 if frozen else 2 * cost.tower * _trained_share(config)
    return StepWork(trainer.accumulate_grad_batches, sample * trainer.batch_size)


def _trained_share(config: PanoramaVlmConfig) -> float:
    return len(config.model.trained_blocks) / config.model.vision.num_layers


def _vision_training(config: PanoramaVlmConfig, cost: Cost) -> float:
    """One panorama of stage `vision`: the tower and what it is compared with, and gradients of its last blocks.

    Projector and statistics are left out.
    """
    renders = 1 + sum(kind in ("jitter", "photometric") for kind in config.vicreg_pairs)
    anchor = 1 if config.vicreg.anchor_weight > 0 else 0
    return cost.tower * (renders * (1 + 2 * _trained_share(config)) + anchor)


def told(cost: Cost) -> str:
    """A cost as a line for people."""
    parts = {"tower": cost.tower, "resampler": cost.resampler, "language model": cost.language}
    forward = ", ".join(f"{name} {_amount(value)}" for name, value in parts.items())
    return (
        f"cost of a panorama with {TEXT_TOKENS} tokens of text: {forward}; a training sample "
        f"{_amount(cost.training())}, with cached features {_amount(cost.training(cached=True))}"
    )


def _amount(operations: float) -> str:
    scale, unit = next((entry for entry in UNITS if operations >= entry[0]), UNITS[-1])
    return f"{operations / scale:.3g} {unit}"


def _linear(tokens: float, width_in: int, width_out: int) -> float:
    return 2.0 * tokens * width_in * width_out


def _attention(queries: float, keys: float, width: int) -> float:
    """Scores and their mix of values. width: heads times head width."""
    return 4.0 * queries * keys * width


def _view(shape: VisionShape, tokens: int) -> float:
    """One view through the tower: patches, then blocks of attention inside the view and an MLP."""
    width = shape.hidden_size
    block = 4 * _linear(tokens, width, width) + 2 * _linear(tokens, width, shape.intermediate_size)
    patches = _linear(tokens, 3 * shape.patch_size**2, width)
    return patches + shape.num_layers * (block + _attention(tokens, tokens, width))


def _text(shape: LanguageShape, tokens: int) -> float:
    """The language model over a sequence; its output layer on the response."""
    width, inner, key_width = shape.hidden_size, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    layer = _linear(tokens, width, 2 * inner + 2 * key_width) + 3 * _linear(tokens, width, shape.intermediate_size)
    return shape.num_layers * (layer + _attention(tokens, tokens, inner) / 2) + _linear(
        RESPONSE_TOKENS, width, shape.vocab_size
    )


def _resampler(settings: Resampler, table: TokenTable, wide: int, out: int) -> float:
    """wide: D_v.  out: D_llm."""
    kept, made = table.stitched.num_tokens, table.num_tokens
    if isinstance(settings, Mlp):
        return _linear(made, settings.pooling**2 * wide, settings.hidden) + _linear(made, settings.hidden, out)
    last = _linear(made, settings.width, out)
    if isinstance(settings, Bimamba):
        return (
            _linear(kept, wide, settings.width)
            + kept * settings.depth * _scan(settings)
            + last
            + _read(settings, table)
        )
    if isinstance(settings, Qformer):
        return last + sum(_qformer(settings, len(group), made / len(table.groups), wide) for group in table.groups)
    return (
        last
        + _linear(kept, wide, settings.width)
        + sum(_perceiver(settings, len(group), made / len(table.groups)) for group in table.groups)
    )


def _scan(settings: Bimamba) -> float:
    """A bidirectional block, per token: projections, both convolutions, both scans."""
    width, state, head = settings.width, settings.state, settings.head_dim
    inner, chunk = 2 * width, settings.chunk_size
    heads = inner // head
    projections = _linear(1, width, 2 * inner + 2 * (2 * state + heads))
    projections += _linear(1, 2 * inner if settings.merge == "concat" else inner, width)
    convolutions = 2.0 * CONV_TAPS * 2 * (inner + 2 * state)
    scans = 2 * (2.0 * chunk * state + heads * (2.0 * chunk * head + 4.0 * head * state))
    return projections + convolutions + scans


def _read(settings: Bimamba, table: TokenTable) -> float:
    """Attention of learned queries over what was scanned; nothing for other pools."""
    width = settings.width
    number = table.num_tokens / len(table.groups) if table.groups else 0.0
    return sum(
        2 * _linear(number, width, width)
        + 2 * _linear(len(group), width, width)
        + _attention(number, len(group), width)
        for group in table.groups
    )


def _qformer(settings: Qformer, keys: int, number: float, wide: int) -> float:
    """number: queries of the group."""
    width = settings.width
    layer = 4 * _linear(number, width, width) + _attention(number, number, width)
    layer += 2 * _linear(number, width, settings.feed_width)
    reading = 2 * _linear(number, width, width) + 2 * _linear(keys, wide, width) + _attention(number, keys, width)
    return settings.depth * layer + len(range(0, settings.depth, settings.cross_every)) * reading


def _perceiver(settings: Perceiver, keys: int, number: float) -> float:
    """number: latents of the group."""
    width, inner, both = settings.width, settings.heads * settings.head_dim, keys + number
    reading = 2 * _linear(number, width, inner) + 2 * _linear(both, width, inner) + _attention(number, both, inner)
    return settings.depth * (reading + 2 * _linear(number, width, 4 * width))
