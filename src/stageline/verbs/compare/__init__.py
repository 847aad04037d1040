"""The verb compare: two evaluations sample by sample. Loads no torch.

sides        which evaluations; what cannot be compared
bootstrap    differences and their intervals
samples      what the rows of one evaluation say, with intervals
comparison   making a comparison and leaving it below the first run
"""

from __future__ import annotations

from stageline.verbs.compare.bootstrap import NO_DIFFERENCE, Bootstrap, Difference, difference_of
from stageline.verbs.compare.comparison import ComparisonRecord, compare_evaluations

__all__ = ["NO_DIFFERENCE", "Bootstrap", "ComparisonRecord", "Difference", "compare_evaluations", "difference_of"]
