"""Sets of decoder stages that a test is asked of: all sixteen are, most of them in the slow tests only."""

from __future__ import annotations

from itertools import combinations

import pytest
from _pytest.mark import ParameterSet

SUBSETS = [s for n in (1, 2, 3, 4) for s in combinations(range(4), n)]
"""Every choice of decoder stages that have FiLM."""
QUICK = ((), (0,), (3,), (2, 3), (0, 1, 3), (0, 1, 2, 3))
"""None, the first, the last, those of the default, a gap, and all."""


def every_subset(*, none: bool = False) -> list[ParameterSet]:
    """Parameters of a test whose cases are not cheap: those of QUICK, and the others marked slow. none: also ()."""
    marks = {True: (), False: (pytest.mark.slow,)}
    return [pytest.param(s, id=str(s), marks=marks[s in QUICK]) for s in [*([()] if none else []), *SUBSETS]]
