"""What a folder of a store on local disk can do beyond a store's verbs: appending, opening, scratch space, notes.

Programs that take only paths get one of an open folder or file here, by which no link can come in between. Where the
path goes to another process, or there is no /proc, they get one that was checked a moment ago: a window remains.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from stageline.store.below import READ, open_local, reached
from stageline.store.disk import Disk, speaking
from stageline.store.keys import HIDDEN, check_key
from stageline.store.scratch import scratch_folder


class Local:
    """A folder below a root on local disk. Keys are relative to it, as those of its store."""

    def __init__(self, disk: Disk, prefix: str) -> None:
        self._disk = disk
        self._prefix = prefix

    def _key(self, key: str) -> str:
        check_key(key, empty=True)
        return "/".join(part for part in (self._prefix, key) if part)

    def path(self, key: str = "") -> Path:
        """Where something lies, for messages; nothing is opened by it."""
        return self._disk.path(self._key(key))

    def open(self, key: str) -> BufferedReader:
        """A file, opened to be read; NotFoundError if there is none."""
        own = self._key(key)
        with speaking(self._disk.path(own)):
            return os.fdopen(self._disk.below.open(own), "rb")

    def append(self, key: str, data: bytes) -> None:
        """Add bytes at the end of a file, which is made where it is missing. Not synced."""
        own, flags = self._key(key), os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with (
            speaking(self._disk.path(own)),
            self._disk.below.place(own, make=True) as (folder, name),
            os.fdopen(self._disk.below.open_in(folder, name, own, flags), "ab") as file,
        ):
            file.write(data)

    def note(self, name: str, text: str) -> None:
        """Note something under a name that no listing shows. OSError and StoreError where that can't be written."""
        own = self._hidden(name)
        with self._disk.below.place(own, make=True, readable=True) as (folder, hidden):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with os.fdopen(self._disk.below.open_in(folder, hidden, own, flags), "wb") as file:
                file.write(text.encode())

    def noted(self, name: str) -> str:
        """What was noted; "" where nothing was, or nothing that can be read. LinkError for a link in its place."""
        own = self._hidden(name)
        with suppress(OSError, UnicodeDecodeError), os.fdopen(self._disk.below.open(own), "rb") as file:
            return file.read().decode()
        return ""

    def _hidden(self, name: str) -> str:
        check_key(name)
        return "/".join(part for part in (self._prefix, f"{HIDDEN}{name}") if part)

    def link(self, path: Path, key: str) -> bool:
        """Make a local file appear under a key without a copy; False where the file system has no such links."""
        return self._disk.link(path, self._key(key))

    def adopt(self, path: Path, key: str) -> None:
        """Move a finished file of a scratch folder of this folder under a key; durable on return."""
        own = self._key(key)
        with speaking(self._disk.path(own)), self._disk.below.place(own, make=True, readable=True) as (folder, name):
            handle = open_local(path)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(path, name, dst_dir_fd=folder)
            os.fsync(folder)

    @contextmanager
    def scratch(self, purpose: str) -> Iterator[Path]:
        """A fresh folder on the same disk that no listing shows, removed at the end. purpose: one word."""
        place = self._disk.path(self._prefix)
        with speaking(place):
            handle = self._open_made("")
        try:
            with scratch_folder(purpose, reached(handle, place)) as folder:
                inner = os.open(folder.name, READ, dir_fd=handle)
                try:
                    yield reached(inner, folder)
                finally:
                    os.close(inner)
        finally:
            os.close(handle)

    @contextmanager
    def reached(self, key: str = "") -> Iterator[Path]:
        """A folder, made where it is missing, as a path for a program in this process that takes nothing else."""
        path = self._disk.path(self._key(key))
        with speaking(path):
            handle = self._open_made(key)
        try:
            yield reached(handle, path)
        finally:
            os.close(handle)

    def checked(self, key: str = "") -> Path:
        """A folder, made where it is missing, as a path for another process: no link is on the way now."""
        path = self._disk.path(self._key(key))
        with speaking(path):
            os.close(self._open_made(key))
        return path

    def _open_made(self, key: str) -> int:
        with self._disk.below.folder(self._key(key), make=True) as handle:
            return os.open(".", READ, dir_fd=handle)


def path_of(file: BufferedReader, path: Path) -> Path:
    """A path by which an open file is reached in this process while it is open. path: where it lies."""
    return reached(file.fileno(), path)
