"""What a condition encoder hands to the model: one feature vector per sample and whether there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stageline.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

PROTOCOL_KEY = "_vlm_film_stage_indices"
"""Under this key a condition passed as a dict says for which decoder stages it was prepared."""


@dataclass(frozen=True)
class ConditionBundle:
    """Frozen features of one batch; the projection to the model's own size lives in the model (`cond.*`).

    vec: (B, F) float32 features of the frozen encoder.  present: (B,) bool; False is a dropped or unavailable
    condition, whose FiLM change is exactly zero.  source: what the features were made from (`image`, `text`,
    `image+text`, `probe`).
    plan_fingerprint: of the plan the features were made for; "" claims nothing.
    """

    vec: Tensor
    present: Tensor
    source: str = ""
    plan_fingerprint: str = ""


def bundle_from_protocol(condition: Mapping[str, Any], stages: tuple[int, ...]) -> ConditionBundle:
    """A condition in the seed's dict protocol, accepted only when it was prepared for exactly these decoder stages."""
    prepared = condition.get(PROTOCOL_KEY)
    if prepared is None or sorted(prepared) != list(stages):
        shown = "no decoder stages" if prepared is None else f"decoder stages {sorted(prepared)}"
        raise ConfigError(
            f"condition was prepared for {shown} but the model applies {list(stages)}",
            remedy=f"prepare it for this model; {PROTOCOL_KEY!r} must hold {list(stages)}",
            code="E_PLAN_MISMATCH",
        )
    known = {"vec", "present", "source", "plan_fingerprint"}
    foreign = set(condition) - known - {PROTOCOL_KEY}
    if foreign or not {"vec", "present"} <= set(condition):
        raise ConfigError(
            f"condition dict has the keys {sorted(condition)}, expected vec and present, and of {sorted(known)}",
            code="E_PLAN_MISMATCH",
        )
    return ConditionBundle(**{key: value for key, value in condition.items() if key in known})
