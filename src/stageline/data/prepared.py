"""Prepared data as they lie in the cache: the manifest, finding them, having them as a local folder. No torch.

`cache/prepared/<fingerprint>/manifest.json` is written last and by one preparer only; the digest of prepared data is
the SHA-256 of its bytes. Making them is `stageline.verbs.prepare`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stageline.config import is_sealed
from stageline.errors import DataError, Faults
from stageline.store import NotFoundError, Reference, Store, open_store

Progress = Callable[[int, int, str], None]
"""(done, total, what)"""

SCHEMA = "stageline-prepared/1"
MANIFEST = "manifest.json"
PREPARED = "cache/prepared"
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Prepared:
    """Prepared data: where and which, what they say about themselves, whether they were there already.

    hashes: file name -> SHA-256.
    """

    reference: Reference
    facts: Mapping[str, Any]
    hashes: Mapping[str, str]
    num_bytes: int
    reused: bool

    @property
    def num_files(self) -> int:
        return len(self.hashes)


def silent(done: int, total: int, what: str) -> None:
    """A progress callback that shows nothing."""


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a local file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def find_prepared(store: Store, key: str) -> Prepared | None:
    """The committed prepared data of a fingerprint, or None."""
    try:
        data = store.get(f"{PREPARED}/{key}/{MANIFEST}")
    except NotFoundError:
        return None
    reference = Reference(store.child(PREPARED, key).uri, hashlib.sha256(data).hexdigest())
    manifest = parse_manifest(data, reference.uri)
    hashes = {name: str(record["sha256"]) for name, record in manifest["files"].items()}
    num_bytes = sum(int(record["bytes"]) for record in manifest["files"].values())
    return Prepared(reference, manifest["facts"], hashes, num_bytes, reused=True)


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """The manifest as plain data; DataError for one that is damaged, of another schema or changed since."""
    remedy = "delete that folder of the cache; the data are then prepared anew"
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise DataError(f"{where}/{MANIFEST} is damaged: {error}", remedy=remedy) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise DataError(f"{where}/{MANIFEST} is no manifest of prepared data ({SCHEMA})", remedy=remedy)
    if not is_sealed(manifest):
        raise DataError(f"{where}/{MANIFEST} was changed after it was written (seal broken)", remedy=remedy)
    return manifest


def read_manifest(reference: Reference) -> dict[str, Any]:
    """The manifest of a reference; DataError where there is none or it is another one."""
    try:
        data = open_store(reference.uri).get(MANIFEST)
    except NotFoundError as error:
        raise DataError(f"there are no prepared data at {reference.uri!r}", remedy="`stageline prepare`") from error
    found = hashlib.sha256(data).hexdigest()
    if found != reference.digest:
        raise DataError(
            f"the prepared data at {reference.uri!r} are others than those named: {found}, expected {reference.digest}",
            remedy="run `stageline prepare` again and use the reference it prints",
        )
    return parse_manifest(data, reference.uri)


def refuse_damaged(reference: Reference) -> None:
    """DataError that names every file of prepared data that is missing or not what was written; reads every byte."""
    manifest = read_manifest(reference)
    store = open_store(reference.uri).child(str(manifest["folder"]))
    faults = []
    for name, record in manifest["files"].items():
        total = hashlib.sha256()
        try:
            for chunk in store.stream(name):
                total.update(chunk)
        except NotFoundError:
            faults.append(f"{name}: missing")
            continue
        if total.hexdigest() != record["sha256"]:
            faults.append(f"{name}: its hash differs from the manifest's")
    _refuse(reference.uri, faults)


def _refuse(uri: str, found: list[str]) -> None:
    remedy = "delete that folder of the cache; `stageline prepare` makes it anew"
    faults = Faults(DataError, f"prepared data at {uri!r} are damaged", remedy)
    faults.extend(found)
    faults.raise_if_any()


def materialise(reference: Reference | str, scratch: Path) -> Path:
    """A local folder with the prepared data of a reference, every file's hash checked.

    On local disk that is the folder itself; from an object store they are copied into `scratch`, once.
    DataError names every file that is missing or damaged.
    """
    ref = reference if isinstance(reference, Reference) else Reference.parse(reference)
    manifest = read_manifest(ref)
    store = open_store(ref.uri).child(str(manifest["folder"]))
    local = store.local_path()
    folder = local if local is not None else scratch / ref.digest
    faults = []
    for name, record in manifest["files"].items():
        path = folder / name
        if local is None and not _is_intact(path, record):
            try:
                store.download(name, path)
            except NotFoundError:
                faults.append(f"{name}: missing")
                continue
        if not path.is_file():
            faults.append(f"{name}: missing")
        elif not _is_intact(path, record):
            faults.append(f"{name}: size or hash differs from the manifest")
    _refuse(ref.uri, faults)
    return folder


def _is_intact(path: Path, record: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == record["bytes"] and file_sha256(path) == record["sha256"]
