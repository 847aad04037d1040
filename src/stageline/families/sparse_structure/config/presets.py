"""Starter configs of sparse_structure: `tiny` trains in seconds, `demo` learns shapes in minutes, `public` has the
published sizes.

Raw mappings, as they would stand in a file; only what differs from the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SMALL: dict[str, Any] = {
    "resolution": 16,
    "latent_channels": 8,
    "cond_channels": 32,
}

_TINY: dict[str, Any] = {
    "family": "sparse_structure",
    "run": "tiny",
    "model": {
        **_SMALL,
        "vae": {"width": 16},
        "sparse_flow": {"model_channels": 32, "num_blocks": 2, "num_heads": 2, "mlp_ratio": 2.0},
        "global_sparse_flow": {"model_channels": 32, "num_blocks": 1, "num_heads": 2, "mlp_ratio": 2.0},
    },
    "data": {"num_train": 24, "num_val": 4, "num_test": 4, "num_objects": [2, 3]},
    # Guided targets at every step feed on guided targets: a network that starts from nothing runs away.
    "objective": {"fm_eps_max": 1 / 128, "self_consistency_cfg_strength": 0.0},
    "stage_overrides": {
        "shape_vae": {"trainer": {"max_steps": 60}},
        "sparse_flow": {"trainer": {"max_steps": 60}},
        "global_flow": {"trainer": {"max_steps": 40}},
        "joint": {"trainer": {"max_steps": 20}},
    },
    "trainer": {"ema_decay": 0.9, "learning_rate": 2e-3, "batch_size": 4, "accumulate_grad_batches": 1},
}

_BRANCH: dict[str, Any] = {"model_channels": 64, "num_blocks": 3, "num_heads": 4, "mlp_ratio": 2.0}

# The style of a scene is decided at early times.
_EARLY: dict[str, Any] = {"time_window": [0.02, 0.2], "self_consistency_prob": 0.1}
_MUON: dict[str, Any] = {"optimizer": "muon", "batch_size": 8}

_DEMO: dict[str, Any] = {
    "family": "sparse_structure",
    "run": "rooms",
    "model": {
        **_SMALL,
        "cond_tokens": 2,
        "vae": {"width": 32, "kl_weight": 0.03, "positive_weight": 2.0},
        "sparse_flow": _BRANCH,
        "global_sparse_flow": _BRANCH,
    },
    "data": {"num_train": 600, "num_objects": [4, 6], "styles": ["slab", "post", "block"]},
    "objective": {
        "fm_eps_max": 1 / 128,
        "time_mean": -1.5,
        "time_std": 1.2,
        "ratio_cfg_samples_in_self_consistency_target": 0.0,
        "guidance": {"p_unconditional": 0.0},
        "loss_weights": {
            "shape": 1.0,
            "6drotation_normalized": 0.1,
            "translation": 0.1,
            "scale": 0.1,
            "translation_scale": 0.1,
        },
    },
    "evaluate": {"steps": [1, 4, 128], "batch_size": 60, "scene_strength": 0.75},
    "trainer": {
        "accelerator": "cpu",
        "accumulate_grad_batches": 1,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup_steps": 30,
        "ema_decay": 0.98,
        "learning_rate": 2e-3,
    },
    "stage_overrides": {
        "shape_vae": {"trainer": {"max_steps": 450, "batch_size": 32, "learning_rate": 3e-3}},
        "sparse_flow": {"trainer": {"max_steps": 800, "batch_size": 4, "learning_rate": 8e-3}},
        # Objects that are all equally noisy have nothing to tell each other: at first each has a time of its own.
        "global_flow": {
            "trainer": {**_MUON, "max_steps": 900, "learning_rate": 4e-3},
            "objective": {**_EARLY, "time_mean": 0.0, "time_window_share": 0.85, "shared_draws_from": 0.35},
        },
        "joint": {
            "trainer": {**_MUON, "max_steps": 600, "learning_rate": 1e-3},
            "objective": {**_EARLY, "time_window_share": 0.5},
        },
    },
}

_PUBLIC: dict[str, Any] = {
    "family": "sparse_structure",
    "model": {
        "sparse_flow": {"use_checkpoint": True},
        "global_sparse_flow": {"num_blocks": 4, "use_checkpoint": True},
    },
    "data": {"name": "latents", "data_root": "data/scenes"},
    "trainer": {"precision": "bf16-mixed"},
    "objective": {
        "loss_weights": {
            "shape": 1.0,
            "6drotation_normalized": 0.1,
            "translation": 1.0,
            "scale": 0.1,
            "translation_scale": 0.0,
        },
        "self_consistency_cfg_strength": 2.0,
        "ratio_cfg_samples_in_self_consistency_target": 0.25,
        "fm_eps_max": 1 / 128,
    },
}

PRESETS: Mapping[str, Mapping[str, Any]] = {"tiny": _TINY, "demo": _DEMO, "public": _PUBLIC}
