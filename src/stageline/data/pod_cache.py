"""Content-addressed files as local files: in place on disk, or fetched once per pod from an object store. No torch.

Both check a file's SHA-256 (its name) before its first use, and remember that: beside the file where it lies on disk,
by its presence in the cache where it was fetched. Ranks of one pod share a folder below the temporary one and wait for
each other by file locks, so that two of them fetch or check a file once. Nothing is ever read that nobody asked for.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

from stageline.data.splits import CHUNK_BYTES, REMEDY
from stageline.errors import DataError, DiskFullError
from stageline.store import NotFoundError, Store
from stageline.store.keys import HIDDEN
from stageline.store.local import Local
from stageline.store.locks import LOCK, hold_if_free, hold_lock, sweep_locks
from stageline.store.scratch import pod_folder

__all__ = ["StoredFiles", "pod_folder"]

PARTIAL = ".partial"
NAME = re.compile(r"[0-9a-f]{64}\.[a-z]+")


@dataclass
class StoredFiles:
    """The files of one folder of a store, by name (`<sha256>.<kind>`).

    store: the folder that holds them.  cache: folder for fetched files.  cache_bytes: most bytes kept there; None is
    half of what is free.  what, remedy: what the folder is and what helps where it is damaged, for messages.
    """

    store: Store
    cache: Path = field(default_factory=pod_folder)
    cache_bytes: int | None = None
    what: str = "split"
    remedy: str = REMEDY
    _checked: dict[str, str] = field(default_factory=dict)

    @property
    def in_place(self) -> bool:
        """Whether the files are used where they lie."""
        return self.store.local is not None

    def open(self, name: str, size: int) -> BufferedReader:
        """A local file with exactly these bytes, opened; DataError that names a missing or damaged one.

        size: bytes it must have. FileNotFoundError where another process made room in the cache at this moment.
        """
        self._refuse_name(name)
        if self.store.local is not None:
            return self._in_place(self.store.local, name, size)
        return self._fetched(name, size, lambda: self.store.stream(name)).open("rb")

    def open_part(self, name: str, size: int, key: str, start: int) -> BufferedReader:
        """The same for bytes that are a part of an object and are fetched alone.

        name: `<sha256 of the part>.<kind>`.  size: bytes of the part.  key: the object.  start: where it begins there.
        """
        self._refuse_name(name)
        return self._fetched(name, size, lambda: self.store.stream(key, start=start, size=size)).open("rb")

    def _refuse_name(self, name: str) -> None:
        """Names come out of manifests: one that is no hash names no file of ours, and is never made a path."""
        if not NAME.fullmatch(name):
            raise self.fault(f"{name!r:.100}", "no name of a file here, expected <sha256>.<kind>")

    def _in_place(self, local: Local, name: str, size: int) -> BufferedReader:
        try:
            file = local.open(name)
        except NotFoundError:
            raise self.fault(name, "missing") from None
        try:
            stamp = stamp_of(os.fstat(file.fileno()))
            if self._checked.get(name) != stamp:
                with self._locked(name):
                    if local.noted(f"checked-{name}") != stamp:
                        self._check(name, size, iter(lambda: file.read(CHUNK_BYTES), b""), None)
                        with suppress(OSError):  # a folder that is read-only: then each process checks by itself
                            local.note(f"checked-{name}", stamp)
                        file.seek(0)
                self._checked[name] = stamp
        except BaseException:
            file.close()
            raise
        return file

    def _fetched(self, name: str, size: int, chunks: Callable[[], Iterator[bytes]]) -> Path:
        path = self.cache / name
        if self._is_cached(path, size):
            return path
        with self._locked(name):
            if self._is_cached(path, size) or self._is_sound(path, size):
                return path
            partial = self.cache / f"{name}{PARTIAL}"
            try:
                self._make_room(name, size)
                self._check(name, size, chunks(), partial)
                partial.replace(path)
                self._remember(path)
            finally:
                partial.unlink(missing_ok=True)
        return path

    def _is_cached(self, path: Path, size: int) -> bool:
        """Whether it was fetched before and is what was checked then; now it counts as used last."""
        try:
            stamp, status = _stamp(path), path.stat()
            if status.st_size != size or stamp not in (self._checked.get(path.name), _read(_marker(path))):
                return False
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
        except FileNotFoundError:
            return False
        self._checked[path.name] = stamp
        return True

    def _is_sound(self, path: Path, size: int) -> bool:
        """Whether what lies there, and nobody remembers to have checked, has the hash of its name."""
        try:
            with path.open("rb") as file:
                self._check(path.name, size, iter(lambda: file.read(CHUNK_BYTES), b""), None)
        except (FileNotFoundError, DataError):
            return False
        self._remember(path)
        return True

    def _remember(self, path: Path) -> None:
        """Note that a cached file was checked as it is now."""
        self._checked[path.name] = _stamp(path)
        _marker(path).write_text(self._checked[path.name], encoding="ascii")

    def _check(self, name: str, size: int, chunks: Iterator[bytes], target: Path | None) -> None:
        """Read a file once, into `target` if there is one; DataError unless size and hash are those of its name."""
        digest, read = hashlib.sha256(), 0
        try:
            with (target or Path(os.devnull)).open("wb") as file:
                for chunk in chunks:
                    read += len(chunk)
                    if read > size:
                        break
                    digest.update(chunk)
                    file.write(chunk)
        except NotFoundError:
            raise self.fault(name, "missing") from None
        if read != size:
            raise self.fault(name, f"{'more than ' if read > size else ''}{min(read, size)} bytes, expected {size}")
        if digest.hexdigest() != name.partition(".")[0]:
            raise self.fault(name, "its hash is not its name")

    def _make_room(self, name: str, size: int) -> None:
        """Remove the files used longest ago until this one fits, and take its place at once."""
        with self._locked("room"):
            sweep_locks(self.cache)
            self._remove_left()
            files = sorted((path for path in self.cache.iterdir() if _counts(path)), key=lambda p: p.stat().st_atime_ns)
            held = sum(path.stat().st_size for path in files)
            limit = self._limit(held)
            if size > limit:
                raise DiskFullError(
                    f"a file of {size} bytes of the {self.what} at {self.store.uri!r} does not fit into the cache of "
                    f"{limit} bytes in {str(self.cache)!r}",
                    remedy="raise data.cache_bytes, or give the pod more scratch",
                )
            for path in files:
                if held + size <= limit:
                    break
                if path.suffix != PARTIAL:
                    held -= path.stat().st_size
                    path.unlink()
                    _marker(path).unlink(missing_ok=True)
            with (self.cache / f"{name}{PARTIAL}").open("wb") as file:
                file.truncate(size)

    def _limit(self, held: int) -> int:
        """Most bytes of the cache. held: those it has now."""
        if self.cache_bytes is not None:
            return self.cache_bytes
        room = os.statvfs(self.cache)
        return (room.f_bavail * room.f_frsize + held) // 2

    def _remove_left(self) -> None:
        """Unfinished files whose process died: nobody holds their lock."""
        for partial in self.cache.glob(f"*{PARTIAL}"):
            with hold_if_free(self._lock_of(partial.name.removesuffix(PARTIAL))) as free:
                if free:
                    partial.unlink(missing_ok=True)

    def _lock_of(self, name: str) -> Path:
        return self.cache / f"{name}{LOCK}"

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """One process of the pod at a time."""
        with hold_lock(self._lock_of(name)):
            yield

    def fault(self, name: str, what: str) -> DataError:
        """The error for one of the files. what: what is wrong with it."""
        return DataError(f"the {self.what} at {self.store.uri!r} is damaged: {name}: {what}", remedy=self.remedy)


def _stamp(path: Path) -> str:
    return stamp_of(path.stat())


def stamp_of(status: os.stat_result) -> str:
    """What changes whenever a file is written again."""
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _marker(path: Path) -> Path:
    """The file beside another that says as what it was last checked."""
    return path.with_name(f"{HIDDEN}checked-{path.name}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _counts(path: Path) -> bool:
    return path.suffix != LOCK and not path.name.startswith(HIDDEN) and path.is_file()
