"""Prepared data of a run: several splits under one reference. No torch, no arrays.

`cache/prepared/sets/<fingerprint>/set.json` names splits with their fingerprints and digests; the digest of the set is
the SHA-256 of its bytes. It is what travels from step to step. Making splits is `stageline.verbs.prepare`; a stage
opens the set and reads of it what it touches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stageline.config import fingerprint, seal
from stageline.data.splits import (
    DIGEST,
    MANIFEST,
    NAME,
    PREPARED,
    REMEDY,
    Progress,
    SplitManifest,
    file_sha256,
    find_split,
    parse_manifest,
    sealed_json,
    silent,
)
from stageline.errors import DataError, Faults
from stageline.store import NotFoundError, Reference, Store, open_below

if TYPE_CHECKING:
    from stageline.data.reading import SplitReader

__all__ = [
    "PREPARED",
    "SETS",
    "SET_NAME",
    "Prepared",
    "PreparedData",
    "Progress",
    "compose_set",
    "file_sha256",
    "find_prepared",
    "open_prepared",
    "read_prepared",
    "refuse_incomplete",
    "set_fingerprint",
    "silent",
    "write_set",
]

SET_SCHEMA = "stageline-set/1"
SETS = f"{PREPARED}/sets"
SET_NAME = "set.json"


@dataclass(frozen=True)
class Prepared:
    """Prepared data: where and which, what they hold, whether they were there already.

    splits: name -> manifest.
    """

    reference: Reference
    splits: Mapping[str, SplitManifest]
    reused: bool = True

    @property
    def facts(self) -> dict[str, Any]:
        """What the family says of each split."""
        return {"splits": {name: dict(split.facts) for name, split in self.splits.items()}}

    @property
    def num_files(self) -> int:
        return sum(len(split.sizes) for split in self.splits.values())

    @property
    def num_bytes(self) -> int:
        return sum(split.num_bytes for split in self.splits.values())

    @property
    def hashes(self) -> dict[str, str]:
        """The small files that say which data these are, by key below the root -> SHA-256."""
        key = self.reference.uri.rsplit("/", 1)[-1]
        found = {f"{SETS}/{key}/{SET_NAME}": self.reference.digest}
        return found | {f"{PREPARED}/{s.fingerprint}/{MANIFEST}": s.digest for s in self.splits.values()}

    def inputs(self, names: Collection[str]) -> dict[str, str]:
        """Split -> fingerprint of what it was made from; of those that a stage reads."""
        return {name: split.fingerprint for name, split in sorted(self.splits.items()) if name in names}


def set_fingerprint(splits: Mapping[str, str]) -> str:
    """Name of a set. splits: name -> fingerprint of the split."""
    return fingerprint({"schema": SET_SCHEMA, "splits": dict(splits)})


def compose_set(root: Store, splits: Mapping[str, str]) -> tuple[Prepared | None, bytes]:
    """The set of these splits and its bytes, whether or not it was written down; None where a split is missing.

    splits: name -> fingerprint.
    """
    found = {}
    for name, key in sorted(splits.items()):
        split = find_split(root, key)
        if split is None:
            return None, b""
        found[name] = split
    parts = {name: {"fingerprint": split.fingerprint, "digest": split.digest} for name, split in found.items()}
    data = (json.dumps(seal({"schema": SET_SCHEMA, "splits": parts}), indent=1, sort_keys=True) + "\n").encode()
    uri = root.child(SETS, set_fingerprint(splits)).uri
    return Prepared(Reference(uri, hashlib.sha256(data).hexdigest()), found), data


def write_set(root: Store, splits: Mapping[str, str]) -> Prepared:
    """Write down the set of these committed splits. splits: name -> fingerprint. Its bytes follow from the splits."""
    prepared, data = compose_set(root, splits)
    if prepared is None:
        missing = [name for name, key in splits.items() if find_split(root, key) is None]
        raise DataError(f"splits that are not prepared: {', '.join(missing)}", remedy="`stageline prepare`")
    root.child(SETS, set_fingerprint(splits)).put(SET_NAME, data)
    return prepared


def find_prepared(root: Store, key: str) -> Prepared | None:
    """The committed set of a fingerprint with all of its splits, or None."""
    store = root.child(SETS, key)
    try:
        data = store.get(SET_NAME)
        return _read(data, Reference(store.uri, hashlib.sha256(data).hexdigest()), root.child(PREPARED))
    except NotFoundError:
        return None


def read_prepared(reference: Reference | str) -> Prepared:
    """The set that a reference names; DataError where there is none, it is another one or it lacks a split."""
    ref = reference if isinstance(reference, Reference) else Reference.parse(reference)
    try:
        data = open_below(ref.uri).get(SET_NAME)
    except NotFoundError as error:
        raise DataError(f"there are no prepared data at {ref.uri!r}", remedy="`stageline prepare`") from error
    found = hashlib.sha256(data).hexdigest()
    if found != ref.digest:
        raise DataError(
            f"the prepared data at {ref.uri!r} are others than those named: {found}, expected {ref.digest}",
            remedy="run `stageline prepare` again and use the reference it prints",
        )
    try:
        return _read(data, ref, _splits_beside(ref))
    except NotFoundError as error:
        raise DataError(
            f"prepared data at {ref.uri!r} lack a split: {error.message}", remedy="`stageline prepare`"
        ) from error


def _splits_beside(ref: Reference) -> Store:
    """The folder of all splits: a set lies two folders below it, wherever its root was moved to."""
    return open_below(ref.uri.rsplit("/", 2)[0])


def _read(data: bytes, ref: Reference, splits: Store) -> Prepared:
    """A set and its splits' manifests; NotFoundError for a split that is gone."""
    plain = sealed_json(data, f"{ref.uri}/{SET_NAME}", SET_SCHEMA)
    parts = plain.get("splits")
    if not isinstance(parts, dict) or not all(_is_part(name, part) for name, part in parts.items()):
        raise DataError(f"{ref.uri}/{SET_NAME}: `splits` names no splits", remedy=REMEDY)
    found = {}
    for name, part in parts.items():
        where = splits.child(part["fingerprint"])
        split = parse_manifest(where.get(MANIFEST), where.uri)
        if split.digest != part["digest"] or split.name != name:
            raise DataError(
                f"split {name!r} at {where.uri!r} is another than the set {ref.uri!r} names",
                remedy="run `stageline prepare` again and use the reference it prints",
            )
        found[name] = split
    return Prepared(ref, found)


