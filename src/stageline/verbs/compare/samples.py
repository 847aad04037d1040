"""What the rows of one evaluation say of a metric: its mean with an interval, and differences from controls and from
trivial methods, sample by sample. Intervals are those of `bootstrap`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stageline.contract import Words
from stageline.verbs.compare.bootstrap import ONE, Bootstrap, as_number

AGREES = 1e-6
"""A mean over rows farther than this from the metric itself is another number, and has no interval here."""
ByMode = Mapping[str, Mapping[str, float]]
"""Mode -> sample -> value of a metric; the usual mode first."""


@dataclass(frozen=True)
class Estimate:
    """A mean over samples. low, high: its 95 % interval, None for one sample.  samples: how many."""

    mean: float
    low: float | None
    high: float | None
    samples: int

    @property
    def holds_zero(self) -> bool:
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high

    @property
    def interval(self) -> str:
        """In words."""
        return ONE if self.low is None or self.high is None else f"{self.low:.3f} to {self.high:.3f}"


@dataclass(frozen=True)
class Contrast:
    """What an evaluation is compared with, and by how much it differs.

    name: caption of the other.  other: the other's mean.  difference: own minus other.
    """

    name: str
    other: Estimate
    difference: Estimate

    @property
    def may_be_noise(self) -> bool:
        """Whether samples were compared, and what they differ by holds 0. One sample says neither this nor more."""
        return self.difference.holds_zero

    def is_better(self, metric: str, words: Words) -> bool:
        """Whether the evaluation is the better one of both, beyond noise."""
        return self._shows_something and (self.difference.mean > 0) == (metric in words.higher_is_better)

    def is_worse(self, metric: str, words: Words) -> bool:
        """Whether the other is the better one of both, beyond noise."""
        return self._shows_something and not self.is_better(metric, words)

    @property
    def _shows_something(self) -> bool:
        return self.difference.low is not None and not self.difference.holds_zero


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of paired differences or of scores with the interval of a bootstrap. values: at least one."""
    low, high = Bootstrap().interval(np.array(values, dtype=np.float64)) if len(values) > 1 else (None, None)
    return Estimate(float(np.mean(values)), low, high, len(values))


def values_by_mode(rows: Sequence[Mapping[str, str]], metric: str, words: Words) -> dict[str, dict[str, float]]:
    """A metric of every row that has a number for it, as `ByMode`. rows: of a table of one checkpoint."""
    usual = next(iter(words.modes), "")
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        value = as_number(row.get(metric))
        if value is not None and row.get("id"):
            found.setdefault(row.get("mode") or usual, {})[row["id"]] = value
    return {mode: found[mode] for mode in sorted(found, key=lambda mode: mode != usual)}


def interval_of_metric(value: float, values: Mapping[str, float]) -> Estimate | None:
    """The mean of a metric's rows with its interval; None where the metric is another number than their mean.

    value: of the metric.  values: sample -> its own.
    """
    if len(values) < 2:
        return None
    found = estimate(list(values.values()))
    return found if abs(found.mean - value) <= AGREES else None


def contrasts(modes: ByMode, words: Words) -> list[Contrast]:
    """The usual mode against every control."""
    usual, *controls = modes or [""]
    found = (_contrast(words.modes.get(mode, mode), modes[usual], modes[mode]) for mode in controls)
    return [contrast for contrast in found if contrast is not None]


def baseline_contrasts(metric: str, modes: ByMode, baselines: Mapping[str, Any], words: Words) -> list[Contrast]:
    """The usual mode against every trivial method. baselines: what lies beside the evaluation, by name."""
    own = next(iter(modes.values()), {})
    found = []
    for name, scores in baselines.items():
        values = {
            sample: float(row[metric])
            for sample, row in scores["rows"].items()
            if isinstance(row.get(metric), int | float)
        }
        found.append(_contrast(words.baselines.get(name, name), own, values))
    return [contrast for contrast in found if contrast is not None]


def _contrast(name: str, own: Mapping[str, float], other: Mapping[str, float]) -> Contrast | None:
    pairs = [(own[sample], value) for sample, value in other.items() if sample in own]
    if not pairs:
        return None
    return Contrast(name, estimate([value for _, value in pairs]), estimate([a - b for a, b in pairs]))
