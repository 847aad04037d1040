"""Where an evaluation lies and what it says: `evaluations/<fingerprint>/metrics.json`, written last. Loads no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stageline.config import RunConfig, fingerprint, semantic
from stageline.errors import DataError
from stageline.store import NotFoundError, Reference, Store

SCHEMA = "stageline-evaluation/1"
EVALUATIONS = "evaluations"
METRICS = "metrics.json"


@dataclass(frozen=True)
class EvaluationRecord:
    """A committed evaluation.

    plain: all of metrics.json: metrics, num_samples, provenance, checkpoint, data, settings, files.
    """

    reference: Reference
    plain: Mapping[str, Any]
    reused: bool = True

    @property
    def metrics(self) -> Mapping[str, Any]:
        metrics: Mapping[str, Any] = self.plain["metrics"]
        return metrics

    @property
    def num_samples(self) -> Mapping[str, int]:
        counts: Mapping[str, int] = self.plain["num_samples"]
        return counts

    @property
    def labels(self) -> str:
        """What the metrics are measured against, in words; empty where the family does not say."""
        return str(self.plain["provenance"].get("labels", ""))


def evaluation_settings(config: RunConfig) -> dict[str, Any]:
    """The part of a config that says how to evaluate: the family's section `evaluate`."""
    section = semantic(config).get("evaluate", {})
    assert isinstance(section, dict)
    return section


def evaluation_fingerprint(config: RunConfig, content: str, facts: Mapping[str, Any], data_digest: str) -> str:
    """Name of the evaluation of one checkpoint's weights in one mode on one data set.

    content: the checkpoint's.  facts: what it says about its model, since the same weights can be wired differently.
    The section `model` counts too: sampling keys have their published place there.
    """
    return fingerprint(
        {
            "schema": SCHEMA,
            "checkpoint": content,
            "facts": dict(facts),
            "settings": evaluation_settings(config),
            "model": semantic(config).get("model"),
            "seed": config.seed,
            "data": data_digest,
        }
    )


def find_evaluation(run: Store, name: str) -> EvaluationRecord | None:
    """The committed evaluation of a fingerprint in a run, or None."""
    store = run.child(EVALUATIONS, name)
    try:
        data = store.get(METRICS)
    except NotFoundError:
        return None
    where = f"{store.uri}/{METRICS}"
    try:
        plain = json.loads(data)
    except ValueError as error:
        raise DataError(f"{where} is damaged: {error}", remedy="delete that folder; it is then made anew") from error
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        raise DataError(f"{where} is no evaluation ({SCHEMA})", remedy="delete that folder; it is then made anew")
    return EvaluationRecord(Reference(store.uri, hashlib.sha256(data).hexdigest()), plain)
