"""Half precision of a stage: torch's autocast, under which inputs stay what a family made them.

Lightning's own mixed precision rounds every floating input of the network before its forward, at which a time of 997
becomes 996, and cannot do so in frozen dataclasses, which is what families pass. Autocast casts where an operation
computes in half precision, and nothing else loses digits.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric.plugins import MixedPrecision

from stageline.config import TrainerConfig


class Autocast(MixedPrecision):
    """Fabric's mixed precision, but inputs are handed on as they are; outputs come back in float32."""

    def convert_input(self, data: Any) -> Any:
        return data


def precision_of(settings: TrainerConfig) -> Autocast | None:
    """The plugin for `trainer.precision`, with the loss scaler of fp16; None for float32, which needs none.

    settings: `accelerator` says where autocast works, as Fabric understands it.
    """
    mode = settings.precision
    if mode == "32-true":
        return None
    on_cpu = settings.accelerator == "cpu" or not torch.cuda.is_available()
    scaler = torch.amp.GradScaler("cuda") if mode == "16-mixed" else None
    return Autocast(mode, device="cpu" if on_cpu else "cuda", scaler=scaler)
