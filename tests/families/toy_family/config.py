"""The torch-free half of the toy family."""

from __future__ import annotations

from typing import Any

from stageline.config import DataSettings, RunConfig, Settings
from stageline.contract import External, FamilyConfig, Parent, Words
from stageline.stage import Inheritance, Stage, Stages, Trains


class ToyModelConfig(Settings):
    dropout: float = 0.0
    fresh_head: bool = False
    exported: bool = False
    unused: bool = False
    declared: bool = False
    cast: str = ""
    table: str = ""
    variant: str = ""


class ToyDataConfig(DataSettings):
    num_train: int = 22
    num_val: int = 7
    tokens: bool = True
    poison: tuple[int, ...] = ()


class ToyConfig(RunConfig):
    model: ToyModelConfig = ToyModelConfig()
    data: ToyDataConfig = ToyDataConfig()


STAGES = Stages(
    Stage("base", trains=("*",), objective="mse", steps=10, metric="error", direction="min"),
    Stage(
        "tune",
        trains=("body.*", "head.*"),
        objective="mse",
        steps=6,
        metric="error",
        direction="min",
        parents={"default": "base"},
    ),
    Stage(
        "join",
        trains=("*",),
        objective="mse",
        steps=4,
        metric="error",
        direction="min",
        parents={"trunk": "base", "head": "tune"},
    ),
    Stage("loose", trains=("nothing.*",), objective="mse", steps=2, metric="error", direction="min", opt_in=True),
    Stage(
        "whole",
        trains=("*",),
        objective="mse",
        steps=10,
        metric="error",
        direction="min",
        opt_in=True,
        loss_over="none",
    ),
    Stage(
        "even",
        trains=("*",),
        objective="mse and variance over the batch",
        steps=6,
        metric="error",
        direction="min",
        opt_in=True,
        loss_over="ranks",
    ),
    Stage("unmeasured", trains=("*",), objective="mse", steps=2, metric="absent", direction="min", opt_in=True),
)


TABLE = "table.weight"
"""The tensor that is not the family's own: it comes from the folder `model.table`, or is made from that text."""
MADE = "made from "
"""How `model.table` begins where the family makes the table itself."""


def inherit(parent: Parent, config: ToyConfig, stage: Stage) -> tuple[Inheritance, ...]:
    """A single parent gives everything; of two, `trunk` gives all but the head."""
    roles = {"default": "load", "trunk": "load", "head": "drop"}
    head = {"default": "fresh" if config.model.fresh_head else "load", "trunk": "drop", "head": "load"}[parent.role]
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


FAMILY_CONFIG = FamilyConfig(
    name="toy",
    config=ToyConfig,
    stages=STAGES,
    presets={
        "tiny": {"family": "toy", "trainer": {"batch_size": 4, "learning_rate": 0.02}},
        "dropped": {"family": "toy", "model": {"dropout": 0.1}},
    },
    facts=lambda _config, _stage: {"width": 8},
    fact_rules={},
    inherit=inherit,
    splits=lambda _config, _stage: (),
    evaluation_splits=lambda _config: (),
    check=lambda _config, _stage: None,
    may_lack_gradient=lambda config, _stage: ("unused.*",) if config.model.declared else (),
    casts=lambda config, stage: {config.model.cast: "bfloat16"} if config.model.cast and stage.name == "tune" else {},
    trains=trains,
    externals=externals,
    default_stages=lambda _config: ("base", "tune", "join"),
    variant=lambda config: config.model.variant,
    words=Words(
        metrics={"error": "squared error"},
        main_metrics=("error",),
        headline="Error {error}.",
        told={"weights": "weights"},
    ),
    run_name=lambda config: f"toy_S{config.seed}.W{config.trainer.batch_size}",
)
