"""A config as users of the published program have it: every key works as spelled, or is refused with what to write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from stageline.config import parse_yaml
from stageline.errors import ConfigError
from stageline.families import parse_config
from stageline.families.film_flow.config import STAGES, FilmFlowConfig, check
from stageline.families.film_flow.facts import film_plan
from stageline.stage import stage_config

PUBLISHED = """
family: film_flow
run: published
model:
  arch_name: medsegdiff_flow
  mode: dfm_binary
  dfm_sampler: euler
  dfm_eps: 1.0e-6
  use_vlm_film: true
  vlm_film_decoder_stages: [2, 3]
  vlm_film_config:
    model_name: Qwen/Qwen2.5-VL-3B-Instruct
    feature_dim: 2048
    cond_dim: 256
    text_mlp_hidden_dim: 256
    cache_dir: cache/vlm
    prompt_templates: {octa500_6m: retinal vessels}
    input_mode: raw
    overlay_alpha: 0.5
    cond_layernorm: true
    embedding_dtype: float16
    dtype: bfloat16
    device_map: auto
    max_new_tokens: 4
  cond_source: text
  junction_gating_config:
    enabled: true
    warmup_epochs: 20
    source: pred
    threshold: 0.5
    degree_threshold: 3
    radius_px: 8
    gate_value_in_junction: 0.0
    apply_stages: same_as_film
    interp: nearest
  image_size: 224
  patch_plan: [[224, 6]]
  timesteps: 15
  num_ensemble: 5
  sigma: 0.0
  use_sliding_infer: true
  learning_rate: 0.0002
  weight_decay: 0.00001
  use_ema: true
  ema_decay: 0.9999
  model_channels: 32
  channel_mult: [1, 2, 4, 8]
  attn_resolutions: [28]
  dropout: 0.1
  use_gradient_checkpointing: true
  loss: bce_dice
data:
  name: octa500_6m
  train_dir: data/train
  val_dir: data/val
  test_dir: data/test
  train_bs: 4
  num_samples_per_image: 6
  image_size: 224
trainer:
  max_epochs: 500
  accelerator: gpu
  devices: 2
  precision: bf16-mixed
  check_val_every_n_epoch: 5
  accumulate_grad_batches: 2
  gradient_clip_val: 0.5
  log_every_n_steps: 50
"""
HOMES = {
    "model.arch_name": ("model.arch_name", "filmflow_dual"),
    "model.learning_rate": ("trainer.learning_rate", 2e-4),
    "model.weight_decay": ("trainer.weight_decay", 1e-5),
    "model.use_ema": ("trainer.use_ema", True),
    "model.ema_decay": ("trainer.ema_decay", 0.9999),
    "data.name": ("data.name", "folder"),
    "model.vlm_film_config.prompt_templates.octa500_6m": (
        "model.vlm_film_config.prompt_templates.folder",
        "retinal vessels",
    ),
    "data.train_bs": ("trainer.batch_size", 4),
    "trainer.accelerator": ("trainer.accelerator", "cuda"),
    "trainer.devices": ("trainer.processes", 2),
    "trainer.check_val_every_n_epoch": ("trainer.validate_every_epochs", 5),
    "trainer.log_every_n_steps": ("trainer.log_every_steps", 50),
}
"""Published key -> the key it is read as, and its value there; all others keep key and value."""


def raw() -> dict[str, Any]:
    parsed: dict[str, Any] = parse_yaml(PUBLISHED, "published")
    return parsed


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def value_at(config: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


def as_lists(value: Any) -> Any:
    return [as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def test_every_published_key_arrives_with_its_value() -> None:
    config = parse_config(raw())
    for key, value in leaves(raw()):
        home, expected = HOMES.get(key, (key, value))
        assert as_lists(value_at(config, home)) == expected, key


def test_the_published_config_is_legal_for_both_stages_and_gates_where_film_is() -> None:
    config = parse_config(raw())
    assert isinstance(config, FilmFlowConfig)
    for stage in STAGES:
        check(stage_config(config, stage), stage)
    plan = film_plan(stage_config(config, STAGES["film"]))
    assert plan.stages == plan.gate_stages == (2, 3)


@pytest.mark.parametrize("name", ["xca", "octa500_3m", "octa500_6m", "rossa"])
def test_published_data_sets_are_folders_and_need_them(name: str) -> None:
    with pytest.raises(ConfigError, match=r"'folder' needs train_dir"):
        parse_config({"family": "film_flow", "data": {"name": name}})


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("model.attn_resolutions=[16]", "name some of these"),
        ("model.patch_plan=[[224, 4], [192, 2]]", "[[224, number]]"),
        ("model.sigma=0.1", "sigma: 0"),
        ("model.gamma_scale=0.1", "model.film_limit"),
        ("model.data_name=xca", "say data.name"),
        ("model.num_classes=2", "take it out"),
        ("model.vlm_film_config.input_mode=overlay", "evaluate.mask_feedback"),
        ("model.junction_gating_config.degree_threshold=2", "at least 3"),
        ("data.use_sauna_transform=true", "model.target_kind: soft"),
        ("trainer.precision=16", "bf16-mixed"),
    ],
)
def test_what_cannot_work_says_what_to_write_instead(override: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(raw(), [override])
    assert remedy in str(error.value)


def test_steps_on_the_command_line_take_the_place_of_the_epochs_of_the_file() -> None:
    trainer = parse_config(raw(), ["trainer.max_steps=9", "trainer.validate_every_steps=3"]).trainer
    assert (trainer.max_steps, trainer.max_epochs) == (9, None)
    assert (trainer.validate_every_steps, trainer.validate_every_epochs) == (3, 0)


def test_contradictions_of_one_section_are_lines_of_their_own() -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(raw(), ["model.attn_resolutions=[16]", "model.sigma=0.1", "model.solver=heun"])
    assert str(error.value).count("\n  - model: ") == 3
    assert "3 faults" in str(error.value)
