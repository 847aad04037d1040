"""What of its data a stage or an evaluation depends on: the inputs of its splits, known before any data are made.

A fingerprint takes what splits are made from (their part of the config and the hashes of their source files), never
the digest of prepared data: so a plan tells what will happen though the cache was deleted. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stageline.config import RunConfig, fingerprint
from stageline.contract import FamilyConfig
from stageline.data.prepared import Prepared, compose_set, read_prepared
from stageline.data.splits import Split
from stageline.errors import DataError
from stageline.store import Reference, Store
from stageline.work.data import (
    Hashes,
    SplitForecast,
    forecast,
    hash_seen,
    run_splits,
    split_fingerprints,
    unseen_sentence,
    unseen_sources,
)


@dataclass(frozen=True)
class RunData:
    """What is known of the data of a run.

    inputs: split -> fingerprint of what it is made from; "" where source files would have to be read first.
    prepared: the set of prepared splits, None while some are still to be made; it need not be written down yet.
    reason: why some are still to be made.
    unseen: why some can be told by the job alone that prepares them; "" where all sources can be seen from here.
    given: whether somebody named the set, which then holds all that may be read.
    """

    inputs: Mapping[str, str] = field(default_factory=dict)
    prepared: Prepared | None = None
    reason: str = ""
    unseen: str = ""
    given: bool = False

    @property
    def reference(self) -> Reference | None:
        """Of the prepared data, None while they are still to be made."""
        return None if self.prepared is None else self.prepared.reference

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the prepared data say about themselves."""
        return {} if self.prepared is None else self.prepared.facts

    @property
    def is_decided(self) -> bool:
        """Whether the inputs of every split are known."""
        return all(self.inputs.values())


UNKNOWN = RunData()
"""Data that nobody looked for yet."""


def given_data(reference: Reference) -> RunData:
    """The data that a reference names. DataError where there are none, or others."""
    found = read_prepared(reference)
    return RunData(found.inputs(found.splits), found, given=True)


def forecast_data(
    config: RunConfig, family: FamilyConfig, root: Store, *, hashes: Hashes | None = None, read: bool = False
) -> RunData:
    """What preparing would find for a run.

    hashes: of the source files, where the caller has just read them.
    read: read source files of which nothing is noted; else their inputs stay unknown.
    """
    splits = run_splits(config, family)
    hidden = unseen_sources(splits)
    unseen = unseen_sentence(hidden) if hidden else ""
    if hashes is not None:
        keys = split_fingerprints(config, splits, hashes)
        found = compose_set(root, keys)[0] if all(keys.values()) else None
        return RunData(keys, found, "" if found else unseen or "never prepared with this data section", unseen)
    parts = forecast(config, root, splits)
    keys = {part.split.name: part.fingerprint for part in parts}
    if read:
        keys |= _read(config, parts)
    found = compose_set(root, keys)[0] if all(keys.values()) else None
    return RunData(keys, found, "" if found else unseen or _why(parts), unseen)


def _read(config: RunConfig, parts: Sequence[SplitForecast]) -> dict[str, str]:
    """Fingerprints of the splits of which nothing is noted, from their files."""
    unknown = tuple(part.split for part in parts if not part.fingerprint)
    return split_fingerprints(config, unknown, hash_seen(unknown))


def _why(parts: Sequence[SplitForecast]) -> str:
    missing = [part for part in parts if part.manifest is None]
    reasons = {part.reason for part in missing}
    if len(missing) == len(parts) and len(reasons) == 1:
        return reasons.pop()
    return "; ".join(f"{part.split.name}: {part.reason}" for part in missing)


def data_inputs(
    data: RunData, splits: Sequence[Split], config: RunConfig, root: Store, *, reader: str = ""
) -> dict[str, str] | None:
    """Split -> what it is made from, of some splits; None where source files would have to be read first.

    data: what is known of the run's.  config: the run's.
    reader: who is to read them: DataError where a given set lacks one; "" only asks what they would be.
    """
    missing = [split for split in splits if split.name not in data.inputs]
    if missing and reader and data.given:
        assert data.reference is not None
        raise DataError(
            f"the prepared data at {data.reference.uri!r} lack what {reader} reads: "
            f"{', '.join(split.name for split in missing)}",
            remedy="prepare the data again with this config",
        )
    known = dict(data.inputs)
    known |= {part.split.name: part.fingerprint for part in forecast(config, root, tuple(missing))}
    inputs = {split.name: known[split.name] for split in sorted(splits, key=lambda split: split.name)}
    return inputs if all(inputs.values()) else None


def data_digest(data: RunData, inputs: Mapping[str, str]) -> str:
    """One text for the prepared bytes of some splits, "" while they are still to be made."""
    if data.prepared is None or not set(inputs) <= set(data.prepared.splits):
        return ""
    return fingerprint({"digests": {name: data.prepared.splits[name].digest for name in sorted(inputs)}})
