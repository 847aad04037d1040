"""The stages of panorama_vlm: `vision`, `resampler`, `finetune`. Static; reads nothing.

A patch takes a stage back to the defaults of what it does not read, so that a change there trains it anew for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from stageline.config import Settings
from stageline.families.panorama_vlm.config.sections import LoraConfig, TextConfig, VicregConfig
from stageline.stage import Stage, Stages


def _unread(section: str, model: Settings, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Dotted keys of a section at their defaults. keys: which; none are all."""
    plain: Mapping[str, Any] = json.loads(model.model_dump_json())
    return {f"{section}.{key}": value for key, value in plain.items() if not keys or key in keys}


_NO_ADAPTERS = {**_unread("lora", LoraConfig()), "lora.use_lora": False}
_NO_VICREG = _unread("vicreg", VicregConfig())
_TRAINER = {"trainer.betas": [0.9, 0.98], "trainer.use_ema": False}

STAGES = Stages(
    Stage(
        "vision",
        objective="VICReg on tokens that see the same direction",
        metric="val_loss",
        direction="min",
        epochs=1,
        loss_over="ranks",
        parent_weights="raw",
        not_evaluated="it answers no questions",
        defaults={
            **_TRAINER,
            "model.vision_trainable_blocks": 2,
            "trainer.learning_rate": 5e-4,
            "trainer.batch_size": 8,
            "trainer.weight_decay": 0.05,
            "trainer.warmup_fraction": 0.1,
        },
        patch={**_NO_ADAPTERS, **_unread("text", TextConfig())},
    ),
    Stage(
        "resampler",
        objective="next token of the response, frozen tower and language model",
        metric="val_loss",
        direction="min",
        epochs=1,
        parents={"default": "vision"},
        optional_parents=frozenset({"default"}),
        also_from={"default": ("resampler", "finetune")},
        parent_weights="raw",
        defaults={
            **_TRAINER,
            "trainer.learning_rate": 3e-4,
            "trainer.batch_size": 1,
            "trainer.accumulate_grad_batches": 4,
            "trainer.weight_decay": 0.05,
            "trainer.warmup_fraction": 0.03,
        },
        patch={**_NO_ADAPTERS, **_NO_VICREG},
    ),
    Stage(
        "finetune",
        objective="next token of the response, with adapters",
        metric="val_loss",
        direction="min",
        epochs=1,
        parents={"default": "resampler"},
        also_from={"default": ("vision", "finetune")},
        parent_weights="raw",
        defaults={
            **_TRAINER,
            "trainer.learning_rate": 1e-4,
            "trainer.batch_size": 1,
            "trainer.accumulate_grad_batches": 4,
            "trainer.weight_decay": 0.01,
            "trainer.warmup_fraction": 0.03,
        },
        patch=_NO_VICREG,
    ),
)
TINY_STEPS = {"vision": 16, "resampler": 24, "finetune": 40}
"""Optimizer steps under the tiny profile, where the length is given in epochs or not at all."""
