"""Folders and files below a root on local disk, reached without following a link that lies below it.

A root is often a claim that several pods write to, with different rights: a link that one of them leaves there must not
lead another one's reading, writing or deleting elsewhere. Each part of a key is opened in the folder before it without
following links, and the last is looked at once it is open, so that nothing can be exchanged between look and use. The
root is opened anew for each operation: handles of network file systems go stale. It may be a link itself.

A linked `runs`, `cache` or `runs/<run>` is meant where a root spreads over several disks. Whoever starts a process
allows it in the environment; a config can't, since configs come from others.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from stageline.errors import StoreError
from stageline.store.keys import HIDDEN

FOLLOW_VARIABLE = "STAGELINE_FOLLOW_LINKS"
"""Names of linked folders, between commas, that readers and writers may follow."""
FOLLOWABLE = re.compile(r"runs|cache|runs/[^/]+")
PLAIN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Of every file: a link is refused, and a pipe without a writer does not hang."""
PASSED = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Of a folder on the way: O_PATH asks for no right to read it, only to pass."""
READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Of a folder that is listed or synced."""
MAX_LEVELS = 64
"""Folders in each other below a root, chosen here: ours are ten deep. Each is open while those in it are listed."""
KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
LINKED = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)
"""What systems say of a link that is not followed, and of other things too."""
NO_FILE = (errno.ENXIO, errno.EOPNOTSUPP, errno.EISDIR)
"""What they say of a pipe without a reader, a socket, a folder that is opened to be written."""
OPEN_FILES = Path("/proc/self/fd")


class LinkError(StoreError):
    """A link below a root, which is not followed."""


@lru_cache(maxsize=16)
def _followed(text: str) -> frozenset[str]:
    names = [name.strip().strip("/") for name in text.split(",") if name.strip()]
    wrong = [name for name in names if not FOLLOWABLE.fullmatch(name) or name in ("runs/.", "runs/..")]
    if wrong:
        raise StoreError(
            f"{FOLLOW_VARIABLE} names {', '.join(map(repr, wrong))}",
            remedy="name `runs`, `cache` or `runs/<run>`, several between commas; other links are never followed",
        )
    return frozenset(names)


def followed_links() -> frozenset[str]:
    """Keys of links that this process may follow. StoreError for a name that can't be allowed."""
    return _followed(os.environ.get(FOLLOW_VARIABLE, ""))


def kind_of(mode: int) -> str:
    """What a file that is none is called."""
    return next((word for is_one, word in KINDS if is_one(mode)), "no file")


