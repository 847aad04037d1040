"""The torch-free half of the toy family."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from stageline.config import DataSettings, EvaluateBase, RunConfig, Settings, added
from stageline.contract import FamilyConfig, Split, Words
from stageline.stage import Branch, Stage, Stages

from .inheritance import externals, inherit, trains

ROWS = {"train": 32, "val": 16, "test": 8}
"""Prepared rows of each split; a run uses the first ones."""


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
    num_train: int = Field(default=22, ge=0, le=ROWS["train"])
    num_val: int = Field(default=7, ge=0, le=ROWS["val"])
    num_test: int = Field(default=5, ge=1, le=ROWS["test"])
    tokens: bool = True
    poison: tuple[int, ...] = ()
    broken: tuple[int, ...] = ()
    """Training rows that cannot be used; the split has the others."""
    max_broken: int = 2


class ToyEvaluate(EvaluateBase):
    weights: Literal["ema", "raw"] = added("ema")


class ToyConfig(RunConfig):
    model: ToyModelConfig = ToyModelConfig()
    data: ToyDataConfig = ToyDataConfig()
    evaluate: ToyEvaluate = ToyEvaluate()

    OF_EVALUATION: ClassVar[tuple[str, ...]] = ("data.num_test",)


STAGES = Stages(
    Stage(
        "base",
        trains=("*",),
        matrices=("body.*",),
        objective="mse",
        steps=10,
        metric="error",
        direction="min",
        named_parents={"before": ("base",)},
    ),
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
        not_evaluated="it is whole already",
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


def facts(config: ToyConfig, stage: Stage) -> dict[str, Any]:
    """What a checkpoint says about itself."""
    return {"width": 8}


def split(name: str, config: ToyConfig | None = None) -> Split:
    """A split, which depends on how many rows it has and which of them are broken; test rows are no user's to make."""
    broken = config.data.broken if config is not None and name == "train" else ()
    key = {"rows": ROWS[name], **({"broken": list(broken)} if broken else {})}
    return Split(name, key, own_code=name != "test")


FAMILY_CONFIG = FamilyConfig(
    name="toy",
    config=ToyConfig,
    stages=STAGES,
    presets={
        "tiny": {
            "family": "toy",
            "stages": ["base", "tune", "join", "even"],
            "model": {"table": "made from nothing", "variant": "small"},
            "trainer": {"batch_size": 4, "learning_rate": 0.02},
        },
        "dropped": {"family": "toy", "model": {"dropout": 0.1}},
    },
    facts=facts,
    fact_rules={},
    inherit=inherit,
    splits=lambda config, _stage: (split("train", config), split("val")),
    evaluation_splits=lambda _config: (split("test"),),
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
        baselines={"mean": "mean of training"},
        compared={"rows": "rows to train on", "speed": "rows per second, measured"},
    ),
    compared=lambda config, stage, measured: {"stage": stage.name, "rows": config.data.num_train, **measured},
    branches={"wide": Branch(("trainer.batch_size=8",), shares=("base",))},
    run_name=lambda config: f"toy_S{config.seed}.W{config.trainer.batch_size}",
)
