"""Two stages that say the same facts, and one that starts from both."""

from __future__ import annotations

from stageline.config import DataSettings, RunConfig, Settings
from stageline.contract import FamilyConfig, Parent
from stageline.stage import Inheritance, Stage, Stages


class PairModelConfig(Settings):
    width: int = 8
    claims: str = ""


class PairConfig(RunConfig):
    model: PairModelConfig = PairModelConfig()
    data: DataSettings = DataSettings()


STAGES = Stages(
    Stage("left", trains=("*",), objective="mse", steps=10, metric="dice"),
    Stage("right", trains=("*",), objective="mse", steps=10, metric="dice"),
    Stage(
        "both",
        trains=("*",),
        objective="mse",
        steps=10,
        metric="dice",
        parents={"left": "left", "right": "right"},
        also_from={"left": ("right",), "right": ("left",)},
    ),
)


def inherit(parent: Parent, config: PairConfig, stage: Stage) -> tuple[Inheritance, ...]:
    """Each role gives the half of its own name; `model.claims` is the half that both roles give."""
    given = {parent.role, *([config.model.claims] if config.model.claims else [])}
    return tuple(
        Inheritance(half, "load" if half in given else "drop", "as its role says", (f"{half}.*",))
        for half in ("left", "right")
    )


FAMILY_CONFIG = FamilyConfig(
    name="pair",
    config=PairConfig,
    stages=STAGES,
    presets={"tiny": {"family": "pair"}},
    facts=lambda config, _stage: {"width": config.model.width},
    fact_rules={},
    inherit=inherit,
    splits=lambda _config, _stage: (),
    evaluation_splits=lambda _config: (),
    check=lambda _config, _stage: None,
)
