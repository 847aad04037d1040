"""What the contract suite needs to know of the toy family: settings and inputs, no tests."""

from __future__ import annotations

from pathlib import Path

SHRUNK = ("data.num_train=10", "data.num_val=3", "data.num_test=3")
"""Overrides that make the preset `tiny` small enough for the suite."""
STEPS = 4
"""Optimizer steps of every stage there."""
TWO_RANKS = ("trainer.batch_size=1",)
"""Overrides for its first stage on two ranks."""
PREDICT = ()
"""Overrides with which the checkpoint is loaded to predict."""

SIZE, TEXT = (3, 5), ""
"""Height and width of a picture that it reads, and the text that it wants beside it."""


def inputs(folder: Path) -> list[str]:
    """What `predict` is given: numbers as text."""
    del folder
    return ["0.1,0.2,0.3,0.4", "1,1,1,1"]
