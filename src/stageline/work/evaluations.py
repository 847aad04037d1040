"""Where an evaluation lies and what it says: `evaluations/<fingerprint>/metrics.json`, written last. Loads no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stageline.config import RunConfig, fingerprint, is_sealed, semantic
from stageline.errors import DataError, Faults
from stageline.store import NotFoundError, Reference, Store

SCHEMA = "stageline-evaluation/1"
EVALUATIONS = "evaluations"
METRICS = "metrics.json"
REMEDY = "delete that folder; the evaluation is then made anew"


@dataclass(frozen=True)
class EvaluationRecord:
    """A committed evaluation.

    hashes: name -> SHA-256 of every file of it.
    plain: all of metrics.json: metrics, num_samples, provenance, checkpoint, data, settings, files.
    """

    reference: Reference
    plain: Mapping[str, Any]
    reused: bool = True

    @property
    def hashes(self) -> dict[str, str]:
        return {METRICS: self.reference.digest, **self.plain["files"]}

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
    """The committed evaluation of a fingerprint in a run, or None. DataError for one that was changed since."""
    store = run.child(EVALUATIONS, name)
    try:
        data = store.get(METRICS)
    except NotFoundError:
        return None
    where = f"{store.uri}/{METRICS}"
    try:
        plain = json.loads(data)
    except ValueError as error:
        raise DataError(f"{where} is damaged: {error}", remedy=REMEDY) from error
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        raise DataError(f"{where} is no evaluation ({SCHEMA})", remedy=REMEDY)
    if not is_sealed(plain):
        raise DataError(f"{where} was changed after it was written (seal broken)", remedy=REMEDY)
    return EvaluationRecord(Reference(store.uri, hashlib.sha256(data).hexdigest()), plain)


def refuse_damaged(run: Store, found: EvaluationRecord) -> None:
    """DataError that names every file of an evaluation that is missing or not what was written."""
    faults = Faults(DataError, f"evaluation {found.reference.uri}", REMEDY)
    store = run.child(EVALUATIONS, found.reference.uri.rsplit("/", 1)[-1])
    for name, sha256 in found.hashes.items():
        try:
            data = store.get(name)
        except NotFoundError:
            faults.add(f"{name}: missing")
            continue
        if hashlib.sha256(data).hexdigest() != sha256:
            faults.add(f"{name}: its hash differs from the one recorded")
    faults.raise_if_any()
