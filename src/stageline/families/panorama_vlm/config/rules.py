"""What the keys of the config say about each other: every contradiction found, all at once. No torch.

A rule stands here when it needs more than one key; the range of one key stands with the key in its section. What a
stage needs beyond that stands in `check`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from stageline.config import SectionError, flatten, nearest
from stageline.errors import ConfigError, Faults
from stageline.families.panorama_vlm.config.architectures import short_name
from stageline.families.panorama_vlm.config.resamplers import TYPES, Bimamba, Qformer, foreign_keys
from stageline.families.panorama_vlm.geometry.tiles import TilePlan, plan
from stageline.families.panorama_vlm.geometry.views import View
from stageline.families.panorama_vlm.image_tokens import num_tokens

if TYPE_CHECKING:
    from stageline.families.panorama_vlm.config import PanoramaVlmConfig
    from stageline.families.panorama_vlm.config.model import ModelConfig
    from stageline.families.panorama_vlm.config.sections import (
        DataConfig,
        ImageProcessingConfig,
        LoraConfig,
        VicregConfig,
    )
    from stageline.stage import Stage

PLAN_KEYS = (
    *("fov_deg", "overlap_ratio", "pitch_rows", "pitch_span_deg", "yaw_count_by_pitch", "caps", "global_mode"),
    "pixel_centres",
)
"""Keys of `image_processing` that the plan is made of."""
CAPTION_STAGES = ("resampler", "finetune")


def raise_faults(faults: Sequence[str]) -> None:
    """One error that lists all faults of a section."""
    if faults:
        raise SectionError(list(faults))


_make_plan = cache(plan)


def tile_plan(section: ImageProcessingConfig) -> TilePlan:
    """The plan that a section asks for; SectionError with every fault of the request."""
    try:
        return _make_plan(**{key: getattr(section, key) for key in PLAN_KEYS})
    except ConfigError as error:
        raise SectionError(_sentences(error)) from error


@cache
def shares_tokens(fov_deg: float, views: tuple[View, ...], neighbours: tuple[tuple[int, int], ...], grid: int) -> bool:
    """Whether the centre of any token of a tile lies within the token centres of a neighbour. grid: G of both."""
    steps = ((np.arange(grid) + 0.5) / grid * 2 - 1) * math.tan(math.radians(fov_deg) / 2)
    x, y = np.meshgrid(steps, -steps)
    rays = np.stack((x, y, np.ones_like(x)), -1)
    reach = abs(steps[0]) * (1 + 1e-12)
    for a, b in neighbours:
        seen = rays @ (views[b].rotation.T @ views[a].rotation).T
        ahead = seen[seen[..., 2] > 0]
        if (np.abs(ahead[:, :2]) <= reach * ahead[:, 2:]).all(-1).any():
            return True
    return False


def _sentences(error: ConfigError) -> list[str]:
    """The faults that an error lists, without its head."""
    lines = [line.removeprefix("  - ") for line in error.message.splitlines()]
    return lines[1:] if len(lines) > 1 else lines


def model_faults(model: ModelConfig) -> list[str]:
    """The contradictions inside `model`."""
    faults = [*_sizes(model)]
    foreign = foreign_keys(model.resampler_type, model.resampler_config)
    for key in foreign:
        users = [kind for kind, settings in TYPES.items() if key in settings.model_fields]
        faults.append(
            f"resampler_config.{key} has no effect under resampler_type {model.resampler_type!r}; it is for "
            f"{', '.join(users)}"
        )
    if model.known_vision is None or foreign:
        return faults
    resampler = model.resampler
    if isinstance(resampler, Bimamba) and 2 * resampler.width % resampler.head_dim:
        faults.append(
            f"resampler_config.head_dim {resampler.head_dim} does not divide twice the width {resampler.width}"
        )
    if isinstance(resampler, Qformer) and resampler.width % resampler.heads:
        faults.append(f"resampler_config.heads {resampler.heads} does not divide the width {resampler.width}")
    per_view, grid = model.resampler_config.tokens_per_view, model.vision.grid
    cell = getattr(resampler, "pooling", 1)
    pools = isinstance(resampler, TYPES["mlp"]) or (isinstance(resampler, Bimamba) and resampler.pool == "grid")
    if (
        per_view is not None
        and not model.is_tiny
        and pools
        and (cell not in (1, 2, 4) or grid * grid != per_view * cell**2)
    ):
        possible = [str((grid // r) ** 2) for r in (1, 2, 4) if grid % r == 0]
        faults.append(
            f"resampler_config.tokens_per_view {per_view} is no pooling of {grid} x {grid} tokens; possible: "
            f"{', '.join(possible)}"
        )
    stated_pooling = model.resampler_config.pooling
    if per_view is not None and stated_pooling is not None and pools and stated_pooling != cell:
        faults.append("resampler_config.tokens_per_view and pooling contradict each other; give one of them")
    if model.pe.after and not pools and not (isinstance(resampler, Bimamba) and resampler.pool != "query"):
        faults.append(f"pe.after: image tokens of {model.resampler_type} have no direction; set pe.after: false")
    return faults


def _sizes(model: ModelConfig) -> Iterator[str]:
    """What is wrong with tower and language model."""
    for word, name, known in (
        ("vision", model.vision_name, model.known_vision),
        ("language", model.language_model_name, model.known_language),
    ):
        if known is None:
            key = "vision_name" if word == "vision" else "language_model_name"
            yield (
                f"{key} {name!r} is no published name whose sizes are known, and no folder with a config.json; state "
                f"{word}_config with the numbers of its config.json"
            )
    vision, language = model.known_vision, model.known_language
    if vision is not None:
        if vision.hidden_size % vision.num_heads:
            yield f"vision_config: num_heads {vision.num_heads} do not divide hidden_size {vision.hidden_size}"
        if model.vision_trainable_blocks > vision.num_layers and not model.is_tiny:
            yield (
                f"vision_trainable_blocks {model.vision_trainable_blocks}: the tower has {vision.num_layers} blocks; "
                "-1 trains all"
            )
    if language is not None and language.num_heads % language.num_kv_heads:
        yield f"language_config: num_kv_heads {language.num_kv_heads} do not divide num_heads {language.num_heads}"
    named = "naflex" in short_name(model.vision_name)
    if (
        named != (model.vision_class == "siglip2_naflex")
        and (named or not model.is_tiny)
        and model.vision_config is None
    ):
        wanted = "siglip2_naflex" if named else "siglip"
        yield f"vision_class {model.vision_class!r}: {model.vision_name!r} is of class {wanted!r}"


def vicreg_faults(vicreg: VicregConfig) -> list[str]:
    """The contradictions inside `vicreg`."""
    faults = []
    if not vicreg.pairs:
        faults.append("pairs is empty; say auto, or some of adjacent, global, jitter, photometric")
    if len(set(vicreg.pairs)) != len(vicreg.pairs):
        faults.append(f"pairs {list(vicreg.pairs)} names a kind twice")
    if "auto" in vicreg.pairs and len(vicreg.pairs) > 1:
        faults.append(f"pairs {list(vicreg.pairs)}: auto stands alone")
    if "photometric" in vicreg.pairs and not vicreg.color_jitter:
        faults.append("pairs photometric needs color_jitter > 0: the two looks would be the same")
    if vicreg.statistics == "per_pair" and vicreg.statistics_on == "raw":
        faults.append("statistics_on raw is over all tokens, which have no pairs; say statistics pooled, or paired")
    return faults


def lora_faults(lora: LoraConfig, known: Sequence[str]) -> list[str]:
    """The contradictions inside `lora`. known: the linear layers there are."""
    faults = []
    for target in lora.target_modules:
        if target not in known:
            near = nearest(target, known)
            hint = f"; did you mean {near!r}?" if near else f"; known: {', '.join(known)}"
            faults.append(f"target_modules: the language model has no layer {target!r}{hint}")
    if len(set(lora.target_modules)) != len(lora.target_modules):
        faults.append("target_modules names a layer twice")
    if lora.use_lora and not lora.target_modules:
        faults.append("use_lora is true and target_modules is empty; say use_lora: false to train without adapters")
    return faults


def data_faults(data: DataConfig) -> list[str]:
    """The contradictions inside `data`."""
    files = {key: getattr(data, key) for key in ("csv_train", "csv_val", "csv_test")}
    faults = []
    if data.name == "csv":
        faults += [f"name 'csv' needs {key}" for key in ("csv_train", "csv_val") if not files[key]]
    else:
        faults += [f"{key} is read for name 'csv' only, not {data.name!r}" for key, value in files.items() if value]
    if data.query_template.count("{query}") != 1:
        faults.append(f"query_template {data.query_template!r} has not exactly one {{query}}")
    if (data.erp_hfov_deg is None) != (data.erp_vfov_deg is None):
        faults.append("erp_hfov_deg and erp_vfov_deg go together; give both or none")
    return faults


def config_faults(config: PanoramaVlmConfig) -> list[str]:
    """The contradictions between sections."""
    image, model = config.image_processing, config.model
    faults = [] if "data" in config.model_fields_set else [f"data: {fault}" for fault in data_faults(config.data)]
    if image.tile_size is not None and not model.is_tiny:
        faults += _tile_size(image.tile_size, model)
    if image.global_mode == "naflex" and model.vision_class != "siglip2_naflex":
        faults.append("image_processing.global_mode 'naflex' needs model.vision_class 'siglip2_naflex'")
    if image.stitching_mode == "resample" and image.canvas is None:
        faults.append("image_processing.stitching_mode 'resample' needs image_processing.canvas: [rows, columns]")
    if not faults:
        try:
            num_tokens(config.token_layout, config.token_rules)
        except ConfigError as error:
            faults += [f"model.resampler_config: {sentence}" for sentence in _sentences(error)]
    faults += _plan_changes(config)
    if config.data.name == "csv" and config.evaluate.split == "test" and not config.data.csv_test:
        faults.append("evaluate.split 'test' needs data.csv_test")
    return faults


def _tile_size(size: int, model: ModelConfig) -> Iterator[str]:
    vision = model.vision
    if size % vision.patch_size:
        yield f"image_processing.tile_size {size} is no multiple of the tower's patch size {vision.patch_size}"
    elif model.vision_class == "siglip" and size != vision.image_size:
        yield (
            f"image_processing.tile_size {size}: the tower takes {vision.image_size} pixels; leave it out, or use a "
            "tower of that size"
        )
    elif size > vision.image_size:
        yield f"image_processing.tile_size {size}: the tower has positions for {vision.image_size} pixels at most"


def _plan_changes(config: PanoramaVlmConfig) -> Iterator[str]:
    """Stages whose own views would be others than the run's."""
    own = config.image_processing
    for name, overrides in config.stage_overrides.items():
        flat = flatten(overrides)
        changed = {
            key.removeprefix("image_processing."): value
            for key, value in flat.items()
            if key.startswith("image_processing.")
        }
        if not set(changed) & set(PLAN_KEYS):
            continue
        asked = {key: changed.get(key, getattr(own, key)) for key in PLAN_KEYS}
        try:
            found = _make_plan(**asked)
        except ConfigError as error:
            yield from (f"stage_overrides.{name}.image_processing: {sentence}" for sentence in _sentences(error))
            continue
        if found.plan_id != own.plan.plan_id:
            yield (
                f"stage_overrides.{name}.image_processing: plan {found.name} of {found.num_views} views, but the run "
                f"has {own.plan.name} of {own.plan.num_views}; one run has one plan: start another run, and name the "
                "checkpoint it starts from in `parents`"
            )


