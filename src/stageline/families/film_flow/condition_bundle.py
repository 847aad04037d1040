"""What a condition encoder hands to the model: one feature vector per sample and whether there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ConditionBundle:
    """Frozen features of one batch; the projection to the model's own size lives in the model (`cond.*`).

    vec: (B, F) float32 features of the frozen encoder.  present: (B,) bool; False is a dropped or unavailable
    condition, whose FiLM change is exactly zero.  tokens: (B, L, F_tok) or None.  token_mask: (B, L) bool, True is a
    real token.  source: what the features were made from (`image`, `text`, `image+text`, `probe`).
    plan_fingerprint: of the plan the features were made for; "" claims nothing.
    """

    vec: Tensor
    present: Tensor
    tokens: Tensor | None = None
    token_mask: Tensor | None = None
    source: str = ""
    plan_fingerprint: str = ""
