"""The verb `train`: one stage of one run, from its parents (or where it stopped) to its final checkpoint.

`train_stage` runs in each rank: alone in this process, or as one of torchrun's. `decision` says what there is to do,
`loading` brings weights in, `session` holds what belongs to the stage directory while it is ours.
"""

from __future__ import annotations

from stageline.verbs.train.stage import StageResult, train_stage

__all__ = ["StageResult", "train_stage"]
