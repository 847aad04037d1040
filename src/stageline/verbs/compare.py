"""The verb compare: two evaluations over the same samples, metric by metric, with intervals. Loads no torch.

A metric is compared where the rows of both evaluations have it, sample by sample. The interval of the mean difference
is that of a paired bootstrap: samples are drawn with replacement, both evaluations keep the same draw, and the interval
holds the middle `level` of the means (percentile interval: Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13; the paired test on samples: Koehn, Statistical Significance Tests for Machine Translation Evaluation,
EMNLP 2004). It says how sure the difference is over samples like these, not over trainings with other seeds.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stageline.checkpoint.identity import RUN_NAME
from stageline.config import fingerprint, seal
from stageline.contract import Words
from stageline.errors import ConfigError, DataError, Faults, PlanError
from stageline.families import family_words, load_config
from stageline.store import Store, open_store
from stageline.work.evaluations import (
    COMPARISON,
    COMPARISONS,
    EVALUATIONS,
    METRICS,
    ROWS,
    EvaluationRecord,
    find_evaluation,
    find_evaluations,
    refuse_damaged,
)

SCHEMA = "stageline-comparison/1"
NO_DIFFERENCE = "no difference shown"
CHUNK = 2_000_000
"""Draws that are held at once."""

Key = tuple[str, str]
"""(sample id, mode)"""


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


@dataclass(frozen=True)
class Side:
    """One of the two evaluations: the record, and which of its checkpoints ("" for a single one)."""

    run: Store
    record: EvaluationRecord
    name: str = ""

    @property
    def checkpoint(self) -> Mapping[str, Any]:
        return self.record.checkpoints[self.name]

    @property
    def title(self) -> str:
        return f"{self.record.reference.uri}{f'#{self.name}' if self.name else ''}"

    def metrics(self) -> set[str]:
        """Names of its metrics."""
        head = f"{self.name}." if self.name else ""
        return {name.removeprefix(head) for name in self.record.metrics if name.startswith(head)}

    def rows(self) -> dict[Key, Mapping[str, str]]:
        """Its rows by sample and mode."""
        text = self.run.get(f"{EVALUATIONS}/{self.record.name}/{ROWS}").decode()
        found = [row for row in csv.DictReader(io.StringIO(text)) if row.get("checkpoint", "") in ("", self.name)]
        rows: dict[Key, Mapping[str, str]] = {(row.get("id", ""), row.get("mode", "")): row for row in found}
        if len(rows) != len(found) or not rows:
            raise DataError(
                f"{self.title}: its {len(found)} rows cannot be told apart by id and mode",
                remedy="evaluate the checkpoint again with this version",
            )
        return rows

    def told(self) -> dict[str, Any]:
        """What a comparison says of it."""
        keys = ("run", "stage", "step", "uri", "digest", "content")
        return {
            "evaluation": str(self.record.reference),
            "name": self.name,
            **{key: self.checkpoint.get(key) for key in keys},
            "data": self.record.inputs,
        }


@dataclass(frozen=True)
class ComparisonRecord:
    """A comparison and where it lies. family: of the first evaluation.  plain: all of comparison.json."""

    uri: str
    family: str
    plain: Mapping[str, Any]
    differences: tuple[Difference, ...]


def compare_evaluations(
    a: str, b: str, *, root: str = ".", bootstrap: Bootstrap | None = None, intersect: bool = False
) -> ComparisonRecord:
    """Compare two evaluations and leave the result in `comparisons/<fingerprint>/` below the first one's run.

    a, b: an evaluation's folder or fingerprint, a run's folder or name, or a config file; with `#name` one of an
        evaluation's several checkpoints.
    root: where runs lie that are named only.  bootstrap: how intervals are made.
    intersect: take the samples that both have, even where they have others or their data differ.
    PlanError for an evaluation against itself; DataError for other samples or other data.
    """
    how = bootstrap or Bootstrap()
    one, other = find_side(a, root), find_side(b, root)
    for side in (one, other):
        refuse_damaged(side.run, side.record)
    refuse_itself(one, other)
    rows, others = one.rows(), other.rows()
    if not intersect:
        modes = modes_of(rows) & modes_of(others)
        refuse_others(one, other, *({key for key in side if key[1] in modes} for side in (rows, others)))
    shared = [key for key in sorted(rows) if key in others]
    if not shared:
        raise DataError(f"{one.title} and {other.title} have no sample in common", remedy="evaluate both on one split")
    names = [name for name in columns_of(rows) if name in one.metrics() & other.metrics()]
    family = one.record.family
    words = family_words(family)
    differences = differences_of(names, [rows[k] for k in shared], [others[k] for k in shared], how, words)
    if not differences:
        raise DataError(
            f"{one.title} and {other.title} have no metric in common that their rows hold",
            remedy="only metrics that every row has can be compared",
        )
    if all(rows[key].get(name) == others[key].get(name) for key in shared for name in names):
        raise PlanError(
            f"{one.title} and {other.title} have equal rows: they measure one model in one way",
            remedy="name two evaluations that can differ",
        )
    plain = {
        "schema": SCHEMA,
        "a": one.told(),
        "b": other.told(),
        "settings": {"resamples": how.resamples, "seed": how.seed, "level": how.level, "intersect": intersect},
        "metrics": [vars(difference) for difference in differences],
        "left_out": {"a": len(rows) - len(shared), "b": len(others) - len(shared)},
    }
    sides = [(side.record.reference.digest, side.name) for side in (one, other)]
    place = one.run.child(COMPARISONS, fingerprint({"sides": sides, "settings": plain["settings"]}))
    plain = seal(plain)
    place.put(COMPARISON, (json.dumps(plain, indent=1, ensure_ascii=False) + "\n").encode())
    return ComparisonRecord(f"{place.uri}/{COMPARISON}", family, plain, tuple(differences))


def find_side(named: str, root: str) -> Side:
    """The evaluation that a name means. PlanError where there is none, or more than one."""
    text, sign, name = named.rpartition("#") if "#" in named else (named, "", "")
    run, record = _find(text if sign else named, root)
    if name not in record.checkpoints:
        several = ", ".join(f"{text or named}#{known}" for known in record.checkpoints if known)
        raise (
            PlanError(
                f"{named!r}: the evaluation is of {len(record.checkpoints)} checkpoints", remedy=f"name one: {several}"
            )
            if several
            else PlanError(f"{named!r}: the evaluation is of one checkpoint", remedy=f"name it as {text!r}")
        )
    return Side(run, record, name)


def _find(named: str, root: str) -> tuple[Store, EvaluationRecord]:
    if named.endswith((".yaml", ".yml")) and Path(named).is_file():
        config = load_config(named)
        return _only(open_store(config.root).child("runs", config.run), named)
    uri, sign, digest = named.partition("@sha256:")
    store = open_store(uri.removesuffix(f"/{METRICS}"))
    if store.exists(METRICS):
        above, between, name = store.uri.rpartition(f"/{EVALUATIONS}/")
        run = open_store(above) if between else None
        found = find_evaluation(run, name) if run is not None else None
        if run is None or found is None:
            raise PlanError(f"{named!r} is no evaluation of a run", remedy=f"they lie in <run>/{EVALUATIONS}/")
        if sign and found.reference.digest != digest:
            raise PlanError(
                f"{uri!r} is another evaluation than the one named: digest {found.reference.digest}, expected {digest}",
                remedy="name it anew, or find out who replaced it",
            )
        return run, found
    if store.folders(EVALUATIONS) or store.exists(RUN_NAME):
        return _only(store, named)
    runs = open_store(root).child("runs")
    if "/" not in named and runs.exists(f"{named}/{RUN_NAME}"):
        return _only(runs.child(named), named)
    if re.fullmatch(r"[0-9a-f]{8,64}", named):
        hits = [
            (runs.child(run), name)
            for run in runs.folders()
            for name in runs.folders(f"{run}/{EVALUATIONS}")
            if name.startswith(named) and runs.exists(f"{run}/{EVALUATIONS}/{name}/{METRICS}")
        ]
        if len(hits) == 1:
            found = find_evaluation(*hits[0])
            assert found is not None
            return hits[0][0], found
        if hits:
            raise PlanError(
                f"{named!r} means {len(hits)} evaluations",
                remedy=f"name one: {', '.join(run.child(EVALUATIONS, name).uri for run, name in hits)}",
            )
    raise PlanError(
        f"there is no evaluation {named!r}",
        remedy="name an evaluation's folder, a run's folder or a config; `stageline runs show` lists evaluations",
    )


def _only(run: Store, named: str) -> tuple[Store, EvaluationRecord]:
    """The one evaluation of a run."""
    found = find_evaluations(run)
    if len(found) == 1:
        return run, found[0]
    if not found:
        raise PlanError(f"{named!r}: nothing has been evaluated at {run.uri}", remedy="`stageline evaluate` first")
    lines = "\n".join(f"  {record.reference.uri}" for record in found)
    raise PlanError(f"{named!r} has {len(found)} evaluations:\n{lines}", remedy="name one of them")


def refuse_itself(one: Side, other: Side) -> None:
    """PlanError where both sides are one evaluation, or the same weights measured in the same way on the same data."""
    same = one.record.name == other.record.name and one.name == other.name
    settings = [side.record.plain.get("settings") for side in (one, other)]
    equal = one.checkpoint.get("content") == other.checkpoint.get("content") and settings[0] == settings[1]
    if same or (equal and one.record.inputs == other.record.inputs):
        why = "they are one evaluation" if same else "their checkpoints hold the same weights and were asked the same"
        raise PlanError(
            f"{one.title} and {other.title} are not compared: {why}",
            remedy="name evaluations of two checkpoints, or of one checkpoint with two settings",
        )


def modes_of(rows: Iterable[Key]) -> set[str]:
    """The modes that rows are in; one that only one evaluation has is left out of a comparison."""
    return {mode for _, mode in rows}


def refuse_others(one: Side, other: Side, rows: set[Key], others: set[Key]) -> None:
    """DataError where the evaluations are over different data or different samples, with what differs.

    rows, others: their samples in the modes that both have.
    """
    faults = Faults(
        DataError, "evaluations to compare", "evaluate both on the same data, or say --intersect for what both have"
    )
    digests = [side.record.inputs for side in (one, other)]
    if digests[0] != digests[1]:
        faults.add(f"their data differ: {digests[0][:12]} of {one.title}, {digests[1][:12]} of {other.title}")
    for side, lacking in ((one, others - rows), (other, rows - others)):
        if lacking:
            some = ", ".join(f"{name} {mode}".strip() for name, mode in sorted(lacking)[:3])
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            faults.add(f"{side.title} has no row {some}{more}")
    faults.raise_if_any()


def columns_of(rows: Mapping[Key, Mapping[str, str]]) -> list[str]:
    """Names of the columns that may be compared, in their order."""
    first: Mapping[str, str] = next(iter(rows.values()))
    return [name for name in first if name not in ("checkpoint", "id", "mode")]


def differences_of(
    names: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    others: Sequence[Mapping[str, str]],
    how: Bootstrap,
    words: Words,
) -> list[Difference]:
    """Every metric in every mode over the samples where both have a number.

    names: columns.  rows, others: of the same samples and modes in the same order.
    """
    modes = list(dict.fromkeys(row.get("mode", "") for row in rows))
    usual = [mode for mode in words.modes if mode in modes] + [mode for mode in modes if mode not in words.modes]
    found = []
    for mode in usual:
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
    low, high = how.interval(gaps) if len(gaps) > 1 else (None, None)
    a, b = float(both[:, 0].mean()), float(both[:, 1].mean())
    verdict = verdict_of(name, low, high, words)
    return Difference(name, mode, a, b, float(gaps.mean()), low, high, len(gaps), verdict)


def verdict_of(name: str, low: float | None, high: float | None, words: Words) -> str:
    """What an interval shows."""
    if low is None or high is None:
        return "one sample shows nothing"
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
