"""The stages of film_flow: `backbone` without FiLM, then `film`, which may start from it. Static; reads nothing."""

from __future__ import annotations

from stageline.stage import Stage, Stages

STAGES = Stages(
    Stage(
        "backbone",
        trains=("*",),
        objective="flow matching without condition",
        steps=20_000,
        metric="dice",
        patch={
            "model.use_vlm_film": False,
            "model.vlm_film_decoder_stages": None,
            "model.junction_gating_config.apply_stages": "same_as_film",
        },
    ),
    Stage(
        "film",
        trains=("*",),
        objective="flow matching with FiLM",
        steps=40_000,
        metric="dice",
        parents={"default": "backbone"},
        optional_parents=frozenset({"default"}),
        also_from={"default": ("film",)},
    ),
)
