"""The guide's spellings: its configs line by line, aliases, the profile, and keys that nobody knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from room import ROOMS, config, guide

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.config import FAMILY_CONFIG, STAGES, PanoramaVlmConfig
from stageline.stage import num_epochs, stage_config


def at(stage: str, run: PanoramaVlmConfig) -> PanoramaVlmConfig:
    return stage_config(run, STAGES[stage])


def refused(raw: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config(*overrides, raw=raw)
    return str(caught.value)


@pytest.mark.parametrize("name", ["default", "bimamba_overlap0"])
@pytest.mark.parametrize("profile", ["", "profile=tiny"])
def test_a_config_of_the_guide_parses_and_its_stages_are_checked(name: str, profile: str) -> None:
    made = config(*([profile] if profile else []), raw=guide(name))
    for stage in FAMILY_CONFIG.selected(made):
        FAMILY_CONFIG.check(at(stage.name, made), stage)
    assert (made.root, made.seed, made.trainer.num_workers) == (".", 42, 4)
    assert made.trainer.precision == ("32-true" if profile else "bf16-mixed")
    assert made.data.csv_train == ("data/quic360/train.csv",)


def test_the_keys_of_stages_are_the_cores() -> None:
    made = config(raw=guide("default"))
    vision, finetune = at("vision", made), at("finetune", made)
    assert (vision.trainer.learning_rate, vision.trainer.batch_size, num_epochs(vision, STAGES["vision"])) == (
        5e-4,
        8,
        1,
    )
    assert vision.model.vision_trainable_blocks == 2
    assert at("resampler", made).model.vision_trainable_blocks == 0
    assert (finetune.trainer.learning_rate, finetune.trainer.accumulate_grad_batches) == (1e-4, 4)


def test_published_names_of_stages_wherever_stages_are_named() -> None:
    raw = {
        **ROOMS,
        "training": {
            "stages": ["vision_pretraining", "resampler_training", "instruction_tuning"],
            "stage_configs": {"instruction_tuning": {"lr": 0.5}, "resampler": {"warmup_ratio": 0.25}},
        },
        "parents": {"resampler_training": {"default": "none"}},
    }
    made = config(raw=raw)
    assert made.stages == ("vision", "resampler", "finetune")
    assert at("finetune", made).trainer.learning_rate == 0.5
    assert at("resampler", made).trainer.warmup_fraction == 0.25
    assert made.parents == {"resampler": {"default": "none"}}
    assert config("training.stages=resampler_training,finetune").stages == ("resampler", "finetune")


def test_stage_configs_stand_at_the_top_too() -> None:
    inner = {"finetune": {"epochs": 3, "image_processing": {"stitching_mode": "dedupe"}, "lora": {"rank": 4}}}
    top, below = (
        config(raw={**ROOMS, "stage_configs": inner}),
        config(raw={**ROOMS, "training": {"stage_configs": inner}}),
    )
    assert top == below
    own = at("finetune", top)
    assert (num_epochs(own, STAGES["finetune"]), own.image_processing.stitching_mode, own.lora.rank) == (3, "dedupe", 4)


@pytest.mark.parametrize(
    "key", ["trainer.learning_rate", "training.stage_configs.finetune.lr", "stage_configs.finetune.lr"]
)
def test_the_command_line_wins_in_every_spelling(key: str) -> None:
    assert at("finetune", config(f"{key}=0.125", raw=guide("default"))).trainer.learning_rate == 0.125


@pytest.mark.parametrize("key", ["model.resampler_type", "models.resampler_type"])
def test_the_command_line_changes_the_model_in_both_spellings(key: str) -> None:
    assert config(f"{key}=mlp", raw=guide("default")).model.resampler_type == "mlp"


def test_two_names_of_one_setting_in_a_file_contradict_each_other() -> None:
    text = refused({**ROOMS, "models": {"resampler_type": "mlp"}, "model": {"resampler_type": "bimamba"}})
    assert "'mlp' contradicts model.resampler_type 'bimamba'" in text


def test_reading_is_idempotent() -> None:
    for name in ("default", "bimamba_overlap0"):
        plain, faults = PanoramaVlmConfig.SPELLINGS.normalise({**guide(name), "profile": "tiny"})
        assert faults == []
        assert PanoramaVlmConfig.SPELLINGS.normalise(plain) == (plain, [])


def test_unknown_keys_are_refused_with_the_nearest() -> None:
    """Check 24: packing of samples into one row is not offered, and its key is refused like any other."""
    raw = {
        **ROOMS,
        "models": {"resampler_typ": "mlp"},
        "image_processing": {"overlap_ratoi": 0},
        "training": {"stagse": ["vision"], "stage_configs": {"vision": {"bacth_size": 3, "patience": 2}}},
        "paths": {"run_dir": "runs", "cache_dir": "x"},
        "expriment": {"name": "x"},
        "runtime": {"packing": True},
    }
    text = refused(raw)
    for words in (
        "did you mean 'model.resampler_type'?",
        "did you mean 'image_processing.overlap_ratio'?",
        "training.stagse: E_UNKNOWN_KEY: unknown key; did you mean 'training.stages'?",
        "training.stage_configs.vision.bacth_size: E_UNKNOWN_KEY: unknown key; did you mean 'batch_size'?",
        "training.stage_configs.vision.patience: E_REFUSED_KEY",
        "paths.run_dir: E_UNKNOWN_KEY: unknown key; did you mean 'paths.runs_dir'?",
        "paths.cache_dir: E_REFUSED_KEY",
        "expriment: unknown key; did you mean 'experiment'?",
        "runtime.packing: unknown key",
    ):
        assert words in text, words


def test_places() -> None:
    assert config(raw={**ROOMS, "paths": {"runs_dir": "runs"}}).root == "."
    assert config(raw={**ROOMS, "paths": {"runs_dir": "/data/exp/runs/"}}).root == "/data/exp"
    assert config("root=elsewhere", raw={**ROOMS, "paths": {"runs_dir": "runs"}}).root == "elsewhere"
    assert "say root: out/trained" in refused({**ROOMS, "paths": {"runs_dir": "out/trained"}})


def test_what_is_evaluated_after_training() -> None:
    auto = {"enabled": True, "stage": "instruction_tuning", "checkpoint": "best", "csv": "other.csv"}
    made = config(raw={"data": {"csv_train": "a.csv", "csv_val": "b.csv"}, "training": {"auto_eval": auto}})
    assert (made.evaluate.auto, made.evaluate.checkpoints) == (True, {"finetune": "finetune"})
    assert (made.data.csv_test, made.evaluation_split) == (("other.csv",), "test")
    assert "its best" in refused({**ROOMS, "training": {"auto_eval": {"checkpoint": "last"}}})
    assert config(raw={"data": {"csv_train": "a.csv", "csv_val": "b.csv"}}).evaluation_split == "val"


def test_another_run_of_the_same_name_is_never_overwritten() -> None:
    assert config(raw={**ROOMS, "output": {"on_conflict": "error"}})
    assert "say run: <new name>" in refused({**ROOMS, "output": {"on_conflict": "suffix"}})


def test_the_profile_of_the_environment_counts_where_the_config_states_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PANO_PROFILE", "tiny")
    made = config(raw=guide("default"))
    assert made.model.is_tiny
    assert config(raw=guide("default")) == config("profile=tiny", raw=guide("default"))
    assert not config("profile=null", raw=guide("default")).model.is_tiny
    monkeypatch.setenv("PANO_PROFILE", "tin")
    assert "model.profile" in refused(guide("default"))


def test_the_profile_gives_lengths_in_steps_and_leaves_steps_alone() -> None:
    made = config("profile=tiny", raw=guide("default"))
    assert [at(name, made).trainer.max_steps for name in STAGES.names] == [16, 24, 40]
    for key in ("trainer.max_steps=3", "training.stage_configs.finetune.max_steps=3"):
        assert at("finetune", config("profile=tiny", key, raw=guide("default"))).trainer.max_steps == 3
    again = config(raw=json.loads(made.model_dump_json(exclude_unset=True)))
    assert at("vision", again).trainer.max_steps == 16


def test_sizes_of_a_tower_in_a_folder_are_those_of_its_own_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "siglip",
                "vision_config": {
                    "hidden_size": 64,
                    "intermediate_size": 128,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 4,
                    "patch_size": 16,
                    "image_size": 64,
                },
            }
        )
    )
    made = config(f"models.vision_name={tmp_path}")
    assert (made.model.vision.hidden_size, made.model.vision.num_layers, made.grid) == (64, 3, 4)
    assert "state vision_config" in refused(ROOMS, f"models.vision_name={tmp_path / 'absent'}")
