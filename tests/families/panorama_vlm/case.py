"""What the contract suite needs to know of panorama_vlm: settings and inputs, no tests."""

from __future__ import annotations

from pathlib import Path

SHRUNK = (
    "data.num_train=4",
    "data.num_val=2",
    "data.num_test=2",
    "trainer.batch_size=2",
    "evaluate.num_panels=1",
    "generation.max_new_tokens=4",
)
"""Overrides that make the preset `tiny` small enough for the suite."""
STEPS = 2
"""Optimizer steps of every stage there."""
TWO_RANKS = ("trainer.batch_size=1",)
"""Overrides for its first stage on two ranks."""
PREDICT = ("generation.max_new_tokens=4",)
"""Overrides with which the checkpoint is loaded to predict."""

SIZE, TEXT = (64, 128), "What colour is at the front?"
"""Height and width of a picture that it reads, and the text that it wants beside it."""


def inputs(folder: Path) -> list[str]:
    """What `predict` is given: a question about a panorama."""
    from PIL import Image

    from stageline.families.panorama_vlm.data.made import draw_room, make_room

    path = folder / "room.png"
    Image.fromarray(draw_room(make_room("test", 0, 0))).save(path)
    return [f"{path}?What colour is at the front?"]
