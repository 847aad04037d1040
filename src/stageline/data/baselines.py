"""What a family compares its models with: trivial methods on the same data. No torch.

Their scores are a record of their own beside an evaluation (`stageline.verbs.evaluate.baselines`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stageline.data.prepared import PreparedData


@dataclass(frozen=True)
class BaselineScores:
    """How good one trivial method is.

    metrics: name -> number, under the names that the family's evaluations use.
    rows: id of a sample -> the same for it alone.
    told: how it was made and what it took from the training split, JSON values.
    """

    metrics: Mapping[str, float | None]
    rows: Mapping[str, Mapping[str, float | None]]
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Baselines:
    """The trivial methods of a family.

    version: another number wherever the same data would give other scores.
    splits(config): names of the splits that are read; whatever is fitted is fitted to `train` alone.
    settings(config): what the scores depend on beside those splits, JSON values.
    score(config, data): name -> scores. Captions of the names are the family's `words.baselines`.
    off(config, data): why they are not made, in a sentence; "" where they are. Reads no arrays.
    """

    version: int
    splits: Callable[[Any], tuple[str, ...]]
    settings: Callable[[Any], Mapping[str, Any]]
    score: Callable[[Any, PreparedData], Mapping[str, BaselineScores]]
    off: Callable[[Any, PreparedData], str] = lambda _config, _data: ""
