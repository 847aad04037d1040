"""What becomes of a parent's tensors, which parameters train, which weights are of others. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stageline.contract import External, Parent
from stageline.stage import Inheritance, Stage, Trains

if TYPE_CHECKING:
    from .config import ToyConfig

TABLE = "table.weight"
"""The tensor that is not the family's own: it comes from the folder `model.table`, or is made from that text."""
MADE = "made from "
"""How `model.table` begins where the family makes the table itself."""


def inherit(parent: Parent, config: ToyConfig, stage: Stage) -> tuple[Inheritance, ...]:
    """A single parent gives everything; of two, `trunk` gives all but the head."""
    roles = {"default": "load", "before": "load", "trunk": "load", "head": "drop"}
    head = {"trunk": "drop", "head": "load"}.get(parent.role, "fresh" if config.model.fresh_head else "load")
    trunk: Any = roles[parent.role]
    outcome: Any = head
    sections = [
        Inheritance("stem", trunk, "same shape", ("stem.*",)),
        Inheritance("trunk", trunk, "same shape", ("body.*", "strength")),
        Inheritance("head", outcome, "as role and config say", ("head.*",)),
    ]
    if config.model.table:
        sections += [
            Inheritance("scale", trunk, "same shape", ("table.scale",)),
            Inheritance("table", "external", "read from its own file", (TABLE,)),
        ]
    return tuple(sections)


def trains(config: ToyConfig, stage: Stage) -> Trains:
    """The stage's patterns, without what is not ours."""
    return Trains(stage.trains, (TABLE,) if config.model.table else ())


def externals(config: ToyConfig, stage: Stage) -> tuple[External, ...]:
    source = config.model.table
    return (External("table", source, patterns=(TABLE,), generated=source.startswith(MADE)),) if source else ()
