"""What the contract suite needs to know of film_flow: settings and inputs, no tests."""

from __future__ import annotations

from pathlib import Path

SHRUNK = (
    "model.image_size=32",
    "data.image_size=32",
    "data.num_train=6",
    "data.num_val=3",
    "trainer.batch_size=2",
    "model.timesteps=2",
    "evaluate.num_panels=1",
)
"""Overrides that make the preset `tiny` small enough for the suite."""
STEPS = 3
"""Optimizer steps of every stage there."""
TWO_RANKS = ("trainer.batch_size=1",)
"""Overrides for its first stage on two ranks."""
PREDICT = ("evaluate.prompt=all vessels",)
"""Overrides with which the checkpoint is loaded to predict."""

SIZE, TEXT = (40, 33), ""
"""Height and width of a picture that it reads, and the text that it wants beside it."""


def inputs(folder: Path) -> list[str]:
    """What `predict` is given: a grey picture."""
    from PIL import Image

    path = folder / "picture.png"
    Image.linear_gradient("L").resize((40, 40)).convert("RGB").save(path)
    return [str(path)]
