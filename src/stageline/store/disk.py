"""Local disk as a store: every write is fsynced (file, then directory) before it is reported done.

A file appears by rename or link of a finished temporary, so no reader meets half of one. obstore is not used here: it
syncs nothing, has no conditional replacement for local files, and its threads do not survive a fork.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stageline.errors import DiskFullError, StoreError
from stageline.store.keys import HIDDEN, Data, Names, NotFoundError, ObjectInfo

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
CHUNK_BYTES = 4 * 2**20
STALE_SECONDS = 24 * 3600
"""Chosen here: no unfinished write is that old and still alive."""


@contextmanager
def _speaking(path: Path) -> Iterator[None]:
    """Turn the system's refusals into ours, with path and remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"there is nothing at {str(path)!r}", remedy="check the path") from error
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError(
                f"no room to write {str(path)!r}: {error.strerror}",
                remedy="free space or keep fewer checkpoints (trainer.keep); what was committed before is intact",
            ) from error
        raise StoreError(
            f"{str(path)!r} cannot be used: {error.strerror}", remedy="check that it is a folder you may write to"
        ) from error


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def token_of(status: os.stat_result) -> str:
    """Cheap token of a file: what the file system says about it."""
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def content_token(data: bytes) -> str:
    """Exact token: file times tick too slowly, and inodes come back, for what is replaced often."""
    return f"sha256-{hashlib.sha256(data).hexdigest()}"


class Disk:
    """A folder as a store. Needs no other process or service; several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, key: str) -> Path:
        return self.root / key if key else self.root

    def put(self, key: str, data: Data) -> None:
        path = self._path(key)
        with _speaking(path), self._finished_temporary(path, data) as temporary:
            temporary.replace(path)

    def copy(self, source: str, target: str) -> None:
        """By a link: no file of a store is ever written into."""
        old, new = self._path(source), self._path(target)
        temporary = new.parent / f"{HIDDEN}{uuid.uuid4().hex}"
        with _speaking(old):
            _make_folder(new.parent)
            try:
                os.link(old, temporary)
                temporary.replace(new)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                self.put(target, old)
            finally:
                temporary.unlink(missing_ok=True)  # still there where both names were one file already
            sync_folder(new.parent)

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with _speaking(path), self._finished_temporary(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return _create_without_links(path, data)
            return True

    def replace(self, key: str, data: bytes, token: str) -> bool:
        path = self._path(key)
        if not path.parent.is_dir():
            return False
        with _speaking(path), _locked(path.parent):
            if not path.is_file() or token not in (token_of(path.stat()), content_token(path.read_bytes())):
                return False
            self.put(key, data)
        return True

    def get(self, key: str) -> tuple[bytes, str]:
        path = self._path(key)
        with _speaking(path):
            data = path.read_bytes()
        return data, content_token(data)

    def stream(self, key: str, chunk_bytes: int, start: int, size: int | None) -> Iterator[bytes]:
        path = self._path(key)
        with _speaking(path), path.open("rb") as file:
            file.seek(start)
            left = sys.maxsize if size is None else size
            while chunk := file.read(min(chunk_bytes, left)):
                left -= len(chunk)
                yield chunk

    def stat(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        try:
            with _speaking(path):
                status = path.stat()
        except NotFoundError:
            return None
        except StoreError as error:
            # A file stands where the key wants a folder: then there is nothing under that key.
            if isinstance(error.__cause__, NotADirectoryError):
                return None
            raise
        return ObjectInfo(key, status.st_size, token_of(status)) if path.is_file() else None

    def list(self, prefix: str) -> list[ObjectInfo]:
        found = []
        for path in _files_below(self._path(prefix)):
            info = self.stat(path.relative_to(self.root).as_posix())
            if info is not None:
                found.append(info)
        return sorted(found, key=lambda info: info.key)

    def folders(self, prefix: str) -> Names:
        top = self._path(prefix)
        if not top.is_dir():
            return []
        with _speaking(top):
            inner = [entry for entry in top.iterdir() if entry.is_dir()]
        return sorted(entry.name for entry in inner if any(True for _ in _files_below(entry)))

    def delete(self, keys: Iterable[str]) -> None:
        folders = set()
        for key in keys:
            path = self._path(key)
            with suppress(NotFoundError), _speaking(path):
                path.unlink()
                folders.add(path.parent)
        for folder in folders:
            with suppress(NotFoundError), _speaking(folder):
                sync_folder(folder)

    def delete_tree(self, prefix: str) -> None:
        path = self._path(prefix)
        with suppress(NotFoundError), _speaking(path):
            shutil.rmtree(path)
            sync_folder(path.parent)

    def tidy(self, prefix: str) -> None:
        path = self._path(prefix)
        eldest = time.time() - STALE_SECONDS
        with suppress(NotFoundError), _speaking(path):
            for entry in path.iterdir():
                if re.fullmatch(rf"{re.escape(HIDDEN)}[0-9a-f]{{32}}", entry.name) and entry.stat().st_mtime < eldest:
                    entry.unlink()

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    def free_bytes(self, key: str) -> int | None:
        path = self._path(key)
        while not path.is_dir():
            path = path.parent
        with _speaking(path):
            room = os.statvfs(path)
        return room.f_bavail * room.f_frsize

    @contextmanager
    def _finished_temporary(self, path: Path, data: Data) -> Iterator[Path]:
        """A synced file beside `path` with the data in it; afterwards the folder is synced and the file gone."""
        _make_folder(path.parent)
        temporary = path.parent / f"{HIDDEN}{uuid.uuid4().hex}"
        try:
            with temporary.open("wb") as file:
                if isinstance(data, Path):
                    with data.open("rb") as source:
                        shutil.copyfileobj(source, file, CHUNK_BYTES)
                else:
                    for chunk in [data] if isinstance(data, bytes) else data:
                        file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def _create_without_links(path: Path, data: bytes) -> bool:
    """Exclusive creation where the file system has no hard links; a reader may briefly meet an empty file."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return True


def _make_folder(path: Path) -> None:
    """Create a folder and its parents durably."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One conditional replacement at a time in a folder, over processes and threads."""
    with (folder / f"{HIDDEN}lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _files_below(top: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(top):
        for name in names:
            if not name.startswith(HIDDEN):
                yield Path(folder) / name


LFS_MARK = b"version https://git-lfs.github.com/spec/"
LFS_MAX_BYTES = 1024
"""A git-lfs pointer is smaller than that (its specification)."""


def lfs_pointer(path: Path) -> str:
    """What to say of a file that is a git-lfs pointer to another; "" for every other file. OSError as reading gives."""
    with path.open("rb") as file:
        data = file.read(LFS_MAX_BYTES + 1)
    if len(data) > LFS_MAX_BYTES or not data.startswith(LFS_MARK):
        return ""
    size = re.search(rb"^size (\d+)$", data, re.MULTILINE)
    of = f" to a file of {size[1].decode()} bytes" if size else ""
    return f"a git-lfs pointer of {len(data)} bytes{of}, not the file itself; `git lfs pull` fetches it"