class Below:
    """What lies below a root. Keys as the store checks them: relative, without `.` and `..`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Where something lies, for messages."""
        return self.root / key if key else self.root

    @contextmanager
    def folder(self, key: str, *, make: bool = False, readable: bool = False) -> Iterator[int]:
        """A folder, opened; closed at the end.

        make: create what is missing of it, durably.  readable: it is listed or synced, not only passed.
        OSError as opening gives it; LinkError for a link on the way.
        """
        parts = key.split("/") if key else []
        handle = self._open_root(READ if readable and not parts else PASSED, make=make)
        try:
            for number, part in enumerate(parts, start=1):
                flags = READ if readable and number == len(parts) else PASSED
                inner = self.enter(handle, part, "/".join(parts[:number]), flags, make=make)
                os.close(handle)
                handle = inner
            yield handle
        finally:
            os.close(handle)

    @contextmanager
    def place(self, key: str, *, make: bool = False, readable: bool = False) -> Iterator[tuple[int, str]]:
        """The folder that holds a key, opened, and the key's name in it. make, readable: as for `folder`."""
        above, _, name = key.rpartition("/")
        with self.folder(above, make=make, readable=readable) as handle:
            yield handle, name

    def enter(self, handle: int, name: str, key: str, flags: int = READ, *, make: bool = False) -> int:
        """A folder in an open one, opened. key: its own, from the root on."""
        try:
            return os.open(name, flags, dir_fd=handle)
        except FileNotFoundError:
            if not make:
                raise
            with suppress(FileExistsError):  # another process, at the same time; or a link that leads nowhere
                os.mkdir(name, dir_fd=handle)
                sync_open(handle)
            return self.enter(handle, name, key, flags)
        except OSError as error:
            if error.errno not in LINKED or not _is_link(handle, name):
                raise
            if key not in followed_links():
                raise self.link(handle, name, key, "a folder") from None
            return os.open(name, flags & ~os.O_NOFOLLOW, dir_fd=handle)

    def open_in(self, handle: int, name: str, key: str, flags: int = os.O_RDONLY) -> int:
        """A regular file in an open folder, opened; one that is made gets the usual rights.

        LinkError, or StoreError for a pipe, socket or device; IsADirectoryError, FileNotFoundError.
        """
        try:
            found = os.open(name, flags | PLAIN, 0o666, dir_fd=handle)
        except OSError as error:
            if error.errno in LINKED and _is_link(handle, name):
                raise self.link(handle, name, key, "a regular file") from None
            if error.errno in NO_FILE:
                self.refuse_kind(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode, key)
            raise
        try:
            self.refuse_kind(os.fstat(found).st_mode, key)
        except BaseException:
            os.close(found)
            raise
        return found

    def open(self, key: str, flags: int = os.O_RDONLY) -> int:
        """A regular file, opened. Errors as of `open_in`; NotADirectoryError where a file is taken for a folder."""
        with self.place(key) as (handle, name):
            return self.open_in(handle, name, key, flags)

    def refuse_kind(self, mode: int, key: str) -> None:
        """StoreError unless it is the mode of a regular file."""
        if stat.S_ISREG(mode):
            return
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "Is a folder")
        raise StoreError(
            f"{str(self.path(key))!r} is {kind_of(mode)}, expected a regular file", remedy="remove what lies there"
        )

    def link(self, handle: int, name: str, key: str, expected: str) -> LinkError:
        """The refusal of a link that lies in an open folder. expected: what should be there."""
        try:
            target = os.readlink(name, dir_fd=handle)
        except OSError:  # it is gone by now
            target = "?"
        if FOLLOWABLE.fullmatch(key):
            remedy = (
                "links below a root are followed only where the environment of this process allows it: if you made "
                f"this one, set {FOLLOW_VARIABLE}={key} (docs/security.md), else remove it"
            )
        else:
            remedy = "links below a root are not followed: put there what it leads to, or remove it"
        return LinkError(f"{str(self.path(key))!r} is a link to {target!r:.200}, expected {expected}", remedy=remedy)

    def entries(self, handle: int) -> list[tuple[os.DirEntry[str], os.stat_result]]:
        """What lies directly in an open, readable folder, by name, without what stores keep for themselves.

        The facts are those of the entries themselves, of links too.
        """
        found = []
        with os.scandir(handle) as listed:
            for entry in listed:
                if not entry.name.startswith(HIDDEN):
                    with suppress(FileNotFoundError):  # removed at this moment
                        found.append((entry, entry.stat(follow_symlinks=False)))
        return sorted(found, key=lambda pair: pair[0].name)

    def files(self, key: str, *, deep: bool = True) -> Iterator[tuple[str, os.stat_result]]:
        """Keys and facts of what lies in a folder, and in those below it, but for folders.

        Links that are not followed, pipes and the like are named, too: whoever opens them is told.
        deep: whether folders in it are entered.
        """
        with self.folder(key, readable=True) as handle:
            yield from self._files_in(handle, key, deep=deep)

    def _files_in(self, handle: int, key: str, *, deep: bool) -> Iterator[tuple[str, os.stat_result]]:
        self._refuse_deep(key)
        for entry, status in self.entries(handle):
            own = f"{key}/{entry.name}" if key else entry.name
            followed = stat.S_ISLNK(status.st_mode) and own in followed_links()
            if not followed and not stat.S_ISDIR(status.st_mode):
                yield own, status
            elif deep:
                with suppress(FileNotFoundError):
                    inner = self.enter(handle, entry.name, own)
                    try:
                        yield from self._files_in(inner, own, deep=True)
                    finally:
                        os.close(inner)

    def folders(self, key: str) -> list[str]:
        """Names of the folders in a folder that hold anything; of links to folders too, as `files` has them."""
        found = []
        with self.folder(key, readable=True) as handle:
            for entry, status in self.entries(handle):
                own = f"{key}/{entry.name}" if key else entry.name
                if stat.S_ISLNK(status.st_mode):
                    if entry.is_dir() and (own not in followed_links() or self._holds_any(handle, entry.name, own)):
                        found.append(entry.name)
                elif stat.S_ISDIR(status.st_mode) and self._holds_any(handle, entry.name, own):
                    found.append(entry.name)
        return found

    def _holds_any(self, handle: int, name: str, key: str) -> bool:
        """Whether a folder in an open one holds anything but empty folders. One that can't be read holds nothing.

        One that is too deep to be looked through does: whoever lists it is told.
        """
        if key.count("/") >= MAX_LEVELS:
            return True
        try:
            inner = self.enter(handle, name, key)
        except (FileNotFoundError, PermissionError):
            return False
        try:
            entries = self.entries(inner)
            if any(not stat.S_ISDIR(status.st_mode) for _, status in entries):
                return True
            return any(self._holds_any(inner, entry.name, f"{key}/{entry.name}") for entry, _ in entries)
        finally:
            os.close(inner)

    def remove_tree(self, key: str) -> None:
        """Remove a folder with everything in it; links in it are removed, what they lead to stays."""
        with self.place(key, readable=True) as (handle, name):
            self._empty(handle, name, key)
            with suppress(FileNotFoundError):  # by another process, at the same time
                os.rmdir(name, dir_fd=handle)
            os.fsync(handle)

    def _refuse_deep(self, key: str) -> None:
        if key.count("/") >= MAX_LEVELS:
            top = str(self.path("/".join(key.split("/")[:3])))
            told = f"{top!r} holds folders in each other more than {MAX_LEVELS} deep (MAX_LEVELS)"
            raise StoreError(told, remedy="nothing of ours is so deep: find out who made it, and remove it (rm -r)")

    def _empty(self, handle: int, name: str, key: str) -> None:
        self._refuse_deep(key)
        inner = self.enter(handle, name, key)
        try:
            with os.scandir(inner) as listed:
                names = [entry.name for entry in listed]
            for own in names:
                with suppress(FileNotFoundError):
                    if stat.S_ISDIR(os.stat(own, dir_fd=inner, follow_symlinks=False).st_mode):
                        self._empty(inner, own, f"{key}/{own}")
                        os.rmdir(own, dir_fd=inner)
                    else:
                        os.unlink(own, dir_fd=inner)
        finally:
            os.close(inner)

    def _open_root(self, flags: int, *, make: bool) -> int:
        followed = flags & ~os.O_NOFOLLOW
        try:
            return os.open(self.root, followed)
        except FileNotFoundError:
            if not make:
                raise
        _make_root(self.root)
        return os.open(self.root, followed)


