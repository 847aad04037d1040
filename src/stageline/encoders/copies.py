"""Copies of externals below the root, `cache/externals/<digest>/`, and `external_folder` for families. No torch.

A root on local disk holds hard links where its file system allows, so that a copy costs nothing; it is read in place.
From an object store each node fetches a copy once. Every file is compared with the lock before it is first used, which
is remembered by size and time beside it, so that ranks and later starts do not hash it again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from stageline.config import RunConfig, canonical_json
from stageline.encoders.external import External, generated_digest
from stageline.encoders.lock import (
    EXTERNALS,
    Locked,
    Progress,
    external_digests,
    make_locked,
    read_lock,
    write_locked,
)
from stageline.encoders.sources import fetch_source, find_source, hash_open, read_files
from stageline.errors import DataError, DiskFullError, Faults, MissingPartError
from stageline.store import NotFoundError, Store, open_store
from stageline.store.keys import HIDDEN, path_below
from stageline.store.local import Local
from stageline.store.locks import hold_lock
from stageline.store.scratch import pod_folder

NOTE = "checked"
CHECKED = f"{HIDDEN}{NOTE}"
"""Beside the files of a copy: their sizes and times when they were last compared with the lock."""


@dataclass(frozen=True)
class LockOutcome:
    """What came of locking an external.

    locked: None for a generated one.  before: digest that was locked until now, "" for none.
    """

    external: External
    locked: Locked | None
    before: str = ""

    @property
    def digest(self) -> str:
        return generated_digest(self.external) if self.locked is None else self.locked.digest

    def __str__(self) -> str:
        """One line for people."""
        head = f"{self.external}: {self.digest[:12]}"
        if self.locked is None:
            return f"{head}, made by the family"
        changed = f", was {self.before[:12]}" if self.before not in ("", self.digest) else ""
        return f"{head}{changed}, {len(self.locked.files)} files, {self.locked.num_bytes} bytes"


def lock_external(root: Store, external: External, progress: Progress) -> LockOutcome:
    """Resolve an external, hash its files, copy them below the root and note them in its lock.

    What is locked, copied and unchanged by size and time is not read again; what is copied and whose source this
    machine lacks stays as it is. MissingPartError for a source that is nowhere, DataError with every fault of its
    files, DiskFullError.
    """
    if external.generated:
        return LockOutcome(external, None)
    noted = read_lock(root).get(external.key)
    copied = noted is not None and has_copy(root, noted)
    if noted is not None and copied and not external_digests({noted.key: noted}, [external], compare=True).unknown:
        return LockOutcome(external, noted, noted.digest)
    progress(0, 1, f"hashing {external}")
    source = fetch_source(external)
    locked = make_locked(external, source, read_files(external, source))
    if not has_copy(root, locked):
        progress(0, 1, f"copying {external}")
        _copy(root.child(EXTERNALS, locked.digest), source.folder, locked)
    before = write_locked(root, locked)
    outcome = LockOutcome(external, locked, "" if before is None else before.digest)
    progress(1, 1, f"locked {outcome}")
    return outcome


def has_copy(root: Store, locked: Locked) -> bool:
    """Whether every file of it lies below the root, with the right size."""
    there = {info.key: info.size for info in root.child(EXTERNALS, locked.digest).list()}
    return all(there.get(file.name) == file.bytes for file in locked.files)


def external_digest(root: Store, external: External) -> str:
    """The digest that an external has now: locked, generated, or of the source that this machine has."""
    if external.generated:
        return generated_digest(external)
    locked = read_lock(root).get(external.key)
    if locked is None:
        source = find_source(external)
        locked = make_locked(external, source, read_files(external, source))
    return locked.digest


def external_folder(config: RunConfig, external: External) -> Path:
    """A local folder with the files of an external, verified against the lock of the config's root.

    config: any with the run's `root`.  external: with files; a single file lies in its folder under its own name.
    The root's own copy where that is on disk, without a link in it when it was compared (what reads it opens it by
    path); fetched once per node from an object store; the source on this machine where the root has no copy of it.
    Before anything is locked there is nothing to verify against.
    MissingPartError where it is nowhere; DataError where its files are not what was locked.
    """
    return open_external(open_store(config.root), external)


def open_external(root: Store, external: External) -> Path:
    """The same for a root that is open."""
    assert not external.generated, f"{external} has no files: the family makes it"
    locked = read_lock(root).get(external.key)
    if locked is None:
        return find_source(external).folder
    store = root.child(EXTERNALS, locked.digest)
    place = store.local
    fetched = pod_folder() / "externals" / locked.digest
    if place is None and fetched.is_dir():
        return _checked(fetched, locked, external)
    if has_copy(root, locked):
        return (
            _fetched(store, locked, external, fetched)
            if place is None
            else _checked(place.path(), locked, external, place)
        )
    try:
        source = find_source(external)
    except (MissingPartError, DataError) as error:
        raise MissingPartError(
            f"{external}: the root has no whole copy of it at {store.uri!r}, and {error.message}",
            remedy=f"run `stageline prepare` where it can be had. {error.remedy}",
        ) from error
    return _checked(source.folder, locked, external, remember=False)


def _copy(store: Store, folder: Path, locked: Locked) -> None:
    """Bring the files of a source below the root; one that is there already with its size is left alone."""
    free = store.free_bytes()
    for file in locked.files:
        info = store.stat(file.name)
        if info is not None and info.size == file.bytes:
            continue
        path = (folder / file.name).resolve()  # hub caches are made of links
        if store.local is not None and store.local.link(path, file.name):
            continue
        if free is not None and free < file.bytes:
            raise DiskFullError(
                f"a file of {file.bytes} bytes has no room at {store.uri!r}, {free} are free", remedy="make room"
            )
        store.put(file.name, path)


def _checked(
    folder: Path, locked: Locked, external: External, local: Local | None = None, *, remember: bool = True
) -> Path:
    """A folder whose files are those of the lock.

    local: where it lies below a root; then none of its files may be a link.  remember: leave a note there, for the next
    one who asks.
    """
    stamps = _stamps(folder, locked, local)
    if _seen.get(str(folder)) == stamps:
        return folder
    with _alone(locked):
        if not (remember and (_read(folder / CHECKED) if local is None else local.noted(NOTE)) == stamps):
            faults = Faults(
                DataError,
                f"{external} in {str(folder)!r} is not what was locked (digest {locked.digest[:12]})",
                "delete that folder and run `stageline prepare`"
                if remember
                else "restore the files, or run `stageline prepare` to take what is there now",
            )
            for file in locked.files:
                try:
                    opened = _open(folder, file.name, local)
                except (NotFoundError, FileNotFoundError, IsADirectoryError):
                    faults.add(f"{file.name}: missing")
                    continue
                with opened:
                    size = os.fstat(opened.fileno()).st_size
                    if size != file.bytes:
                        faults.add(f"{file.name}: {size} bytes, expected {file.bytes}")
                    elif hash_open(opened, file.name) != file:
                        faults.add(f"{file.name}: its hash differs")
            faults.raise_if_any()
            if remember:
                with suppress(OSError):  # a root that is read-only: then each process checks by itself
                    if local is None:
                        (folder / CHECKED).write_text(stamps, encoding="utf-8")
                    else:
                        local.note(NOTE, stamps)
    _seen[str(folder)] = stamps
    return folder


_seen: dict[str, str] = {}
"""Folder -> stamps of its files when this process last compared them."""


def _fetched(store: Store, locked: Locked, external: External, folder: Path) -> Path:
    """The copy of an object store as `folder` on this node, where it appears whole and verified."""
    with _alone(locked):
        if folder.is_dir():
            return folder  # by another process, a moment ago
        partial = folder.with_name(f"{locked.digest}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < locked.num_bytes:
            raise DiskFullError(
                f"{external} has {locked.num_bytes} bytes, {free} are free in {str(pod_folder())!r}",
                remedy="give the pod more scratch, or point TMPDIR to another folder",
            )
        try:
            for file in locked.files:
                _download(store, path_below(partial, file.name), file.name, file.sha256, file.bytes)
            (partial / CHECKED).write_text(_stamps(partial, locked), encoding="utf-8")
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _download(store: Store, path: Path, name: str, sha256: str, size: int) -> None:
    """A file of a copy, refused unless size and hash are those of the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, read = hashlib.sha256(), 0
    remedy = "delete that folder and run `stageline prepare`"
    try:
        with path.open("wb") as file:
            for chunk in store.stream(name):
                read += len(chunk)
                if read > size:
                    break
                digest.update(chunk)
                file.write(chunk)
    except NotFoundError as error:
        raise DataError(f"{store.uri}/{name} is missing", remedy=remedy) from error
    if read != size or digest.hexdigest() != sha256:
        raise DataError(f"{store.uri}/{name} is not what was locked: its size or hash differs", remedy=remedy)


def _open(folder: Path, name: str, local: Local | None) -> BufferedReader:
    """A file of a copy; below a root no link is followed, in a hub cache they are by nature."""
    return path_below(folder, name).open("rb") if local is None else local.open(name)


def _stamps(folder: Path, locked: Locked, local: Local | None = None) -> str:
    """What changes whenever one of the files is written again."""
    return canonical_json([[file.name, *_stamp(folder, file.name, local)] for file in locked.files])


def _alone(locked: Locked) -> AbstractContextManager[None]:
    """One process of this node at a time; the lock goes with the process."""
    return hold_lock(pod_folder() / f"external-{locked.digest}.lock")


def _stamp(folder: Path, name: str, local: Local | None) -> list[int]:
    try:
        with _open(folder, name, local) as file:
            status = os.fstat(file.fileno())
    except (NotFoundError, OSError):
        return []
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
