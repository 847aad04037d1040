"""Differences of two tables of rows, metric by metric, with intervals of a paired bootstrap.

Samples are drawn with replacement, both evaluations keep the same draw, and the interval holds the middle `level` of
the means (percentile interval: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; on samples of
an evaluation: Koehn, Statistical Significance Tests for Machine Translation Evaluation, EMNLP 2004). It says how sure
the difference is over samples like these, not over trainings with other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stageline.contract import Words
from stageline.errors import ConfigError, Faults

NO_DIFFERENCE = "no difference shown"
ONE = "one sample shows nothing"
ROUNDING = 1e-9
"""Relative difference of two numbers that is none: what adding in another order makes."""
CHUNK = 2_000_000
"""Draws that are held at once."""


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    resamples: how many draws.  seed: of the draws.  level: share of the means that an interval holds, in (0, 1).
    """

    resamples: int = 1000
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        faults = Faults(ConfigError, "settings of the comparison")
        if self.resamples < 100:
            faults.add(f"{self.resamples} resamples: at least 100 make an interval")
        if not 0 < self.level < 1:
            faults.add(f"level {self.level}: it is a share between 0 and 1")
        faults.raise_if_any()

    def interval(self, differences: NDArray[np.float64]) -> tuple[float, float]:
        """Bounds of the mean of paired differences (N,), N at least 2. The same draws for the same N."""
        count, rng = len(differences), np.random.default_rng(self.seed)
        means: list[NDArray[np.float64]] = []
        left = self.resamples
        while left:
            some = min(left, max(1, CHUNK // count))
            means.append(differences[rng.integers(0, count, (some, count))].mean(axis=1))
            left -= some
        low, high = np.quantile(np.concatenate(means), [(1 - self.level) / 2, (1 + self.level) / 2])
        return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """One metric in one mode.

    a, b: means over the samples that both have.  difference: b - a.  low, high: its interval; None for one sample.
    rows: how many samples.  verdict: what is shown, in words.
    """

    metric: str
    mode: str
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    rows: int
    verdict: str


def differences_of(
    names: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    others: Sequence[Mapping[str, str]],
    how: Bootstrap,
    words: Words,
) -> list[Difference]:
    """Every metric in every mode over the samples where both have a number: the usual mode first, then controls.

    names: columns.  rows, others: of the same samples and modes in the same order.
    """
    modes = list(dict.fromkeys(row.get("mode", "") for row in rows))
    known = ["", *words.modes]  # rows of the mode that was asked for may name none
    found = []
    for mode in [*(mode for mode in known if mode in modes), *(mode for mode in modes if mode not in known)]:
        pairs = [(x, y) for x, y in zip(rows, others, strict=True) if x.get("mode", "") == mode]
        for name in [
            *[n for n in words.main_metrics if n in names],
            *[n for n in names if n not in words.main_metrics],
        ]:
            values = [(as_number(x.get(name)), as_number(y.get(name))) for x, y in pairs]
            both = np.array([(x, y) for x, y in values if x is not None and y is not None], dtype=np.float64)
            if len(both):
                found.append(difference_of(name, mode, both, how, words))
    return found


def difference_of(name: str, mode: str, both: NDArray[np.float64], how: Bootstrap, words: Words) -> Difference:
    """The difference of one metric. both: (N, 2), a and b of each sample."""
    gaps = both[:, 1] - both[:, 0]
    gaps[np.abs(gaps) <= ROUNDING * np.abs(both).max(axis=1)] = 0.0
    low, high = how.interval(gaps) if len(gaps) > 1 else (None, None)
    a, b = float(both[:, 0].mean()), float(both[:, 1].mean())
    verdict = verdict_of(name, low, high, words)
    return Difference(name, mode, a, b, float(gaps.mean()), low, high, len(gaps), verdict)


def verdict_of(name: str, low: float | None, high: float | None, words: Words) -> str:
    """What an interval shows."""
    if low is None or high is None:
        return ONE
    if low <= 0 <= high:
        return NO_DIFFERENCE
    larger = "B" if low > 0 else "A"
    if not words.higher_is_better:
        return f"{larger} is larger"
    smaller = "A" if larger == "B" else "B"
    return f"{larger if name in words.higher_is_better else smaller} is better"


def as_number(cell: str | None) -> float | None:
    """A cell of a table of rows as a finite number, or None."""
    try:
        value = float(cell or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
