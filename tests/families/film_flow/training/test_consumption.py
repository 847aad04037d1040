"""Every key of the config is read by something: changing it changes an argument, or the module that reads it is named.

A key that looks like a setting and does nothing is a lie (the trap of configs that grew).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import stageline
from stageline.config import dotted_fields
from stageline.errors import ConfigError
from stageline.families.film_flow import config as family
from stageline.families.film_flow.conditions.encoder import encoder_settings
from stageline.families.film_flow.config import FilmFlowConfig
from stageline.families.film_flow.facts import facts
from stageline.families.film_flow.model.construction import model_arguments
from stageline.families.film_flow.sampling import evaluation_sampling, training_sampling

from .small import at_stage, make_config

DUAL = {"model__arch_name": "filmflow_dual"}
FOLDER = {"data__name": "folder", "data__train_dir": "a", "data__val_dir": "b", "model__cond_source": "image"}
PICTURE = {"model__cond_source": "image"}

CHANGES: dict[str, Any] = {
    "model.arch_name": "filmflow_dual",
    "model.image_conditioning": ("dual", DUAL),
    "model.backbone_variant": ("msd_v0", DUAL),
    "model.image_channels": 3,
    "model.image_size": ("64", {"data__image_size": 64}),
    "model.model_channels": 16,
    "model.channel_mult": [1, 2, 3, 5],
    "model.attn_resolutions": [16],
    "model.level_attention": "linear",
    "model.fourier_grid": (16, DUAL),
    "model.mid_layers": (2, DUAL),
    "model.dropout": 0.1,
    "model.time_scale": 500.0,
    "model.use_gradient_checkpointing": True,
    "model.mode": "dfm_binary",
    "model.prediction": "velocity",
    "model.target_kind": "soft",
    "model.timesteps": 7,
    "model.solver": "heun",
    "model.dfm_eps": 1e-3,
    "model.num_ensemble": 2,
    "model.use_sliding_infer": True,
    "model.use_vlm_film": (False, {"model__vlm_film_decoder_stages": None}),
    "model.vlm_film_decoder_stages": [1],
    "model.film_apply_point": "post_block2",
    "model.head_variant": "relu_v0",
    "model.film_limit.gamma": None,
    "model.film_limit.beta": None,
    "model.film_limit": {"gamma": 1.0, "beta": 2.0},
    "model.cond_source": "image+text",
    "model.vlm_scope": "crop",
    "model.require_condition": True,
    "model.vlm_film_config.model_name": "other",
    "model.vlm_film_config.encoder": ("clip", {"model__vlm_film_config.feature_dim": 64}),
    "model.vlm_film_config.revision": "main",
    "model.vlm_film_config.feature_dim": 16,
    "model.vlm_film_config.cond_dim": 16,
    "model.vlm_film_config.film_hidden_dim": 16,
    "model.vlm_film_config.text_mlp_hidden_dim": 16,
    "model.vlm_film_config.cond_layernorm": False,
    "model.vlm_film_config.prompt_template": "vessels",
    "model.vlm_film_config.prompt_templates": {"trees": "vessels"},
    "model.vlm_film_config.overlay_alpha": 0.25,
    "model.vlm_film_config.max_new_tokens": 8,
    "model.vlm_film_config.embedding_dtype": "float32",
    "model.vlm_film_config.dtype": "bfloat16",
    "model.vlm_film_config.device_map": "cuda",
    "model.vlm_film_config.cache_only": True,
    "model.junction_gating_config.enabled": False,
    "model.junction_gating_config.source": ("pred", {}),
    "model.junction_gating_config.threshold": 0.25,
    "model.junction_gating_config.degree_threshold": 4,
    "model.junction_gating_config.radius_px": 6.0,
    "model.junction_gating_config.gate_value_in_junction": 0.25,
    "model.junction_gating_config.apply_stages": [3],
    "model.junction_gating_config.interp": "nearest",
    "model.junction_gating_config.detach_gate": False,
    "model.junction_gating_config.junction_channels": 8,
    "data.name": "folder",
    "data.train_dir": ("c", FOLDER),
    "data.val_dir": ("c", FOLDER),
    "data.test_dir": ("c", FOLDER),
    "data.prompts_file": ("c.json", FOLDER),
    "data.num_train": 5,
    "data.num_val": 5,
    "data.num_test": 5,
    "data.image_size": ("64", {"model__image_size": 64}),
    "data.image_norm": "minmax",
    "data.distractors": True,
    "data.label_pattern": ("*_mask", FOLDER),
    "evaluate.k": 7,
    "evaluate.solver": "heun",
    "evaluate.ensemble": 2,
    "evaluate.film_active": [3],
    "evaluate.guidance": 2.0,
    "evaluate.window_overlap": 0.5,
}
"""key -> another legal value, or (value, keys that make it legal before and after)."""

READ_BY = {
    "model.sigma": "families/film_flow/task.py",
    "model.t_sampling": "families/film_flow/task.py",
    "model.loss": "families/film_flow/task.py",
    "model.lambda_auxiliary": "families/film_flow/task.py",
    "model.lambda_cldice": "families/film_flow/task.py",
    "model.junction_weight": "families/film_flow/task.py",
    "model.cond_dropout": "families/film_flow/task.py",
    "model.film_warmup_epochs": "families/film_flow/task.py",
    "model.film_ramp_epochs": "families/film_flow/task.py",
    "model.film_heads": "families/film_flow/inheritance.py",
    "model.junction_gating_config.warmup_epochs": "families/film_flow/task.py",
    "model.junction_gating_config.ramp_epochs": "families/film_flow/task.py",
    "model.junction_gating_config.lambda_junction": "families/film_flow/task.py",
    "model.junction_gating_config.junction_loss": "families/film_flow/task.py",
    "model.vlm_film_config.cache_dir": "families/film_flow/data/preparation.py",
    "data.num_samples_per_image": "families/film_flow/data/sets.py",
    "data.flips": "families/film_flow/data/sets.py",
    "data.cache_bytes": "verbs/train/stage.py",
    "data.code": "verbs/prepare.py",
    "data.max_pixels": "families/film_flow/data/sources.py",
    "data.image_folder": "families/film_flow/data/layout.py",
    "data.label_folder": "families/film_flow/data/layout.py",
    "data.val_names": "families/film_flow/data/layout.py",
    "data.test_names": "families/film_flow/data/layout.py",
    "evaluate.checkpoints": "work/evaluations.py",
    "evaluate.split": "families/film_flow/evaluate.py",
    "evaluate.weights": "families/film_flow/evaluate.py",
    "evaluate.film_mode": "families/film_flow/measures/modes.py",
    "evaluate.compare_film": "families/film_flow/measures/modes.py",
    "evaluate.prompt": "families/film_flow/predict.py",
    "evaluate.mask_feedback": "families/film_flow/conditions/feedback.py",
    "evaluate.oracle": "families/film_flow/config/__init__.py",
    "evaluate.batch_size": "families/film_flow/evaluate.py",
    "evaluate.num_panels": "families/film_flow/evaluate.py",
    "evaluate.baseline_pixels": "families/film_flow/measures/baselines.py",
    "evaluate.threshold": "families/film_flow/evaluate.py",
}
"""Keys that become no constructor argument -> the module that reads them."""
IMPORT_KEYS = {"film_stages", "apply_point", "vlm_scope", "allow_globals"}
MOVED = {"model.learning_rate", "model.weight_decay", "model.use_ema", "model.ema_decay", "data.train_bs"}
"""Other names of trainer keys; `test_config` shows that they arrive there."""
ONE_VALUE = {"model.ot_coupling", "model.dfm_sampler", "model.vlm_film_config.input_mode"}
"""Keys with one legal value: what they say is that there is no other."""
COUNTED = {"model.patch_plan"}
"""Becomes data.num_samples_per_image; shown by `test_config`."""


def keys_of_splits(film: FilmFlowConfig) -> dict[str, Any]:
    """What prepared splits depend on: those that a stage reads and, where there is one, the test split."""
    tested = film.data.num_test or film.data.test_dir
    own = film.model_copy(update={"evaluate": film.evaluate.model_copy(update={"split": "test"})}) if tested else film
    splits = family.FAMILY_CONFIG.splits(film, family.STAGES["film"]) + family.FAMILY_CONFIG.evaluation_splits(own)
    return {split.name: dict(split.key) for split in splits}


def arguments(config: FilmFlowConfig) -> dict[str, Any]:
    """Everything that is built from a config without data: by name of what takes it."""
    film = at_stage(config, "film")
    return {
        "model": model_arguments(film),
        "facts": facts(film),
        "training": training_sampling(film),
        "evaluation": evaluation_sampling(film),
        "encoder": encoder_settings(film),
        "data": keys_of_splits(film),
    }


def keys_of_schema() -> list[str]:
    sections = ("model.", "data.", "evaluate.")
    return [key for key in dotted_fields(FilmFlowConfig) if key.startswith(sections)]


def test_every_key_is_accounted_for_once() -> None:
    """Acceptance check 21."""
    known = {key: [] for key in keys_of_schema()}  # type: ignore[var-annotated]
    known.setdefault("model.film_limit", [])
    for name, keys in {
        "changes": set(CHANGES),
        "read by": set(READ_BY),
        "moved": MOVED,
        "one value": ONE_VALUE,
        "counted": COUNTED,
    }.items():
        for key in keys:
            known.setdefault(key, ["no such key"]).append(name)
    wrong = {key: places for key, places in known.items() if len(places) != 1}
    assert wrong == {}


@pytest.mark.parametrize("key", sorted(set(CHANGES) - {"model.film_limit.gamma", "model.film_limit.beta"}))
def test_changing_a_key_changes_an_argument(key: str) -> None:
    """Acceptance check 21."""
    found = CHANGES[key]
    value, also = found if isinstance(found, tuple) else (found, {})
    if key in ("model.image_size", "data.image_size"):
        assert arguments(make_config(**also, **{key: int(value)})) != arguments(make_config())
        return
    if key == "data.name":
        assert arguments(make_config(**FOLDER)) != arguments(make_config(**PICTURE))
        return
    if key == "model.use_vlm_film":
        without = model_arguments(make_config(**also, **{key: value}))
        assert without["plan"].stages == ()
        return
    before = make_config(**also) if also and key not in ("model.image_conditioning",) else make_config()
    after = make_config(**{**also, key: value})
    assert arguments(after) != arguments(before), key


@pytest.mark.parametrize("part", ["gamma", "beta"])
def test_each_bound_of_the_heads_arrives(part: str) -> None:
    limits = {"gamma": 1.0, "beta": 2.0}
    one = model_arguments(at_stage(make_config(model__film_limit=limits), "film"))["film_limit"]
    other = model_arguments(at_stage(make_config(model__film_limit={**limits, part: 3.0}), "film"))["film_limit"]
    assert getattr(other, part) == 3.0
    assert one != other


@pytest.mark.parametrize("key", sorted(READ_BY))
def test_a_key_that_is_no_argument_is_read_where_it_is_said_to_be(key: str) -> None:
    """Acceptance check 21."""
    text = (Path(stageline.__file__).parent / READ_BY[key]).read_text()
    assert re.search(rf"\.{key.rsplit('.', 1)[-1]}\b", text), f"{READ_BY[key]} does not read {key}"


def test_the_import_section_is_read_by_the_import() -> None:
    folder = Path(stageline.__file__).parent / "families" / "film_flow"
    text = "".join(path.read_text() for path in folder.glob("imports/*.py"))
    fields = set(FilmFlowConfig.model_fields["import_"].annotation.model_fields)  # type: ignore[union-attr]
    assert fields == IMPORT_KEYS
    assert [name for name in sorted(fields) if f'"{name}"' not in text] == []


@pytest.mark.parametrize("key", sorted(ONE_VALUE))
def test_keys_with_one_value_refuse_every_other(key: str) -> None:
    with pytest.raises(ConfigError):
        make_config(**{key: "overlay"})
