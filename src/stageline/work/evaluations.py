"""Where an evaluation lies and what it says: `evaluations/<fingerprint>/metrics.json`, written last. Loads no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stageline.checkpoint.usercode import code_digests
from stageline.config import RunConfig, fingerprint, is_sealed, semantic
from stageline.config.bounds import read_json
from stageline.errors import DataError, Faults
from stageline.store import NotFoundError, Reference, Store

SCHEMA = "stageline-evaluation/2"
READABLE = (SCHEMA, "stageline-evaluation/1")
"""What can be read; only evaluations of SCHEMA are found again by their fingerprint."""
EVALUATIONS = "evaluations"
METRICS = "metrics.json"
ROWS = "rows.csv"
BASELINES = "baselines.json"
BASELINES_SCHEMA = "stageline-baselines/1"
COMPARISONS = "comparisons"
COMPARISON = "comparison.json"
REMEDY = "delete that folder; the evaluation is then made anew"

MEDIA_TYPES = {
    "csv": "text/csv",
    "json": "application/json",
    "jsonl": "application/jsonl",
    "mp4": "video/mp4",
    "png": "image/png",
    "txt": "text/plain",
    "wav": "audio/wav",
}
"""Suffix of a file -> what it is; anything else is application/octet-stream."""

MAPPINGS = ("metrics", "num_samples", "provenance", "data", "files", "reasons", "settings", "config")

NOT_FINITE = "it is not a finite number"

Subject = tuple[str, Mapping[str, Any]]
"""(content, facts) of a checkpoint: what an evaluation of it depends on."""


def media_type(name: str) -> str:
    """What a file of an evaluation is, by its name."""
    return MEDIA_TYPES.get(name.rpartition(".")[2].lower(), "application/octet-stream")


@dataclass(frozen=True)
class EvaluationRecord:
    """A committed evaluation.

    reference: its folder, with the hash of metrics.json.
    plain: all of metrics.json: family, metrics, reasons, num_samples, provenance, checkpoints, data, settings, files.
    """

    reference: Reference
    plain: Mapping[str, Any]
    reused: bool = True

    @property
    def name(self) -> str:
        """Its fingerprint, which is the name of its folder."""
        return self.reference.uri.rsplit("/", 1)[-1]

    @property
    def family(self) -> str:
        """Whose metrics these are; "" where the older schema does not say."""
        return str(self.plain.get("family", ""))

    @property
    def inputs(self) -> str:
        """Digest of what was measured on: the evaluation's own splits, or all data where the file says no more."""
        data: Mapping[str, str] = self.plain.get("data", {})
        return data.get("inputs", data.get("digest", ""))

    @property
    def hashes(self) -> dict[str, str]:
        """File -> SHA-256, of every file of it."""
        files: Mapping[str, Any] = self.plain.get("files", {})
        own = {name: entry if isinstance(entry, str) else entry["sha256"] for name, entry in files.items()}
        return {METRICS: self.reference.digest, **own}

    @property
    def metrics(self) -> Mapping[str, float | None]:
        metrics: Mapping[str, Any] = self.plain["metrics"]
        return {name: None if isinstance(value, str) else value for name, value in metrics.items()}

    @property
    def reasons(self) -> Mapping[str, str]:
        """Metric -> why it has no value."""
        reasons: Mapping[str, str] = self.plain.get("reasons", {})
        return {name: reasons.get(name, NOT_FINITE) for name, value in self.metrics.items() if value is None}

    @property
    def num_samples(self) -> Mapping[str, int]:
        counts: Mapping[str, int] = self.plain["num_samples"]
        return counts

    @property
    def checkpoints(self) -> Mapping[str, Mapping[str, Any]]:
        """Name -> uri, digest, content, stage, step, run; the name of a single one is ""."""
        found: Mapping[str, Mapping[str, Any]] = self.plain.get("checkpoints") or {"": self.plain["checkpoint"]}
        return found

    def measured(self, name: str = "") -> Mapping[str, float]:
        """Speeds and memory of the evaluation of one checkpoint. name: what it is called among several."""
        own: Mapping[str, Any] = self.checkpoints[name] if name else self.plain
        found: Mapping[str, float] = own.get("measured", {})
        return found

    @property
    def labels(self) -> str:
        """What the metrics are measured against, in words; empty where the family does not say."""
        return str(self.plain["provenance"].get("labels", ""))


def asked_checkpoints(config: RunConfig) -> dict[str, str]:
    """Name -> URI, or stage of the config's own run, of what `evaluate.checkpoints` names.

    {} where the run's last selected stage is meant that can be evaluated.
    """
    asked: Mapping[str, str] = getattr(getattr(config, "evaluate", None), "checkpoints", {})
    return dict(asked)


