"""What becomes of each part of a parent's tensors when a film_flow stage starts from it; no torch.

Sections by tensor name: `backbone.*`, `junction.*`, `cond.*`, `film.<decoder stage>.*`, `schedule.*`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stageline.errors import CheckpointError
from stageline.families.film_flow.facts import facts
from stageline.stage import Inheritance, Stage

if TYPE_CHECKING:
    from stageline.contract import Parent
    from stageline.families.film_flow.config import FilmFlowConfig

SECTIONS = ("backbone", "junction", "cond", "film", "schedule")
CONDITION_FACTS = ("cond_source", "cond_encoder", "cond_features", "cond_dim", "vlm_scope")
HEAD_FACTS = ("apply_point", "head_variant", "gate_stages", "gate_value")


def section_of(name: str) -> str:
    """The section a tensor belongs to: the first part of its name."""
    return name.split(".", 1)[0]


def inherit(parent: Parent, config: FilmFlowConfig, stage: Stage) -> tuple[Inheritance, ...]:
    """The outcome for every section of parent and child.

    A parent without FiLM gives its backbone and junction head; every FiLM head starts at the identity. A parent with
    FiLM at the same decoder stages gives everything; with others `model.film_heads` must say what to keep.
    Raises CheckpointError E_CFG_VS_CKPT otherwise.
    """
    del stage
    own, parent_facts = facts(config), parent.facts
    old, new = set(parent_facts.get("vlm_film_trained_stages", ())), set(own["vlm_film_trained_stages"])
    result = [Inheritance("backbone", "load", "the same network", ("backbone.*",))]
    result += _junction(bool(parent_facts.get("junction_head")), bool(own["junction_head"]))
    result += _film(parent_facts, own, old, new, config.model.film_heads)
    result.append(Inheritance("schedule", "fresh", "strengths start with the stage's own warm-up", ("schedule.*",)))
    return tuple(result)


def _junction(parent: bool, own: bool) -> list[Inheritance]:
    if parent and own:
        return [Inheritance("junction", "load", "the same junction head", ("junction.*",))]
    if own:
        return [Inheritance("junction", "fresh", "the parent has no junction head", ("junction.*",))]
    if parent:
        return [Inheritance("junction", "drop", "this stage has no junction head", ("junction.*",))]
    return []


def _film(
    parent: Mapping[str, Any], own: Mapping[str, Any], old: set[int], new: set[int], film_heads: str | None
) -> list[Inheritance]:
    if not old and not new:
        return []
    if not old:
        return [
            Inheritance("cond", "fresh", "the parent has no FiLM", ("cond.*",)),
            *(_head(s, "fresh", "the parent has no FiLM: the head starts at the identity") for s in sorted(new)),
        ]
    if not new:
        return [
            Inheritance("cond", "drop", "this stage has no FiLM", ("cond.*",)),
            *(_head(s, "drop", "this stage has no FiLM") for s in sorted(old)),
        ]
    condition = [key for key in CONDITION_FACTS if parent.get(key) != own[key]]
    follows = {"gate_stages"} if old != new else set()  # the gate goes where the heads go
    heads = [key for key in HEAD_FACTS if key not in follows and parent.get(key) != own[key]]
    if film_heads == "reinit":
        return [
            Inheritance("cond", "fresh", "model.film_heads: reinit", ("cond.*",)),
            *(_head(s, "fresh" if s in new else "drop", "model.film_heads: reinit") for s in sorted(old | new)),
        ]
    if condition or heads or (old != new and film_heads is None):
        _refuse(parent, own, condition + heads, film_heads)
    return [
        Inheritance("cond", "load", "the same condition", ("cond.*",)),
        *(_head(s, "load", "both have this head") for s in sorted(old & new)),
        *(_head(s, "fresh", "the parent has no head here: it starts at the identity") for s in sorted(new - old)),
        *(_head(s, "drop", "this stage has no head here") for s in sorted(old - new)),
    ]


def _head(stage: int, outcome: Any, reason: str) -> Inheritance:
    return Inheritance(f"film.{stage}", outcome, reason, (f"film.{stage}.*",))


def _refuse(parent: Mapping[str, Any], own: Mapping[str, Any], differing: list[str], film_heads: str | None) -> None:
    """Says both lists of decoder stages, and every other difference."""
    old, new = parent["vlm_film_trained_stages"], own["vlm_film_trained_stages"]
    others = "; ".join(f"{key}: {parent.get(key)!r} -> {own[key]!r}" for key in differing)
    raise CheckpointError(
        f"config asks for FiLM stages {new} but the parent was trained with {old}" + (f"; {others}" if others else ""),
        remedy="take model.vlm_film_decoder_stages out to use the parent's, or say model.film_heads: "
        + ("reinit" if film_heads == "keep_common" or others else "keep_common (heads both have) or reinit (none)"),
        code="E_CFG_VS_CKPT",
    )
