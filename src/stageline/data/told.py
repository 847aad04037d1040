"""What a family tells people of data: of those it prepared, noted in the run, and of those it makes a config for.

Counts and warnings of prepared splits stand in the facts of a split's manifest, `told` as pairs of words and text and
`warnings` as sentences; a run has them in `data.json`, from which the report shows them. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stageline.store import Store

DATA = "data.json"


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