def check(config: PanoramaVlmConfig, stage: Stage) -> None:
    """Everything about a stage's config that can be refused before data or model are touched. Raises ConfigError."""
    faults = Faults(ConfigError, f"config of stage {stage.name}")
    model = config.model
    if stage.name == "vision":
        faults.extend(_vision(config))
    else:
        if stage.name == "resampler" and model.vision_trainable_blocks:
            faults.add(
                f"model.vision_trainable_blocks {model.vision_trainable_blocks}: the tower is frozen in stage "
                "'resampler'; say it for one stage, stage_overrides.vision.model.vision_trainable_blocks"
            )
        if stage.name == "finetune" and not (
            config.lora.use_lora or model.train_resampler or model.vision_trainable_blocks
        ):
            faults.add("lora.use_lora and model.train_resampler are false: nothing would train")
    faults.raise_if_any()


def _vision(config: PanoramaVlmConfig) -> Iterator[str]:
    vicreg, model, plan_, image = config.vicreg, config.model, config.image_processing.plan, config.image_processing
    if "adjacent" in vicreg.pairs and not config.has_shared_tokens:
        yield (
            f"vicreg.pairs=adjacent but plan {plan_.name} has no shared tokens; use pairs: [global, jitter] or reuse a "
            'vision checkpoint (--resume, parents.resampler.default) and drop "vision" from training.stages'
        )
    if "global" in config.vicreg_pairs and image.global_mode not in ("stretch", "letterbox"):
        yield (
            "vicreg.pairs global needs a global view with the tiles' own grid (stretch, letterbox); "
            f"image_processing.global_mode is {image.global_mode!r}"
        )
    if vicreg.tap == "vision" and not model.vision_trainable_blocks:
        yield (
            "vicreg.tap=vision and model.vision_trainable_blocks=0: only the head that is thrown away would learn; "
            "train some blocks, or leave this stage out"
        )
    keeps = model.resampler_type == "mlp" or (model.resampler_type == "bimamba")
    settings: Mapping[str, Any] = model.resampler.model_dump()
    whole = settings.get("pool") == "none" or (model.resampler_type == "mlp" and settings.get("pooling") == 1)
    if vicreg.tap == "resampler" and not (keeps and whole):
        yield (
            f"vicreg.tap=resampler needs one image token per vision token: bimamba with pool none, or mlp with pooling "
            f"1, not {model.resampler_type} as configured"
        )