def evaluation_settings(config: RunConfig) -> dict[str, Any]:
    """The part of a config that says how to evaluate: the family's section `evaluate`."""
    section = semantic(config).get("evaluate", {})
    assert isinstance(section, dict)
    return section


def joint_fingerprint(config: RunConfig, checkpoints: Mapping[str, Subject], data_digest: str) -> str:
    """Name of the evaluation of named checkpoints; a single one is named "".

    checkpoints: name -> (content, facts); the same weights can be wired differently.  data_digest: of what they see.
    The section `model` counts too: sampling keys have their published place there.
    """
    code = code_digests(config)
    extra = {"code": sorted(code.values())} if code else {}
    return fingerprint(
        {
            **extra,
            "schema": SCHEMA,
            "checkpoints": {name: {"content": c, "facts": dict(facts)} for name, (c, facts) in checkpoints.items()},
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
        plain = read_json(data)
    except ValueError as error:
        raise DataError(f"{where} is damaged: {error}", remedy=REMEDY) from error
    if not isinstance(plain, dict) or plain.get("schema") not in READABLE:
        raise DataError(f"{where} is no evaluation ({' or '.join(READABLE)})", remedy=REMEDY)
    if not is_sealed(plain):
        raise DataError(f"{where} was changed after it was written (seal broken)", remedy=REMEDY)
    if wrong := _misfits(plain):
        raise DataError(f"{where} is no evaluation: {', '.join(wrong)} of another form", remedy=REMEDY)
    return EvaluationRecord(Reference(store.uri, hashlib.sha256(data).hexdigest()), plain)


def _misfits(plain: Mapping[str, Any]) -> list[str]:
    """Keys of a file whose values are not what an evaluation writes there: a seal does not say who made it."""
    several = plain.get("checkpoints") or {"": plain.get("checkpoint")}
    wrong = [key for key in MAPPINGS if type(plain.get(key, {})) is not dict]
    wrong += [key for key in ("metrics", "num_samples", "provenance") if key not in plain]
    if type(several) is not dict or not all(type(one) is dict for one in several.values()):
        wrong.append("checkpoints")
    if wrong:
        return wrong
    files = plain.get("files", {}).values()
    hashes = [entry.get("sha256") if type(entry) is dict else entry for entry in files]
    data = plain.get("data", {})
    fit = {
        "metrics": all(value is None or isinstance(value, int | float | str) for value in plain["metrics"].values()),
        "files": all(type(sha256) is str for sha256 in hashes),
        "data": all(type(data.get(key, "")) is str for key in ("inputs", "digest")),
        "notes": type(plain.get("notes", [])) is list,
    }
    return [key for key, is_fit in fit.items() if not is_fit]


def find_evaluations(run: Store) -> list[EvaluationRecord]:
    """Every committed evaluation of a run, also of the older schema, by name."""
    found = [find_evaluation(run, name) for name in run.folders(EVALUATIONS)]
    return [record for record in found if record is not None]


def find_baselines(evaluation: Store) -> dict[str, Any]:
    """What lies beside an evaluation of trivial methods on the same data; {} where nothing does.

    evaluation: its folder. `baselines` is name -> metrics, rows, told; else `off` or `failed` is a sentence that says
    why there are none. DataError for a file that was changed since.
    """
    try:
        data = evaluation.get(BASELINES)
    except NotFoundError:
        return {}
    return parse_baselines(data, f"{evaluation.uri}/{BASELINES}")


def parse_baselines(data: bytes, where: str) -> dict[str, Any]:
    """The bytes of such a record. where: its name in errors. DataError where they are none, or were changed."""
    try:
        plain = read_json(data)
    except ValueError as error:
        raise DataError(f"{where} is damaged: {error}", remedy="delete that file and evaluate again") from error
    if not isinstance(plain, dict) or plain.get("schema") != BASELINES_SCHEMA or not is_sealed(plain):
        raise DataError(
            f"{where} is no record of baselines, or was changed after it was written",
            remedy="delete that file and evaluate again",
        )
    return plain


def refuse_damaged(run: Store, found: EvaluationRecord) -> None:
    """DataError that names every file of an evaluation that is missing or not what was written."""
    faults = Faults(DataError, f"evaluation {found.reference.uri}", REMEDY)
    store = run.child(EVALUATIONS, found.name)
    for name, sha256 in found.hashes.items():
        try:
            data = store.get(name)
        except NotFoundError:
            faults.add(f"{name}: missing")
            continue
        if hashlib.sha256(data).hexdigest() != sha256:
            faults.add(f"{name}: its hash differs from the one recorded")
    faults.raise_if_any()