def _is_part(name: str, part: Any) -> bool:
    if not NAME.fullmatch(name) or not isinstance(part, dict):
        return False
    return all(isinstance(part.get(key), str) and DIGEST.fullmatch(part[key]) for key in ("fingerprint", "digest"))


def refuse_incomplete(prepared: Prepared, names: Collection[str] | None = None) -> None:
    """DataError that names every file that is missing or of another size; reads no file, lists each folder once.

    names: of the splits to look at; None is all. What is inside the files is checked when they are first read.
    """
    splits = _splits_beside(prepared.reference)
    faults = Faults(DataError, f"prepared data at {prepared.reference.uri!r} are damaged", REMEDY)
    for name, split in prepared.splits.items():
        if names is not None and name not in names:
            continue
        store = splits.child(split.fingerprint)
        there = {info.key: info.size for info in store.list(split.folder)}
        for file, size in split.sizes.items():
            found = there.get(f"{split.folder}/{file}")
            if found is None:
                faults.add(f"{name}: {store.uri}/{split.folder}/{file}: missing")
            elif found != size:
                faults.add(f"{name}: {store.uri}/{split.folder}/{file}: {found} bytes, expected {size}")
    faults.raise_if_any()


class PreparedData:
    """Splits to be read: what a family's task and evaluation are given.

    prepared: the set.  names: of the splits that may be read; None is all.  cache_bytes: most bytes fetched from an
    object store that are kept on this machine; None is half of what is free.
    """

    def __init__(
        self, prepared: Prepared, names: Collection[str] | None = None, cache_bytes: int | None = None
    ) -> None:
        self.prepared = prepared
        self.names = tuple(name for name in prepared.splits if names is None or name in names)
        self.cache_bytes = cache_bytes

    @property
    def uri(self) -> str:
        """Where the set lies, for messages."""
        return self.prepared.reference.uri

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def split(self, name: str) -> SplitReader:
        """The rows of a split; nothing is read yet. DataError for one that is not there."""
        if name not in self.names:
            raise DataError(
                f"the prepared data at {self.uri!r} have no split {name!r}; they have {sorted(self.names)}",
                remedy="prepare the data again with a config that has this split",
            )
        from stageline.data.pod_cache import StoredFiles
        from stageline.data.reading import SplitReader

        manifest = self.prepared.splits[name]
        store = _splits_beside(self.prepared.reference).child(manifest.fingerprint, manifest.folder)
        return SplitReader(manifest, StoredFiles(store, cache_bytes=self.cache_bytes))


def open_prepared(
    reference: Reference | str, names: Collection[str] | None = None, cache_bytes: int | None = None
) -> PreparedData:
    """The data of a reference, to be read; their files must be there, with the right sizes.

    names: of the splits that will be read; None is all, and one that is not there is refused when it is asked for.
    """
    prepared = read_prepared(reference)
    refuse_incomplete(prepared, names)
    return PreparedData(prepared, names, cache_bytes)
