"""Prepared data of a config: made once per content, claimed and committed like a checkpoint, shared by runs.

They lie under `cache/prepared/<fingerprint>/`: a folder of files, claimed by a conditional create, and `manifest.json`,
written last and by one preparer only. The fingerprint covers the part of the config that data depend on and the
SHA-256 of every source file; the digest of prepared data is the SHA-256 of the manifest. Loads torch only where data
have to be made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from stageline.config import RunConfig, fingerprint, seal
from stageline.contract import FamilyConfig
from stageline.data.prepared import (
    MANIFEST,
    PREPARED,
    SCHEMA,
    Prepared,
    Progress,
    file_sha256,
    find_prepared,
    parse_manifest,
    silent,
)
from stageline.errors import DataError, DiskFullError
from stageline.families import family_config, load_family
from stageline.store import NotFoundError, Store, open_store
from stageline.store.holder import is_dead, this_process
from stageline.store.scratch import scratch_folder

CLAIM = "claim.json"
SOURCES = "cache/sources"
"""Hashes of source files with the size and time they had: lets a plan forecast without reading gigabytes."""


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
    with _scratch(root) as scratch:
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
    plain = {
        "schema": SCHEMA,
        "family": family.name,
        "data": family.data_key(config),
        "sources": dict(sources),
        "facts": facts,
        "folder": folder,
        "files": files,
    }
    data = (json.dumps(seal(plain), indent=1, sort_keys=True) + "\n").encode()
    won = store.create(MANIFEST, data)
    if not won:  # another preparer was faster: its data are the data
        store.delete_tree(folder)
    _sweep_claims(store)
    made = find_prepared(root, key)
    assert made is not None
    return replace(made, reused=not won)


def _claim_folder(store: Store) -> str:
    """A folder of our own: `data`, or `data-2`, … where another preparer works or died."""
    number = 1
    while True:
        name = "data" if number == 1 else f"data-{number}"
        if store.create(f"{name}/{CLAIM}", json.dumps(this_process()).encode()):
            return name
        number += 1


def _sweep_claims(store: Store) -> None:
    """Remove what preparers that died on this machine had half written, now that the data are there."""
    winner = parse_manifest(store.get(MANIFEST), store.uri)["folder"]
    for name in store.folders():
        with suppress(NotFoundError, ValueError, KeyError):  # without a readable claim nobody knows whose it is
            if name != winner and is_dead(json.loads(store.get(f"{name}/{CLAIM}"))):
                store.delete_tree(name)


@contextmanager
def _scratch(root: Store) -> Iterator[Path]:
    """A local folder for files on their way, on the store's own disk where it has one; removed at the end."""
    place = root.local_path(PREPARED)
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    with scratch_folder("preparing", place) as path:
        yield path


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
