"""Scores of a family's trivial methods beside an evaluation: `baselines.json`, a record of its own.

They depend on the data and not on the checkpoint, so they are kept below the root by the digests of the splits
(`cache/baselines/<key>.json`) and copied beside each evaluation of these data. Whatever goes wrong with them is said in
the record and on standard error: an evaluation that was made stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from stageline.config import RunConfig, fingerprint, seal
from stageline.data.prepared import PreparedData, read_prepared, refuse_incomplete
from stageline.errors import InterruptedRunError, StagelineError
from stageline.families import load_family
from stageline.printing import say
from stageline.store import NotFoundError, Store, open_below, open_store
from stageline.telemetry import finite_json, redact
from stageline.verbs.evaluate.rows import as_json
from stageline.work.evaluations import (
    BASELINES,
    BASELINES_SCHEMA,
    EvaluationRecord,
    find_baselines,
    parse_baselines,
)

if TYPE_CHECKING:
    from stageline.contract import Baselines

KEPT = "cache/baselines"


def keep_baselines(config: RunConfig, record: EvaluationRecord, data: str) -> None:
    """Put the scores of the family's trivial methods beside an evaluation, unless those of this version are there.

    data: reference of the prepared data that it was made on.
    """
    family = load_family(config.family)
    if family.baselines is None:
        return
    beside = open_below(record.reference.uri)
    try:
        found = find_baselines(beside)
        if "baselines" not in found or found["version"] != family.baselines.version:
            plain = _scored(config, family.baselines, data)
            beside.put(BASELINES, _sealed({"family": config.family, **plain}))
    except InterruptedRunError:
        raise
    except Exception as error:  # noqa: BLE001  # told, and the evaluation stands
        sentence = redact(error.message if isinstance(error, StagelineError) else f"{type(error).__name__}: {error}")
        say(f"evaluate: no baselines: {sentence}", error=True)
        _try(lambda: beside.put(BASELINES, _sealed({"family": config.family, "failed": sentence})))


def _try(action: Callable[[], None]) -> None:
    try:
        action()
    except StagelineError as error:
        say(f"evaluate: that could not be noted: {error.message}", error=True)


def _scored(config: RunConfig, baselines: Baselines, data: str) -> dict[str, Any]:
    """The record's own part: scores, made or kept from an earlier time, or why there are none."""
    prepared = read_prepared(data)
    names = [name for name in baselines.splits(config) if name in prepared.splits]
    opened = PreparedData(prepared, names, config.data.cache_bytes)
    if why := baselines.off(config, opened):
        say(f"evaluate: no baselines: {why}", error=True)
        return {"off": why}
    depends = {
        "family": config.family,
        "version": baselines.version,
        "data": {name: prepared.splits[name].digest for name in sorted(names)},
        "settings": dict(baselines.settings(config)),
    }
    root, key = open_store(config.root).child(*KEPT.split("/")), f"{fingerprint(depends)}.json"
    kept = _kept(root, key)
    if kept is None:
        refuse_incomplete(prepared, names)
        scores = baselines.score(config, opened)
        found = {name: _plain(vars(score)) for name, score in scores.items()}
        kept = {**depends, "baselines": found}
        root.put(key, _sealed(kept))
    return {name: value for name, value in kept.items() if name != "seal"}


def _kept(root: Store, key: str) -> dict[str, Any] | None:
    try:
        data = root.get(key)
    except NotFoundError:
        return None
    return parse_baselines(data, f"{root.uri}/{key}")


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = as_json(value)
    return found


def _sealed(plain: Mapping[str, Any]) -> bytes:
    whole = seal(finite_json({"schema": BASELINES_SCHEMA, **plain}))
    return (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode()
