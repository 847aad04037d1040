"""What the prepared data of a config depend on: the part of it that counts, and the files that are read; no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stageline.families.film_flow.config import FilmFlowConfig


def data_key(config: FilmFlowConfig) -> dict[str, Any]:
    """The part of the config that prepared data depend on: what is made or read, and what features are made with."""
    model, vlm, gate = config.model, config.model.vlm_film_config, config.model.junction_gating_config
    made = config.data.name in ("prompted_trees", "trees")
    key: dict[str, Any] = {
        "data": config.data.model_dump(mode="json", exclude={"flips", "num_samples_per_image", "train_bs"}),
        "seed": config.seed if made else None,
        "image_channels": model.image_channels,
        "target_kind": model.target_kind,
        "junction": {"degree_threshold": gate.degree_threshold, "radius_px": gate.radius_px},
        "prompts": {"template": vlm.prompt_template, "templates": vlm.prompt_templates},
    }
    if model.use_vlm_film:
        trained = {"cond_dim", "film_hidden_dim", "text_mlp_hidden_dim", "cond_layernorm"}
        placed = {"device_map", "cache_dir", "cache_only", "prompt_template", "prompt_templates"}
        key["condition"] = {
            "source": model.cond_source,
            "scope": model.vlm_scope,
            "encoder": vlm.model_dump(mode="json", exclude=trained | placed),
        }
    return key


def source_files(config: FilmFlowConfig) -> tuple[Path, ...]:
    """The files that prepared data are made from, sorted; a folder that is missing gives none (preparing names it)."""
    data, vlm = config.data, config.model.vlm_film_config
    found = [Path(data.prompts_file)] if data.prompts_file else []
    if config.model.use_vlm_film and vlm.encoder == "precomputed" and vlm.model_name:
        found.append(Path(vlm.model_name))
    for folder in (data.train_dir, data.val_dir, data.test_dir):
        for part in ("image", "label"):
            path = Path(folder or "") / part
            if folder and path.is_dir():
                found += [file for file in path.iterdir() if file.is_file()]
    return tuple(sorted(found))
