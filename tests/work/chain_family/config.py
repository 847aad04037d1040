"""Stages with an optional and a required parent, one that the config may need, one that is only named, two roles, a
variant, weights of others, a fact only reported."""

from __future__ import annotations

from stageline.config import DataSettings, RunConfig, Settings
from stageline.contract import External, FamilyConfig, Parent
from stageline.stage import Inheritance, Stage, Stages


class ChainModelConfig(Settings):
    width: int = 8
    shade: str = "light"
    word: str = ""
    tower: str = ""
    needy: bool = False
    """Whether no stage starts without its optional parent."""


class ChainConfig(RunConfig):
    model: ChainModelConfig = ChainModelConfig()
    data: DataSettings = DataSettings()


STAGES = Stages(
    Stage(
        "base", trains=("*",), objective="mse", steps=10, metric="dice", named_parents={"before": ("base", "middle")}
    ),
    Stage(
        "middle",
        trains=("head.*",),
        objective="mse",
        steps=10,
        metric="dice",
        parents={"default": "base"},
        optional_parents=frozenset({"default"}),
        also_from={"default": ("middle",)},
    ),
    Stage(
        "last",
        trains=("*",),
        objective="mse",
        steps=10,
        metric="dice",
        parents={"default": "middle", "extra": "base"},
        optional_parents=frozenset({"extra"}),
    ),
)


def inherit(parent: Parent, config: ChainConfig, stage: Stage) -> tuple[Inheritance, ...]:
    """The first parent gives the network, the other one its side."""
    network, side = ("drop", "load") if parent.role == "extra" else ("load", "drop")
    return (
        Inheritance("network", network, "same shape", ("backbone.*",)),  # type: ignore[arg-type]
        Inheritance("side", side, "same shape", ("side.*",)),  # type: ignore[arg-type]
    )


def externals(config: ChainConfig, stage: Stage) -> tuple[External, ...]:
    """All but the first stage have a tower of others."""
    tower = config.model.tower
    return (External("tower", tower),) if tower and stage.name != "base" else ()


FAMILY_CONFIG = FamilyConfig(
    name="chain",
    config=ChainConfig,
    stages=STAGES,
    presets={"tiny": {"family": "chain"}},
    facts=lambda config, _stage: {"width": config.model.width, "shade": config.model.shade},
    fact_rules={"shade": {"resume": "equal", "seed": "report", "evaluate": "equal"}},
    inherit=inherit,
    externals=externals,
    needs=lambda config, stage: dict.fromkeys(stage.optional_parents, "needy") if config.model.needy else {},
    splits=lambda _config, _stage: (),
    evaluation_splits=lambda _config: (),
    check=lambda _config, _stage: None,
    variant=lambda config: config.model.word,
)
