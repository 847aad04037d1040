"""Starter configs of film_flow: `tiny` learns the prompted trees in a minute, `folder-small` is for one's own pictures
on a laptop or one GPU, `xca` and `octa500` have published sizes.

Raw mappings, as they would stand in a file; only what differs from the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TINY: dict[str, Any] = {
    "family": "film_flow",
    "run": "tiny",
    "model": {
        "arch_name": "filmflow_concat",
        "image_size": 48,
        "model_channels": 8,
        "channel_mult": [1, 2, 3, 4],
        "attn_resolutions": [],
        "prediction": "endpoint",
        "timesteps": 4,
        "use_vlm_film": True,
        "vlm_film_decoder_stages": [2, 3],
        "cond_source": "text",
        "cond_dropout": 0.1,
        "vlm_film_config": {"encoder": "stub", "cond_dim": 32, "film_hidden_dim": 32, "text_mlp_hidden_dim": 32},
        "junction_gating_config": {"enabled": True, "radius_px": 4.0, "gate_value_in_junction": 1.0},
    },
    "data": {"name": "prompted_trees", "num_train": 192, "num_val": 24},
    "trainer": {
        "batch_size": 8,
        "learning_rate": 3e-3,
        "weight_decay": 1e-4,
        "schedule": "onecycle",
        "warmup_fraction": 0.1,
        "ema_decay": 0.98,
    },
    "stage_overrides": {"backbone": {"trainer.max_steps": 80}, "film": {"trainer.max_steps": 250}},
}

_FOLDER_SMALL: dict[str, Any] = {
    "family": "film_flow",
    "run": "mine",
    "stages": ["backbone"],
    "model": {
        "arch_name": "filmflow_concat",
        "image_size": 96,
        "model_channels": 16,
        "channel_mult": [1, 2, 3, 4],
        "attn_resolutions": [],
        "prediction": "endpoint",
        "timesteps": 4,
        "use_sliding_infer": True,
        "use_vlm_film": False,
    },
    "data": {
        "name": "folder",
        "train_dir": "data/mine/train",
        "val_dir": "data/mine/val",
        "image_size": 96,
        "num_samples_per_image": 16,
    },
    "trainer": {
        "batch_size": 8,
        "max_steps": 1500,
        "validate_every_steps": 300,
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "schedule": "onecycle",
        "warmup_fraction": 0.1,
        "ema_decay": 0.99,
    },
}

_PAPER_TRAINER: dict[str, Any] = {
    "max_epochs": 500,
    "accumulate_grad_batches": 8,
    "learning_rate": 2e-4,
    "weight_decay": 1e-5,
    "precision": "bf16-mixed",
    "ema_decay": 0.999,
}


def _angiography(run: str, image_size: int, attention: list[int], crops: int, batch_size: int) -> dict[str, Any]:
    """A published setting: picture data in folders, CLIP features, heads at full and half resolution."""
    return {
        "family": "film_flow",
        "run": run,
        "model": {
            "arch_name": "filmflow_concat",
            "image_size": image_size,
            "model_channels": 32,
            "channel_mult": [1, 2, 3, 4],
            "attn_resolutions": attention,
            "timesteps": 4,
            "use_sliding_infer": True,
            "use_gradient_checkpointing": True,
            "vlm_film_decoder_stages": [2, 3],
            "cond_source": "image",
            "vlm_film_config": {
                "model_name": "Qwen/Qwen2.5-VL-3B-Instruct",
                "encoder": "qwen-vl",
                "feature_dim": 2048,
                "dtype": "bfloat16",
            },
            "junction_gating_config": {"enabled": True, "warmup_epochs": 20, "ramp_epochs": 20},
        },
        "data": {
            "name": "folder",
            "train_dir": f"data/{run}/train",
            "val_dir": f"data/{run}/val",
            "test_dir": f"data/{run}/test",
            "num_samples_per_image": crops,
        },
        "trainer": {**_PAPER_TRAINER, "batch_size": batch_size},
        "evaluate": {"split": "test", "ensemble": 4},
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": _TINY,
    "folder-small": _FOLDER_SMALL,
    "xca": _angiography("xca", 320, [80, 40], crops=16, batch_size=6),
    "octa500": _angiography("octa500", 224, [56, 28], crops=8, batch_size=8),
}
