"""Starter configs of panorama_vlm: `tiny` is made data and weights, `base` the published models, `overlap0` four tiles.

Raw mappings, as they would stand in a file; only what differs from the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TINY: dict[str, Any] = {
    "family": "panorama_vlm",
    "run": "tiny",
    "model": {"profile": "tiny", "resampler_type": "mlp"},
    "lora": {"rank": 16, "alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "data": {"name": "rooms"},
    "text": {"max_text_length": 64},
    "trainer": {"batch_size": 8, "accumulate_grad_batches": 1, "learning_rate": 3e-3},
    "generation": {"max_new_tokens": 16},
}

_BASE: dict[str, Any] = {
    "family": "panorama_vlm",
    "data": {
        "csv_train": ["data/quic360/train.csv"],
        "csv_val": ["data/quic360/val.csv"],
        "csv_test": ["data/quic360/test.csv"],
    },
    "trainer": {"precision": "bf16-mixed"},
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": _TINY,
    "base": _BASE,
    "overlap0": {
        **_BASE,
        "image_processing": {"overlap_ratio": 0.0},
        "stages": ["resampler", "finetune"],
    },
}
