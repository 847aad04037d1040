"""What the contract suite needs to know of sparse_structure: settings and inputs, no tests."""

from __future__ import annotations

import json
from pathlib import Path

SHRUNK = (
    "data.num_train=6",
    "data.num_val=2",
    "data.num_test=2",
    "trainer.batch_size=2",
    "evaluate.num_panels=1",
)
"""Overrides that make the preset `tiny` small enough for the suite."""
STEPS = 4
"""Optimizer steps of every stage there: the global branch is awake after three."""
TWO_RANKS = ("trainer.batch_size=1",)
"""Overrides for its first stage on two ranks."""
PREDICT = ()
"""Overrides with which the checkpoint is loaded to predict."""


def inputs(folder: Path) -> list[str]:
    """What `predict` is given: a folder that says which objects a scene has."""
    scene = folder / "a room"
    scene.mkdir(exist_ok=True)
    (scene / "scene.json").write_text(json.dumps({"objects": [{"class": "table"}, {"class": "chair"}]}))
    return [str(scene)]
