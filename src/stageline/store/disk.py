"""Local disk as a store: every write is fsynced (file, then directory) before it is reported done.

A file appears by rename or link of a finished temporary, so no reader meets half of one. obstore is not used here: it
syncs nothing, has no conditional replacement for local files, and its threads do not survive a fork. How a file is
reached without following links is `below`'s; what only disks can do is in `local`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stageline.errors import DiskFullError, StoreError
from stageline.store.below import PLAIN, Below, followed_links, open_local
from stageline.store.keys import (
    HIDDEN,
    NO_FILE,
    Data,
    Infos,
    Names,
    NotFoundError,
    ObjectInfo,
    refuse_large,
)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
CHUNK_BYTES = 4 * 2**20
STALE_SECONDS = 24 * 3600
"""Chosen here: no unfinished write is that old and still alive."""


@contextmanager
def speaking(path: Path) -> Iterator[None]:
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


def token_of(status: os.stat_result) -> str:
    """Cheap token of a file: what the file system says about it."""
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def content_token(data: bytes) -> str:
    """Exact token: file times tick too slowly, and inodes come back, for what is replaced often."""
    return f"sha256-{hashlib.sha256(data).hexdigest()}"


class Disk:
    """A folder as a store. Needs no other process or service; several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        followed_links()  # what the environment names wrongly is told at once
        self.root = root
        self.below = Below(root)

    def path(self, key: str) -> Path:
        """Where something lies, for messages and for names that people type; nothing is opened by it."""
        return self.below.path(key)

    def put(self, key: str, data: Data) -> None:
        with speaking(self.path(key)), self._finished_temporary(key, data) as (folder, temporary, name):
            os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)

    def copy(self, source: str, target: str) -> None:
        """By a hard link: no file of a store is ever written into."""
        with (
            speaking(self.path(source)),
            self.below.place(source) as (place, old),
            os.fdopen(self.below.open_in(place, old, source), "rb") as file,
        ):
            if not self._linked((place, old), target, os.fstat(file.fileno())):
                self.put(target, iter(lambda: file.read(CHUNK_BYTES), b""))

    def link(self, path: Path, key: str) -> bool:
        """Make a local file appear under a key without a copy; False where the file system has no such links.

        path: of a regular file, no link. It may lie outside of the root.
        """
        with speaking(path):
            status = path.lstat()
            self.below.refuse_kind(status.st_mode, key)
            return self._linked((None, str(path)), key, status)

    def _linked(self, source: tuple[int | None, str], target: str, expected: os.stat_result) -> bool:
        """Link a file under a key. source: a folder and a name in it.  expected: facts of the file that is meant."""
        with self.below.place(target, make=True, readable=True) as (folder, name):
            temporary = f"{HIDDEN}{uuid.uuid4().hex}"
            try:
                os.link(source[1], temporary, src_dir_fd=source[0], dst_dir_fd=folder, follow_symlinks=False)
                if not os.path.samestat(os.stat(temporary, dir_fd=folder, follow_symlinks=False), expected):
                    raise StoreError(
                        f"{source[1]!r} was exchanged while it was copied to {str(self.path(target))!r}",
                        remedy="find out who writes there at the same time",
                    )
                os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return False
            finally:
                with suppress(FileNotFoundError):  # still there where both names were one file already
                    os.unlink(temporary, dir_fd=folder)
            os.fsync(folder)
        return True

    def create(self, key: str, data: bytes) -> bool:
        with speaking(self.path(key)), self._finished_temporary(key, data) as (folder, temporary, name):
            try:
                os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return _create_without_links(folder, name, data)
            return True

    def replace(self, key: str, data: bytes, token: str) -> bool:
        try:
            with speaking(self.path(key)), self.below.place(key) as (folder, name), self._locked(folder, key):
                with os.fdopen(self.below.open_in(folder, name, key), "rb") as file:
                    refuse_large(os.fstat(file.fileno()).st_size, self.path(key))
                    if token not in (token_of(os.fstat(file.fileno())), content_token(file.read())):
                        return False
                self.put(key, data)
        except NotFoundError:
            return False
        return True

    def get(self, key: str) -> tuple[bytes, str]:
        with speaking(self.path(key)), os.fdopen(self.below.open(key), "rb") as file:
            refuse_large(os.fstat(file.fileno()).st_size, self.path(key))
            data = file.read()
        return data, content_token(data)

    def stream(self, key: str, chunk_bytes: int, start: int, size: int | None) -> Iterator[bytes]:
        with speaking(self.path(key)), os.fdopen(self.below.open(key), "rb") as file:
            file.seek(start)
            left = sys.maxsize if size is None else size
            while chunk := file.read(min(chunk_bytes, left)):
                left -= len(chunk)
                yield chunk

    def stat(self, key: str) -> ObjectInfo | None:
        try:
            with speaking(self.path(key)), self.below.place(key) as (folder, name):
                status = os.stat(name or ".", dir_fd=folder, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    return None
                if stat.S_ISLNK(status.st_mode):
                    raise self.below.link(folder, name, key, "a regular file")
                self.below.refuse_kind(status.st_mode, key)
        except NotFoundError:
            return None
        except StoreError as error:
            # A file stands where the key wants a folder: then there is nothing under that key.
            if isinstance(error.__cause__, NotADirectoryError):
                return None
            raise
        return ObjectInfo(key, status.st_size, token_of(status))

    def list(self, prefix: str) -> Infos:
        return self._listed(prefix, deep=True)

    def files(self, prefix: str) -> Infos:
        return self._listed(prefix, deep=False)

    def _listed(self, prefix: str, *, deep: bool) -> Infos:
        with _nothing_is_empty(), speaking(self.path(prefix)):
            files = self.below.files(prefix, deep=deep)
            found = [ObjectInfo(key, _size(status), token_of(status)) for key, status in files]
            return sorted(found, key=lambda info: info.key)
        return []

    def folders(self, prefix: str) -> Names:
        with _nothing_is_empty(), speaking(self.path(prefix)):
            return self.below.folders(prefix)
        return []

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with (
                suppress(NotFoundError),
                speaking(self.path(key)),
                self.below.place(key, readable=True) as (folder, name),
            ):
                os.unlink(name, dir_fd=folder)
                os.fsync(folder)

    def delete_tree(self, prefix: str) -> None:
        with suppress(NotFoundError), speaking(self.path(prefix)):
            self.below.remove_tree(prefix)

    def tidy(self, prefix: str) -> None:
        eldest = time.time() - STALE_SECONDS
        with suppress(NotFoundError), speaking(self.path(prefix)), self.below.folder(prefix, readable=True) as folder:
            with os.scandir(folder) as entries:
                left = [entry for entry in entries if re.fullmatch(rf"{re.escape(HIDDEN)}[0-9a-f]{{32}}", entry.name)]
                stale = [entry.name for entry in left if entry.stat(follow_symlinks=False).st_mtime < eldest]
            for name in stale:
                os.unlink(name, dir_fd=folder)

    def free_bytes(self, key: str) -> int | None:
        while True:
            with suppress(NotFoundError), speaking(self.path(key)), self.below.folder(key) as folder:
                room = os.fstatvfs(folder)
                break
            if not key:
                room = _room_above(self.root)
                break
            key = key.rpartition("/")[0]
        return room.f_bavail * room.f_frsize

    @contextmanager
    def _finished_temporary(self, key: str, data: Data) -> Iterator[tuple[int, str, str]]:
        """(folder, name of a synced file in it with the data, the key's own name); afterwards the folder is synced and
        the file gone."""
        with self.below.place(key, make=True, readable=True) as (folder, name):
            temporary = f"{HIDDEN}{uuid.uuid4().hex}"
            try:
                made = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN, 0o666, dir_fd=folder)
                with os.fdopen(made, "wb") as file:
                    if isinstance(data, Path):
                        with os.fdopen(open_local(data), "rb") as source:
                            shutil.copyfileobj(source, file, CHUNK_BYTES)
                    else:
                        for chunk in [data] if isinstance(data, bytes) else data:
                            file.write(chunk)
                    file.flush()
                    os.fsync(file.fileno())
                yield folder, temporary, name
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
            os.fsync(folder)

    @contextmanager
    def _locked(self, folder: int, key: str) -> Iterator[None]:
        """One conditional replacement at a time in a folder, over processes and threads."""
        name = f"{HIDDEN}lock"
        above = key.rpartition("/")[0]
        own = f"{above}/{name}" if above else name
        handle = self.below.open_in(folder, name, own, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _size(status: os.stat_result) -> int:
    return status.st_size if stat.S_ISREG(status.st_mode) else NO_FILE


def _create_without_links(folder: int, name: str, data: bytes) -> bool:
    """Exclusive creation where the file system has no hard links; a reader may briefly meet an empty file."""
    try:
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN, 0o666, dir_fd=folder)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return True


def _room_above(path: Path) -> os.statvfs_result:
    """Room where a root that is not there yet would lie."""
    while not path.is_dir():
        path = path.parent
    with speaking(path):
        return os.statvfs(path)


@contextmanager
def _nothing_is_empty() -> Iterator[None]:
    """Where there is no folder to list, or a file in its place, nothing is found."""
    try:
        yield
    except NotFoundError:
        pass
    except StoreError as error:
        if not isinstance(error.__cause__, NotADirectoryError):
            raise


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
