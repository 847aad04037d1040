"""What a family tells people: its words, what it prepared, noted in the run, and what it makes a config of.

Counts and warnings of prepared splits stand in the facts of a split's manifest, `told` as pairs of words and text and
`warnings` as sentences; a run has them in `data.json`, from which the report shows them. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stageline.store import Store

DATA = "data.json"


@dataclass(frozen=True)
class Words:
    """How a family names things to people; the report and the command line know no other words of it.

    modes: evaluation mode -> caption, the usual one first: a metric of another mode is named `<metric>_<mode>`.
    metrics: metric -> caption.
    pictures: picture (its name without mode and the number at its end) -> what it shows, in the order of showing.
    samples: column of the rows -> words before its text, told of a sample above its pictures.
    main_metrics: at most ten, told first.
    headline: sentence of the report's head; may use {metric} names, and is left out where one of them has no value.
    higher_is_better: metrics whose larger value is the better one; of the others the smaller.
    told: field of an evaluation's provenance -> words before its value; told before the numbers, in this order.
    cautions: field of the provenance -> sentence that stands before the numbers where the field is true.
    mode_field: field of the provenance that names the mode an evaluation was asked for.
    baselines: trivial method that an evaluation is compared with -> caption.
    compared: what the family's `compared` tells of a checkpoint -> caption.
    """

    modes: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, str] = field(default_factory=dict)
    main_metrics: tuple[str, ...] = ()
    headline: str = ""
    higher_is_better: frozenset[str] = frozenset()
    told: Mapping[str, str] = field(default_factory=dict)
    cautions: Mapping[str, str] = field(default_factory=dict)
    mode_field: str = "mode"
    compared: Mapping[str, str] = field(default_factory=dict)
    baselines: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Proposal:
    """A config for a user's own data.

    raw: as it would stand in a file.  told: what was found and chosen, one sentence each; those that begin with
    `warning:` are to be looked at.
    """

    raw: Mapping[str, Any]
    told: tuple[str, ...]


def note_told(run: Store, splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Note in a run what is told of its splits; returns a line for each, and one for each warning.

    run: the run's directory.  splits: name -> facts of its manifest.
    """
    told = {
        name: {key: facts[key] for key in ("told", "warnings")} for name, facts in splits.items() if "told" in facts
    }
    if told:
        data = (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode()
        if not run.exists(DATA) or run.get(DATA) != data:
            run.put(DATA, data)
    elif run.exists(DATA):  # of other data, before
        run.delete(DATA)
    lines = [
        f"{name}: " + "; ".join(f"{words} {text}" for words, text in found["told"]) for name, found in told.items()
    ]
    return lines + [f"warning: {name}: {text}" for name, found in told.items() for text in found["warnings"]]
