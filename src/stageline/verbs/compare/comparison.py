"""The verb compare: two evaluations over the same samples, metric by metric, with intervals.

A metric is compared where the rows of both evaluations have it, sample by sample.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stageline.config import fingerprint, seal
from stageline.errors import DataError, Faults
from stageline.families import family_words
from stageline.verbs.compare.about import about, ratios
from stageline.verbs.compare.bootstrap import Bootstrap, Difference, differences_of
from stageline.verbs.compare.sides import Key, Side, find_side, refuse_itself
from stageline.work.evaluations import COMPARISON, COMPARISONS, refuse_damaged

SCHEMA = "stageline-comparison/1"


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
    known = [about(side) for side in (one, other)]
    plain = {
        "schema": SCHEMA,
        "a": {**one.told(), **known[0]},
        "b": {**other.told(), **known[1]},
        "ratios": ratios(*known),
        "settings": {"resamples": how.resamples, "seed": how.seed, "level": how.level, "intersect": intersect},
        "metrics": [vars(difference) for difference in differences],
        "left_out": {"a": len(rows) - len(shared), "b": len(others) - len(shared)},
    }
    sides = [(side.record.reference.digest, side.name) for side in (one, other)]
    place = one.run.child(COMPARISONS, fingerprint({"sides": sides, "settings": plain["settings"]}))
    plain = seal(plain)
    place.put(COMPARISON, (json.dumps(plain, indent=1, ensure_ascii=False) + "\n").encode())
    return ComparisonRecord(f"{place.uri}/{COMPARISON}", family, plain, tuple(differences))


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