def _make_root(path: Path) -> None:
    """Create a root and the folders above it durably."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def open_local(path: Path, flags: int = os.O_RDONLY) -> int:
    """A file that a part of this program named, opened; StoreError for a link and for what is no file.

    One that is made is its user's alone.
    """
    try:
        found = os.open(path, flags | PLAIN, 0o600)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise
        mode = path.lstat().st_mode
    else:
        mode = os.fstat(found).st_mode
        if stat.S_ISREG(mode):
            return found
        os.close(found)
    raise StoreError(f"{str(path)!r} is {kind_of(mode)}, expected a regular file", remedy="name the file itself")


def open_new(path: Path) -> BinaryIO:
    """A file that was not there before, opened to be written: what lies in its place is removed, never written into."""
    with suppress(FileNotFoundError):
        path.unlink()
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN, 0o666), "wb")


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_open(handle: int) -> None:
    """The same for a folder that is open to be passed, which the system syncs nothing of."""
    readable = os.open(".", READ, dir_fd=handle)
    try:
        os.fsync(readable)
    finally:
        os.close(readable)


def reached(handle: int, path: Path) -> Path:
    """What a program that takes only paths reaches an open file or folder by, in this process, while it is open.

    path: where it lies, which is what there is on systems without /proc: there a link may be put in between.
    """
    return OPEN_FILES / str(handle) if OPEN_FILES.is_dir() else path


def _is_link(handle: int, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
