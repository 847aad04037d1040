"""The stages of sparse_structure: `shape_vae`, `sparse_flow`, `global_flow`, and `joint`, which is opt-in.

Static; reads nothing. A patch takes a stage back to the defaults of what it does not read, so that a change there
trains it anew for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from stageline.config import Settings
from stageline.families.sparse_structure.config.model import GlobalBranchConfig
from stageline.families.sparse_structure.config.sections import ObjectiveConfig
from stageline.stage import Stage, Stages


def _unread(section: str, settings: Settings, but: Collection[str] = ()) -> dict[str, Any]:
    """Dotted keys of a section at their defaults. but: keys that are read."""
    plain: Mapping[str, Any] = json.loads(settings.model_dump_json())
    return {f"{section}.{key}": value for key, value in plain.items() if key not in but}


_NO_GLOBAL = {
    **_unread("model.global_sparse_flow", GlobalBranchConfig(), ("start", "is_shortcut_model")),
    "model.global_sparse_flow.start": "fresh",
    "model.combine_mode": "add",
    "model.global_flow_weight": 1.0,
}
_NO_OBJECTIVE = _unread("objective", ObjectiveConfig())
_OF_SCENES = {
    "objective.batch_mode": True,
    "trainer.batch_size": 1,
    "trainer.accumulate_grad_batches": 8,
    "trainer.learning_rate": 1e-4,
    "trainer.weight_decay": 0.01,
}

STAGES = Stages(
    Stage(
        "shape_vae",
        objective="occupancy of voxels, autoencoder",
        trains=("vae.*",),
        metric="iou",
        direction="max",
        steps=2_000,
        not_evaluated="it is a part of the later stages, whose evaluation shows its reconstructions",
        defaults={"trainer.learning_rate": 2e-3, "trainer.batch_size": 8, "trainer.weight_decay": 0.01},
        patch={**_NO_GLOBAL, **_NO_OBJECTIVE},
    ),
    Stage(
        "sparse_flow",
        objective="ShortCut, each object for itself",
        trains=("sparse_flow.*",),
        matrices=("sparse_flow.blocks.*.weight",),
        metric="val_loss",
        direction="min",
        steps=20_000,
        parents={"vae": "shape_vae"},
        optional_parents=frozenset({"vae"}),
        named_parents={"sparse": ("sparse_flow", "global_flow", "joint")},
        defaults={"trainer.learning_rate": 1e-4, "trainer.batch_size": 8, "trainer.weight_decay": 0.01},
        patch={**_NO_GLOBAL, "objective.batch_mode": False, "objective.shared_draws": None}
        | {"objective.shared_draws_from": 0.0, "objective.shared_draws_prob": 1.0},
    ),
    Stage(
        "global_flow",
        objective="ShortCut, whole scenes, beside the frozen branch",
        trains=("global_sparse_flow.*",),
        matrices=("global_sparse_flow.blocks.*.weight",),
        metric="val_loss",
        direction="min",
        steps=10_000,
        parents={"sparse": "sparse_flow", "vae": "shape_vae"},
        optional_parents=frozenset({"vae"}),
        also_from={"sparse": ("global_flow", "joint")},
        defaults=_OF_SCENES,
    ),
    Stage(
        "joint",
        objective="ShortCut, whole scenes, both branches",
        trains=("sparse_flow.*", "global_sparse_flow.*"),
        matrices=("sparse_flow.blocks.*.weight", "global_sparse_flow.blocks.*.weight"),
        metric="val_loss",
        direction="min",
        steps=5_000,
        parents={"global": "global_flow", "vae": "shape_vae"},
        optional_parents=frozenset({"vae"}),
        also_from={"global": ("joint",)},
        opt_in=True,
        defaults={**_OF_SCENES, "trainer.learning_rate": 3e-5},
    ),
)
