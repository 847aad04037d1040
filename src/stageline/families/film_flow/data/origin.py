"""The splits of film_flow: the part of the config that each depends on, and the files that are read; no torch.

`train`, `val` and `test` hold pictures, masks, heat and nodes; `<split>-features` the features of their cases. So a
change of the encoder makes features anew and leaves the pictures, and the backbone trained on them, alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stageline.config import semantic
from stageline.data.splits import Split
from stageline.families.film_flow.data.layout import Layout
from stageline.families.film_flow.externals import externals

if TYPE_CHECKING:
    from stageline.families.film_flow.config import FilmFlowConfig
    from stageline.stage import Stage

FEATURES = "-features"
OF_SPLITS = {"train": ("num_train", "train_dir"), "val": ("num_val", "val_dir"), "test": ("num_test", "test_dir")}
"""Keys of `data` that concern one split alone."""
NOT_PREPARED = frozenset({"flips", "num_samples_per_image", "train_bs"})
"""Keys of `data` that concern reading."""
OF_FILES = frozenset({"image_folder", "label_folder", "val_names", "test_names"})
"""Keys of `data` that say which files a split is made from: the files themselves are counted."""


def splits(config: FilmFlowConfig, _stage: Stage) -> tuple[Split, ...]:
    """What a stage reads. config: the stage's own."""
    return tuple(split for name in ("train", "val") for split in _with_features(config, name))


def evaluation_splits(config: FilmFlowConfig) -> tuple[Split, ...]:
    """What an evaluation reads."""
    return _with_features(config, config.evaluate.split)


def _with_features(config: FilmFlowConfig, name: str) -> tuple[Split, ...]:
    """A split of pictures, and that of their features where the config has a condition that is prepared."""
    unseen, rule = _unseen(config, name), _rule
    found = [Split(name, pictures_key(config, name), _picture_files(config, name), unseen=unseen, rule=rule)]
    if has_features(config, name):
        key = {**pictures_key(config, name), "condition": condition_key(config)}
        files = _picture_files(config, name, features=True)
        found.append(Split(f"{name}{FEATURES}", key, files, externals(config), unseen, rule))
    return tuple(found)


def _rule(path: Path) -> str:
    """By which rule a source file is read since the first release; "" for nearly all."""
    from stageline.data.decoding import reading_rule

    return reading_rule(path)


def has_features(config: FilmFlowConfig, name: str) -> bool:
    """Whether a split's condition features are prepared; random crops of training have features of their own."""
    model = config.model
    if not model.use_vlm_film or model.vlm_film_config.encoder == "none":
        return False
    return not (name == "train" and model.vlm_scope == "crop" and model.cond_source != "text")


def pictures_key(config: FilmFlowConfig, name: str) -> dict[str, Any]:
    """The part of the config that the pictures of a split depend on: what is made or read."""
    model, vlm, gate = config.model, config.model.vlm_film_config, config.model.junction_gating_config
    made = config.data.name in ("prompted_trees", "trees")
    unread = {key for split, keys in OF_SPLITS.items() if split != name for key in keys} | NOT_PREPARED | OF_FILES
    return {
        "data": {key: value for key, value in semantic(config.data).items() if key not in unread},
        "seed": config.seed if made else None,
        "image_channels": model.image_channels,
        "target_kind": model.target_kind,
        "junction": {"degree_threshold": gate.degree_threshold, "radius_px": gate.radius_px},
        "prompts": {"template": vlm.prompt_template, "templates": vlm.prompt_templates},
    }


def condition_key(config: FilmFlowConfig) -> dict[str, Any]:
    """The part of the config that condition features depend on beside the pictures."""
    model = config.model
    trained = {"cond_dim", "film_hidden_dim", "text_mlp_hidden_dim", "cond_layernorm"}
    placed = {"device_map", "cache_dir", "cache_only", "prompt_template", "prompt_templates"}
    return {
        "source": model.cond_source,
        "scope": model.vlm_scope,
        "encoder": model.vlm_film_config.model_dump(mode="json", exclude=trained | placed),
    }


def _picture_files(config: FilmFlowConfig, name: str, *, features: bool = False) -> tuple[Path, ...]:
    """The files a split is made from, sorted; a folder that is missing gives none (`_unseen` names it)."""
    data, vlm = config.data, config.model.vlm_film_config
    found = [Path(data.prompts_file)] if data.prompts_file else []
    if features and vlm.encoder == "precomputed" and vlm.model_name:
        found.append(Path(vlm.model_name))
    return tuple(sorted([*found, *Layout.of(data).files(name)]))


def _unseen(config: FilmFlowConfig, name: str) -> tuple[Path, ...]:
    """The folders of a split that are not there, as seen from here."""
    return tuple(folder for folder in Layout.of(config.data).folders(name) if not folder.is_dir())
