"""The torch-free half of the toy family."""

from __future__ import annotations

from stageline.config import DataSettings, RunConfig, Settings
from stageline.contract import FamilyConfig, Parent
from stageline.stage import Inheritance, Stage, Stages


class ToyModelConfig(Settings):
    dropout: float = 0.0
    fresh_head: bool = False
    exported: bool = False
    unused: bool = False
    declared: bool = False
    cast: str = ""


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
    Stage("loose", trains=("nothing.*",), objective="mse", steps=2, metric="error", direction="min"),
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
    Stage("unmeasured", trains=("*",), objective="mse", steps=2, metric="absent", direction="min"),
)


def inherit(parent: Parent, config: ToyConfig, stage: Stage) -> tuple[Inheritance, ...]:
    head = "fresh" if config.model.fresh_head else "load"
    return (
        Inheritance("stem", "load", "same shape", ("stem.*",)),
        Inheritance("trunk", "load", "same shape", ("body.*", "strength")),
        Inheritance("head", head, "as the config says", ("head.*",)),
    )


FAMILY_CONFIG = FamilyConfig(
    name="toy",
    config=ToyConfig,
    stages=STAGES,
    presets={"tiny": {"family": "toy"}},
    facts=lambda _config, _stage: {"width": 8},
    fact_rules={},
    inherit=inherit,
    splits=lambda _config, _stage: (),
    evaluation_splits=lambda _config: (),
    check=lambda _config, _stage: None,
    may_lack_gradient=lambda config, _stage: ("unused.*",) if config.model.declared else (),
    casts=lambda config, stage: {config.model.cast: "bfloat16"} if config.model.cast and stage.name == "tune" else {},
    run_name=lambda config: f"toy_S{config.seed}.W{config.trainer.batch_size}",
)
