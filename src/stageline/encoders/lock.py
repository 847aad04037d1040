"""The lock of a root: `cache/externals/lock.json` says which digest each external had when it was prepared. No torch.

It is what makes a plan able to tell, and every pod read the same weights. One sealed file for all runs of the root;
writers replace it conditionally, so that two of them at once lose nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stageline.config import is_sealed, seal
from stageline.config.bounds import read_json
from stageline.encoders.external import External, ExternalFile, files_digest, generated_digest
from stageline.encoders.sources import Source, find_source, name_fault
from stageline.errors import DataError, Faults, StagelineError
from stageline.store import NotFoundError, Store

SCHEMA = "stageline-externals/1"
EXTERNALS = "cache/externals"
LOCK_NAME = "lock.json"
HASH = re.compile(r"[0-9a-f]{64}")
REMEDY = "delete it; `stageline prepare` writes it anew"

Progress = Callable[[int, int, str], None]
"""(done, total, what)"""


@dataclass(frozen=True)
class Locked:
    """What the lock says of an external.

    key: `External.key`.  digest: over the files.  origin, stamps: of the source when it was read, as `Source` has them.
    """

    key: str
    digest: str
    files: tuple[ExternalFile, ...]
    origin: str
    stamps: Mapping[str, list[int]]

    @property
    def num_bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Digests:
    """What is known of some externals.

    known: name -> digest.  unknown: why each other one has none yet, a sentence each.
    """

    known: Mapping[str, str]
    unknown: tuple[str, ...] = ()


def read_lock(root: Store) -> dict[str, Locked]:
    """Everything that is locked below a root, by `External.key`; DataError for a damaged lock."""
    try:
        return _parse(root.child(EXTERNALS).get(LOCK_NAME), f"{root.uri}/{EXTERNALS}/{LOCK_NAME}")
    except NotFoundError:
        return {}


def external_digests(lock: Mapping[str, Locked], externals: Iterable[External], *, compare: bool = False) -> Digests:
    """The digests of externals, generated or locked.

    compare: also look whether the source, where this machine has it, still is what was locked (no file is read).
    """
    known, unknown = {}, []
    for external in externals:
        locked = lock.get(external.key)
        if external.generated:
            known[external.name] = generated_digest(external)
        elif locked is None:
            unknown.append(f"{external} is not locked yet: `stageline prepare` resolves and hashes it")
        elif compare and (reason := _changed(locked, external)):
            unknown.append(f"{external} changed since it was locked ({reason}): `stageline prepare` hashes it again")
        else:
            known[external.name] = locked.digest
    return Digests(known, tuple(unknown))


def _changed(locked: Locked, external: External) -> str:
    """In what a source differs from what was locked; "" where it does not, or is not on this machine."""
    try:
        source = find_source(external)
        stamps = source.stamps
    except (StagelineError, OSError):
        return ""
    if source.origin != locked.origin:
        return f"{locked.origin} -> {source.origin}"
    if locked.origin.startswith("commit "):  # a snapshot of the hub is never written again
        return ""
    names = sorted(name for name in {*stamps, *locked.stamps} if stamps.get(name) != locked.stamps.get(name))
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def make_locked(external: External, source: Source, files: tuple[ExternalFile, ...]) -> Locked:
    """What the lock will say of an external whose files were just read."""
    return Locked(external.key, files_digest(files), files, source.origin, source.stamps)


def write_locked(root: Store, locked: Locked) -> Locked | None:
    """Note an external in the lock, together with whatever others note there; returns what was noted of it before."""
    store = root.child(EXTERNALS)
    while True:
        try:
            data, token = store.get_with_token(LOCK_NAME)
        except NotFoundError:
            if store.create(LOCK_NAME, _bytes({locked.key: locked})):
                return None
            continue
        noted = _parse(data, f"{store.uri}/{LOCK_NAME}")
        before = noted.get(locked.key)
        if before == locked or store.replace(LOCK_NAME, _bytes({**noted, locked.key: locked}), token):
            return before


def _bytes(lock: Mapping[str, Locked]) -> bytes:
    rows = [asdict(lock[key]) for key in sorted(lock)]
    return (json.dumps(seal({"schema": SCHEMA, "externals": rows}), indent=1, sort_keys=True) + "\n").encode()


def _parse(data: bytes, where: str) -> dict[str, Locked]:
    """A lock, checked field by field."""
    try:
        plain = read_json(data)
    except ValueError as error:
        raise DataError(f"{where} is damaged: {error}", remedy=REMEDY) from error
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA or not isinstance(plain.get("externals"), list):
        raise DataError(f"{where} is no {SCHEMA}", remedy=REMEDY)
    if not is_sealed(plain):
        raise DataError(f"{where} was changed after it was written (seal broken)", remedy=REMEDY)
    faults = Faults(DataError, where, REMEDY)
    found = {}
    for number, row in enumerate(plain["externals"]):
        try:
            locked = _parse_row(row)
        except (TypeError, KeyError, ValueError) as error:
            faults.add(f"entry {number}: {error}")
            continue
        found[locked.key] = locked
    faults.raise_if_any()
    return found


def _parse_row(row: Any) -> Locked:
    files = tuple(ExternalFile(str(file["name"]), str(file["sha256"]), int(file["bytes"])) for file in row["files"])
    for file in files:
        if name_fault(file.name):
            raise ValueError(name_fault(file.name))
        if not HASH.fullmatch(file.sha256) or file.bytes < 0:
            raise ValueError(f"{file.name!r} has no hash or size")
    if not files or files_digest(files) != row["digest"]:
        raise ValueError("its digest is not that of its files")
    stamps = {str(name): [int(number) for number in stamp] for name, stamp in row["stamps"].items()}
    return Locked(str(row["key"]), str(row["digest"]), files, str(row["origin"]), stamps)
