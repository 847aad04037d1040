"""Names of runs and of their variants; no torch.

A name is `{tower}_{language model}_{resampler}_{image processing}[_PE]`. The parts are short and several settings share
them, so a suffix `__token-token` says what differs from the reference variant: 90 degree tiles with overlap 0.5 in one
ring, Qwen3-0.6B, 256 pixels, stitching concat, the type's usual token budget.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stageline.config import fingerprint, identity
from stageline.errors import ConfigError
from stageline.families.panorama_vlm.config.architectures import known_vision, short_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stageline.families.panorama_vlm.config import PanoramaVlmConfig

LONGEST = 80
"""Characters of a run's name."""
DIGITS = 8
"""Hexadecimal digits of the identity that stand in the place of a suffix that is too long."""
REFERENCE_FOV = 90.0
REFERENCE_OVERLAP = 50
REFERENCE_LANGUAGE = "0.6b"
REFERENCE_PIXELS = 256


def vision_word(name: str) -> str:
    """`siglip2-so400m` of `google/siglip2-so400m-patch16-256`; of other names the first part."""
    parts = short_name(name).split("-")
    return _plain("-".join(parts[:2]) if parts[0].startswith("siglip") else parts[0])


def language_word(name: str) -> str:
    """`Qwen3` of `Qwen/Qwen3-0.6B`: leading letters and digits of the first part."""
    match = re.match(r"[A-Za-z]+\d*", short_name(name).split("-")[0])
    return match[0] if match else _plain(short_name(name).split("-")[0])


def image_word(config: PanoramaVlmConfig) -> str:
    """`anyres-e2p`."""
    return _plain(config.image_processing.crop_strategy.replace("_", "-"))


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "", text)


def variant(config: PanoramaVlmConfig) -> str:
    """What tells the directories of one stage apart: `anyres-e2p_bimamba`."""
    return f"{image_word(config)}_{config.model.resampler_type}"


def base_name(config: PanoramaVlmConfig) -> str:
    """The name without a suffix."""
    if config.experiment.name is not None:
        return config.experiment.name
    model = config.model
    words = [vision_word(model.vision_name), language_word(model.language_model_name), model.resampler_type]
    return "_".join([*words, image_word(config), *(["PE"] if model.has_encoding else [])])


def suffix(config: PanoramaVlmConfig) -> str:
    """What differs from the reference variant, `ov000-dedupe`; "" for the reference itself."""
    if config.experiment.suffix is not None:
        return config.experiment.suffix
    return "-".join(_tokens(config))


def _tokens(config: PanoramaVlmConfig) -> Iterator[str]:
    image, model = config.image_processing, config.model
    plan = image.plan
    overlap = round(100 * plan.o_eff)
    if overlap != REFERENCE_OVERLAP:
        yield f"ov{overlap:03d}"
    if plan.fov_deg != REFERENCE_FOV:
        yield f"fov{_number(plan.fov_deg, 3)}"
    if plan.num_rings != 1:
        yield f"rows{plan.num_rings}"
    if plan.has_caps:
        yield "caps"
    size = re.search(r"-(\d+(?:\.\d+)?[bm])(?:-|$)", short_name(model.language_model_name), re.IGNORECASE)
    if size and size[1].lower() != REFERENCE_LANGUAGE:
        yield f"llm{size[1].lower().replace('.', 'p')}"
    pixels = _pixels(config)
    if pixels != REFERENCE_PIXELS:
        yield f"px{pixels}"
    if image.stitching_mode != "concat":
        yield image.stitching_mode
    budget = _budget(config)
    if budget:
        yield f"tok{budget}"


def _number(value: float, digits: int) -> str:
    whole, _, rest = f"{value:g}".partition(".")
    return whole.zfill(digits) + (f"p{rest}" if rest else "")


def _pixels(config: PanoramaVlmConfig) -> int:
    """Edge of a view: of the models that are named, whatever profile stands in for them."""
    named = known_vision(config.model.vision_name) or config.model.vision_config
    if config.image_processing.tile_size is not None:
        return config.image_processing.tile_size
    return named.image_size if named else REFERENCE_PIXELS


def _budget(config: PanoramaVlmConfig) -> int | None:
    """Image tokens of a view, or of the panorama, where the config asks for an unusual number."""
    stated = config.model.resampler_config
    if stated.tokens_per_view is not None:
        usual = {"qformer": 32}.get(config.model.resampler_type, 64)
        return stated.tokens_per_view if stated.tokens_per_view != usual else None
    if stated.queries is not None:
        usual = {"panorama": 128}.get(str(stated.scope), {"qformer": 32}.get(config.model.resampler_type, 64))
        return stated.queries if stated.queries != usual else None
    if stated.pooling not in (None, 2) or stated.pool not in (None, "grid"):
        return config.image_tokens
    return None


def whole_name(config: PanoramaVlmConfig) -> str:
    """Base and suffix, however long."""
    tokens = "" if config.experiment.exact_name and config.experiment.name is not None else suffix(config)
    return f"{base_name(config)}__{tokens}" if tokens else base_name(config)


def run_name(config: PanoramaVlmConfig) -> str:
    """The name of a run whose config gives none.

    Beyond 80 characters the base stays and the suffix is replaced by the first digits of the identity fingerprint.
    Raises ConfigError for a base that leaves no room for them.
    """
    whole = whole_name(config)
    if len(whole) <= LONGEST:
        return whole
    base = base_name(config)
    if len(base) + 2 + DIGITS > LONGEST:
        raise ConfigError(
            f"the run's name {base!r} has {len(base)} characters; with what tells its variants apart it would have "
            f"more than {LONGEST}",
            remedy="say run: <name>, or a shorter experiment.name",
        )
    return f"{base}__{fingerprint(identity(config))[:DIGITS]}"
