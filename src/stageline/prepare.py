"""Prepared data of a config: made once per content, claimed and committed like a checkpoint, shared by runs.

They lie under `cache/prepared/<fingerprint>/`: a folder of files, claimed by a conditional create, and `manifest.json`,
written last and by one preparer only. The fingerprint covers the part of the config that data depend on and the
SHA-256 of every source file; the digest of prepared data is the SHA-256 of the manifest. Loads torch only where data
have to be made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stageline.config import RunConfig, fingerprint
from stageline.errors import DataError, DiskFullError
from stageline.families import FamilyConfig, family_config, load_family
from stageline.store import NotFoundError, Reference, Store, open_store

Progress = Callable[[int, int, str], None]
"""(done, total, what)"""

SCHEMA = "stageline-prepared/1"
MANIFEST = "manifest.json"
PREPARED = "cache/prepared"
SOURCES = "cache/sources"
"""Hashes of source files with the size and time they had: lets a plan forecast without reading gigabytes."""
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Prepared:
    """Prepared data: where and which, what they say about themselves, whether they were there already."""

    reference: Reference
    facts: Mapping[str, Any]
    num_files: int
    num_bytes: int
    reused: bool


def silent(done: int, total: int, what: str) -> None:
    """A progress callback that shows nothing."""


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a local file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def source_names(paths: tuple[Path, ...]) -> dict[str, Path]:
    """Source files by their path below the folder they share, so that a data set that moves stays the same."""
    if not paths:
        return {}
    absolute = [path.absolute() for path in paths]
    shared = Path(os.path.commonpath([path.parent for path in absolute]))
    return {path.relative_to(shared).as_posix(): path for path in absolute}


def hash_sources(config: RunConfig, family: FamilyConfig, progress: Progress = silent) -> dict[str, str]:
    """SHA-256 of every file the data are made from, read anew. DataError lists every file that cannot be read."""
    names = source_names(family.source_files(config))
    hashes: dict[str, str] = {}
    faults: list[str] = []
    for done, (name, path) in enumerate(names.items(), 1):
        try:
            hashes[name] = file_sha256(path)
        except OSError as error:
            faults.append(f"  - {str(path)!r}: {error.strerror or error}")
        progress(done, len(names), "hashing source files")
    if faults:
        raise DataError(
            f"{len(faults)} source files cannot be read\n" + "\n".join(faults), remedy="mend or remove them"
        )
    return hashes


def prepared_fingerprint(config: RunConfig, family: FamilyConfig, sources: Mapping[str, str]) -> str:
    """Name of the prepared data that a config and its source files lead to."""
    return fingerprint(
        {"schema": SCHEMA, "family": family.name, "data": family.data_key(config), "sources": dict(sources)}
    )


def find_prepared(store: Store, key: str) -> Prepared | None:
    """The committed prepared data of a fingerprint, or None."""
    try:
        data = store.get(f"{PREPARED}/{key}/{MANIFEST}")
    except NotFoundError:
        return None
    reference = Reference(store.child(PREPARED, key).uri, hashlib.sha256(data).hexdigest())
    manifest = parse_manifest(data, reference.uri)
    sizes = [int(record["bytes"]) for record in manifest["files"].values()]
    return Prepared(reference, manifest["facts"], len(sizes), sum(sizes), reused=True)


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """The manifest as plain data; DataError for one that is damaged or of another schema."""
    remedy = "delete that folder of the cache; the data are then prepared anew"
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise DataError(f"{where}/{MANIFEST} is damaged: {error}", remedy=remedy) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise DataError(f"{where}/{MANIFEST} is no manifest of prepared data ({SCHEMA})", remedy=remedy)
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


def forecast_prepared(config: RunConfig, store: Store) -> tuple[Prepared | None, str]:
    """What `prepare_data` would find, without reading source files: (prepared data or None, reason).

    Source files whose size and time are those recorded count as unchanged; running hashes them.
    """
    family = family_config(config.family)
    names = source_names(family.source_files(config))
    if names:
        recorded = _read_memo(store, config, family)
        if recorded is None:
            return None, "never prepared with this data section"
        changed = [name for name, path in names.items() if recorded.get(name, [])[:2] != _stamp(path)]
        changed += sorted(set(recorded) - set(names))
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            return None, f"source files changed: {', '.join(changed[:3])}{more}"
        sources = {name: str(recorded[name][2]) for name in names}
    else:
        sources = {}
    found = find_prepared(store, prepared_fingerprint(config, family, sources))
    return found, "" if found else "never prepared with this data section"


def prepare_data(config: RunConfig, progress: Progress = silent) -> Prepared:
    """Prepared data of a config, reused where the same config and the same source bytes made some before.

    DataError lists every fault of the source files before the first write; DiskFullError where they do not fit.
    """
    family = family_config(config.family)
    store = open_store(config.root)
    sources = hash_sources(config, family, progress)
    key = prepared_fingerprint(config, family, sources)
    found = find_prepared(store, key)
    if found is None:
        found = _make_prepared(config, family, store, key, sources, progress)
    _write_memo(store, config, family, sources)
    return found


def _make_prepared(
    config: RunConfig, family: FamilyConfig, root: Store, key: str, sources: Mapping[str, str], progress: Progress
) -> Prepared:
    store = root.child(PREPARED, key)
    with _scratch(store) as scratch:
        target = scratch / "data"
        target.mkdir()
        facts = load_family(config.family).prepare(config, target, progress)
        paths = sorted(path for path in target.rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in paths)
        free = store.free_bytes()
        if free is not None and free < size:
            raise DiskFullError(
                f"prepared data need {size} bytes at {store.uri!r}, {free} are free", remedy="make room"
            )
        folder = _claim_folder(store)
        files = {}
        for done, path in enumerate(paths, 1):
            name = path.relative_to(target).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            store.put(f"{folder}/{name}", path)
            progress(done, len(paths), "storing prepared data")
    manifest = {
        "schema": SCHEMA,
        "family": family.name,
        "data": family.data_key(config),
        "sources": dict(sources),
        "facts": facts,
        "folder": folder,
        "files": files,
    }
    data = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    won = store.create(MANIFEST, data)
    if not won:  # another preparer was faster: its data are the data
        store.delete_tree(folder)
    made = find_prepared(root, key)
    assert made is not None
    return replace(made, reused=not won)


def _claim_folder(store: Store) -> str:
    """A folder of our own: `data`, or `data-2`, … where another preparer works or died."""
    number = 1
    while True:
        name = "data" if number == 1 else f"data-{number}"
        if store.create(f"{name}/claim.json", json.dumps({"pid": os.getpid()}).encode()):
            return name
        number += 1


@contextmanager
def _scratch(store: Store) -> Iterator[Path]:
    """A local folder for files on their way, on the store's own disk where it has one; removed at the end."""
    local = store.local_path()
    parent = local.parent if local else None
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=".preparing-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


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
                faults.append(f"  - {name}: missing")
                continue
        if not path.is_file():
            faults.append(f"  - {name}: missing")
        elif not _is_intact(path, record):
            faults.append(f"  - {name}: size or hash differs from the manifest")
    if faults:
        raise DataError(
            f"prepared data at {ref.uri!r} are damaged: {len(faults)} files\n" + "\n".join(faults),
            remedy="delete that folder of the cache; `stageline prepare` makes it anew",
        )
    return folder


def _is_intact(path: Path, record: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == record["bytes"] and file_sha256(path) == record["sha256"]


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _memo_key(config: RunConfig, family: FamilyConfig) -> str:
    return f"{SOURCES}/{fingerprint({'family': family.name, 'data': family.data_key(config)})}.json"


def _read_memo(store: Store, config: RunConfig, family: FamilyConfig) -> dict[str, list[Any]] | None:
    try:
        memo = json.loads(store.get(_memo_key(config, family)))
    except (NotFoundError, ValueError):  # a forecast only; running reads the files themselves
        return None
    return memo if isinstance(memo, dict) else None


def _write_memo(store: Store, config: RunConfig, family: FamilyConfig, sources: Mapping[str, str]) -> None:
    if sources:
        names = source_names(family.source_files(config))
        memo = {name: [*_stamp(names[name]), sha] for name, sha in sources.items() if name in names}
        store.put(_memo_key(config, family), json.dumps(memo).encode())
